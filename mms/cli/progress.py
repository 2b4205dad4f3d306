"""One line on the terminal that shows the progress of all downloads."""

from __future__ import annotations

import shutil
import threading
import time
from typing import TextIO

from mms.fetch.download import in_megabytes

_REDRAW_S = 0.1
_BAR_CHARS = 24


class ProgressLine:
    """Draws the line; safe to use from several threads.

    Args:
        terminal: Where to draw.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.Lock()
        self._downloads: dict[str, tuple[int, int | None]] = {}
        self._drawn_at = 0.0

    def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Record how much of a download has arrived, and redraw at a limited rate."""
        with self._lock:
            self._downloads[name] = (done_bytes, total_bytes)
            now = time.monotonic()
            if now - self._drawn_at >= _REDRAW_S:
                self._drawn_at = now
                self._draw(self.line())

    def finish(self, name: str) -> None:
        """Record the end of a download; the last one clears the line."""
        with self._lock:
            if self._downloads.pop(name, None) is not None and not self._downloads:
                self._draw("")

    def line(self) -> str:
        """Return the line: what is downloaded, a bar if its length is known, and the bytes."""
        names = list(self._downloads)
        done = sum(done for done, _ in self._downloads.values())
        totals = [total for _, total in self._downloads.values()]
        what = names[0].rpartition("/")[2] if len(names) == 1 else f"{len(names)} models"
        if None in totals:
            return f"downloading {what}  {in_megabytes(done)}"
        total = max(sum(total or 0 for total in totals), 1)
        share = min(done / total, 1.0)
        bar = ("#" * round(share * _BAR_CHARS)).ljust(_BAR_CHARS, "-")
        return f"downloading {what}  [{bar}] {share:4.0%} of {in_megabytes(total)}"

    def _draw(self, text: str) -> None:
        columns = shutil.get_terminal_size().columns
        # Back to the first column, so that the next output (a log line, say) overwrites this.
        self._terminal.write(f"\r{text[: columns - 1]}\x1b[K\r")
        self._terminal.flush()
