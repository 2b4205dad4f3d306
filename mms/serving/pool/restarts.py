"""The back-off of restarts after a worker, or the loader, has died or failed to start. Pure."""

from __future__ import annotations

#: Back-off before a worker that never finished a batch is restarted (seconds).
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
#: A worker that lived this long was healthy, whatever ended it.
HEALTHY_AFTER_S = 60.0
#: Replacements of one servable's workers without delay, and their rate per second after that. A
#: fork costs about 25 ms of one core, so restarts due to a flood of killing requests take at most
#: half a core; the burst is larger than any honest mistake needs.
RESTART_BURST = 40
RESTARTS_PER_S = 20.0
#: Deaths, or failed starts, in a row that make a servable FAILED.
MAX_FAILURES = 5


class RestartPolicy:
    """Decides when a process is replaced, and when the servable is given up.

    What the end of a process counts against, and when its replacement starts:

    ==================================  ==============  ===============================
    the worker ended                    counts against  its replacement starts
    ==================================  ==============  ===============================
    before it was ready                 the model       after a back-off
    idle, never having served           the model       after a back-off but the first
    idle, having served                 nothing         at once
    with a request in it: by a crash,   the request     at once
    its exit, a signal, a lack of
    memory, stray bytes on its socket
    with a request in it, past its      the request,    at once
    response_timeout                    this once
    killed since all its clients left   nothing         at once
    (the loader) at any time            nothing         at once
    (the loader) before it was ready    nothing         after a back-off
    ==================================  ==============  ===============================

    The servable is given up after five deaths in a row that count against the model, over all its
    workers and without a finished batch between them. So it is after five failed starts in a row,
    unless another worker serves: a shortage of processes, say, must not stop it. A loader that has
    failed to start five times in a row is only retried for the next worker that needs one.

    The back-off is 0.1 s, doubling up to 30 s. "At once" applies to `RESTART_BURST` replacements in
    quick succession; further ones are limited to `RESTARTS_PER_S`.
    """

    def __init__(self) -> None:
        self._deaths = 0
        self._failed_starts = 0
        self._failed_loaders = 0
        self._burst_ends_at = 0.0

    @property
    def deaths(self) -> int:
        """Number of deaths in a row that count against the model."""
        return self._deaths

    def batch_finished(self) -> None:
        """Record that a worker has finished a batch."""
        self._deaths = 0

    def worker_died(
        self, now: float, *, was_busy: bool, has_served: bool, lifetime_s: float
    ) -> float | None:
        """Record a death; return the seconds to wait before a replacement, or None to give up.

        Args:
            now: Monotonic time.
            was_busy: Whether it had a request in it.
            has_served: Whether it had finished a batch.
            lifetime_s: Seconds it lived after it was ready.
        """
        if was_busy or has_served:
            return self._at_once(now)
        if lifetime_s >= HEALTHY_AFTER_S:
            self._deaths = 0
        self._deaths += 1
        if self._deaths >= MAX_FAILURES:
            return None
        if self._deaths == 1:
            # An idle worker that is killed once is also replaced at once.
            return self._at_once(now)
        return backoff_s(self._deaths - 1)

    def start_failed(self, *, others_serve: bool) -> float | None:
        """Record a failed start; return the seconds to wait before the next, or None to give up.

        Args:
            others_serve: Whether the servable has another worker that is ready.
        """
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILURES and not others_serve:
            return None
        return backoff_s(self._failed_starts)

    def start_succeeded(self) -> None:
        """Record that a worker has become ready."""
        self._failed_starts = 0

    def loader_died(self, now: float) -> float:
        """Record the loader's death; return the seconds to wait before a new one is started."""
        return self._at_once(now)

    def loader_failed(self) -> float | None:
        """Record a loader's failed start; return the seconds to wait before a retry, or None."""
        self._failed_loaders += 1
        return backoff_s(self._failed_loaders) if self._failed_loaders < MAX_FAILURES else None

    def loader_succeeded(self) -> None:
        """Record that a loader has become ready."""
        self._failed_loaders = 0

    def _at_once(self, now: float) -> float:
        """Return 0, or the wait that limits the rate of restarts.

        Each restart extends a virtual queue of restarts by its interval; there is no wait while the
        queue is shorter than a burst.
        """
        interval = 1 / RESTARTS_PER_S
        self._burst_ends_at = max(self._burst_ends_at, now) + interval
        return max(self._burst_ends_at - now - RESTART_BURST * interval, 0.0)


def backoff_s(failures: int) -> float:
    """Return the wait in seconds after a number of failures in a row (0 counts as 1)."""
    # The exponent is bounded: 2.0 ** 1024 overflows.
    return min(BACKOFF_FIRST_S * 2.0 ** min(max(failures - 1, 0), 64), BACKOFF_MAX_S)
