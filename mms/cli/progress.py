"""One line on the terminal that says how downloads go on, however many there are."""

from __future__ import annotations

import shutil
import threading
import time
from typing import TextIO

from mms.fetch.download import in_megabytes

_REDRAW_S = 0.1
_BAR_CHARS = 24


class ProgressLine:
    """Draws the line; for any number of threads.

    Args:
        terminal: Where to.
    """

    def __init__(self, terminal: TextIO) -> None:
        self._terminal = terminal
        self._lock = threading.Lock()
        self._downloads: dict[str, tuple[int, int | None]] = {}
        self._drawn_at = 0.0

    def update(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        """Record how much of a download is here, and draw, unless it was done just now."""
        with self._lock:
            self._downloads[name] = (done_bytes, total_bytes)
            now = time.monotonic()
            if now - self._drawn_at >= _REDRAW_S:
                self._drawn_at = now
                self._draw(self.line())

    def finish(self, name: str) -> None:
        """Record a download's end; the last one takes the line away."""
        with self._lock:
            if self._downloads.pop(name, None) is not None and not self._downloads:
                self._draw("")

    def line(self) -> str:
        """Return the text: what is downloaded, a bar if its length is known, and the bytes."""
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
        # Back to the first column: what is written next, a line of the log say, overwrites this.
        self._terminal.write(f"\r{text[: columns - 1]}\x1b[K\r")
        self._terminal.flush()
