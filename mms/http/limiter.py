"""A rate limit on log lines that clients can cause. Pure: the clock is an argument."""

from __future__ import annotations

_LINES, _WINDOW_S = 5, 10.0


class LineLimiter:
    """Admits a few lines per time window and counts the others.

    Args:
        lines: Lines admitted per window.
        window_s: Length of a window, which begins with its first line.
    """

    def __init__(self, lines: int = _LINES, window_s: float = _WINDOW_S) -> None:
        self._lines = lines
        self._window_s = window_s
        self._began_at = -window_s
        self._seen = 0

    def admit(self, now: float) -> bool:
        """Count a line, and return whether to write it.

        Call `take_suppressed` first, or the count of an earlier window is lost.
        """
        if now - self._began_at >= self._window_s:
            self._began_at, self._seen = now, 0
        self._seen += 1
        return self._seen <= self._lines

    def take_suppressed(self, now: float) -> int:
        """Return, once, how many lines the last, finished window has suppressed."""
        if now - self._began_at < self._window_s:
            return 0
        suppressed, self._seen = max(self._seen - self._lines, 0), 0
        return suppressed
