"""Whether it pays to wait a moment for clients to come back. Pure: counts and times in.

Clients that send their next request when they have an answer fall into two groups, which take
turns: while one is answered and comes back, the batch of the other has left, and every batch is
half full. A model whose forward takes about as long for many as for one then does half the work it
could. Waiting until those who were just answered are back joins the groups.

Where requests come at times of their own there is nobody to wait for; that shows in how few come
back in time, and there is no waiting then.
"""

from __future__ import annotations

#: Least share of those answered that must come back in time for the wait to go on.
_MIN_SHARE = 0.5
#: Weight of the newest batch in the running mean of that share.
_SMOOTHING = 0.2


class Linger:
    """How many requests are expected back, and until when."""

    def __init__(self) -> None:
        self.until = 0.0
        self._expected = 0
        self._returned = 0
        self._share = 1.0

    def answered(self, count: int, now: float, window_s: float) -> None:
        """Record that a batch was answered.

        Args:
            count: Its requests.
            now: Monotonic time.
            window_s: What they get to come back.
        """
        if now >= self.until:
            if self._expected:
                share = min(self._returned / self._expected, 1.0)
                self._share += _SMOOTHING * (share - self._share)
            self._expected = self._returned = 0
        # Else some are still expected, of this worker or another.
        self._expected += count
        self.until = now + window_s

    def arrived(self, now: float) -> None:
        """Record a request."""
        if now < self.until:
            self._returned += 1

    def waits(self, waiting: int, room: int, now: float) -> bool:
        """Whether a batch should not leave yet.

        Args:
            waiting: Requests in the queue.
            room: What the idle workers can take.
            now: Monotonic time.
        """
        is_expecting = now < self.until and self._returned < self._expected
        return is_expecting and self._share >= _MIN_SHARE and waiting < room
