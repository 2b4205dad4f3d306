"""Decide whether to wait briefly for clients that have just been answered. Pure.

Clients that send their next request after each response (a closed loop) fall into two groups that
alternate: while one is answered and sends again, the batch of the other is running, and every batch
is half full. A model whose forward pass takes about as long for many requests as for one then has
half of its possible throughput. Waiting until the clients just answered have sent again merges the
groups.

If requests arrive independently (an open loop), waiting is useless; few then return in time, and
there is no more waiting.
"""

from __future__ import annotations

#: Minimum share of answered clients that must return in time for waiting to continue.
_MIN_SHARE = 0.5
#: Weight of the newest batch in the running mean of that share.
_SMOOTHING = 0.2


class Linger:
    """Tracks how many requests are expected, and until when."""

    def __init__(self) -> None:
        self.until = 0.0
        self._expected = 0
        self._returned = 0
        self._share = 1.0

    def answered(self, count: int, now: float, window_s: float) -> None:
        """Record that a batch was answered.

        Args:
            count: Number of its requests.
            now: Monotonic time.
            window_s: Time within which their clients are expected to send again, in seconds.
        """
        if now >= self.until:
            if self._expected:
                share = min(self._returned / self._expected, 1.0)
                self._share += _SMOOTHING * (share - self._share)
            self._expected = self._returned = 0
        # Otherwise some are still expected, from this worker's batch or another's.
        self._expected += count
        self.until = now + window_s

    def arrived(self, now: float) -> None:
        """Record the arrival of a request."""
        if now < self.until:
            self._returned += 1

    def waits(self, waiting: int, room: int, now: float) -> bool:
        """Return whether to hold the next batch.

        Args:
            waiting: Number of queued requests.
            room: Number of requests that the idle workers can take.
            now: Monotonic time.
        """
        is_expecting = now < self.until and self._returned < self._expected
        return is_expecting and self._share >= _MIN_SHARE and waiting < room
