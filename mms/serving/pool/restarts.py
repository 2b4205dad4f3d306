"""When a worker, or the loader, is started again after it died or did not start. Pure."""

from __future__ import annotations

#: Back-off before a worker that never finished a batch is started again (seconds).
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
#: A worker that lived this long was healthy, whatever ended it.
HEALTHY_AFTER_S = 60.0
#: Replacements of one servable's workers that may follow each other at once, and how many a second
#: come after that. A fork costs about 25 ms of one core, so a flood of requests that kill takes at
#: most half a core for restarts; the burst is more than any honest mistake needs.
RESTART_BURST = 40
RESTARTS_PER_S = 20.0
#: Deaths, or failed starts, in a row that make a servable FAILED.
MAX_FAILURES = 5


class RestartPolicy:
    """Decides when a process is replaced, and when the servable is given up.

    What an end counts against, and when the next process is started:

    ==================================  ==============  ===============================
    the worker ended                    counts against  its replacement starts
    ==================================  ==============  ===============================
    before it was ready                 the model       after a back-off
    idle, never having served           the model       after a back-off but the first
    idle, having served                 nobody          at once
    with a request in it: by a crash,   the request     at once
    its exit, a signal, a lack of
    memory, stray bytes on its socket
    with a request in it, past its      the request,    at once
    response_timeout                    this once
    killed since all its clients left   nobody          at once
    (the loader) at any time            nobody          at once
    (the loader) before it was ready    nobody          after a back-off
    ==================================  ==============  ===============================

    Five deaths in a row against the model, over all workers of the servable and without a batch
    finished between them, are the end. So are five failed starts in a row, unless another worker
    serves: a lack of processes, say, must not stop it. A loader that has failed to start five times
    in a row is left to the next worker that needs one.

    The back-off is 0.1 s, doubling up to 30 s. "At once" holds for `RESTART_BURST` replacements in
    quick succession; more come at `RESTARTS_PER_S`.
    """

    def __init__(self) -> None:
        self._deaths = 0
        self._failed_starts = 0
        self._failed_loaders = 0
        self._burst_ends_at = 0.0

    @property
    def deaths(self) -> int:
        """Deaths in a row that count against the model."""
        return self._deaths

    def batch_finished(self) -> None:
        """Record that a worker works."""
        self._deaths = 0

    def worker_died(
        self, now: float, *, was_busy: bool, has_served: bool, lifetime_s: float
    ) -> float | None:
        """Return the seconds to wait before another is started, or None to give up.

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
            # An idle worker that is killed once is replaced at once, too.
            return self._at_once(now)
        return backoff_s(self._deaths - 1)

    def start_failed(self, *, others_serve: bool) -> float | None:
        """Return the seconds to wait before the next start, or None to give up.

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
        """Return the seconds to wait before another loader is started."""
        return self._at_once(now)

    def loader_failed(self) -> float | None:
        """Return the seconds to wait before a loader is tried again; None to leave it."""
        self._failed_loaders += 1
        return backoff_s(self._failed_loaders) if self._failed_loaders < MAX_FAILURES else None

    def loader_succeeded(self) -> None:
        """Record that a loader has become ready."""
        self._failed_loaders = 0

    def _at_once(self, now: float) -> float:
        """Return 0, or the wait that keeps the rate of restarts bounded.

        Each restart moves the end of an imaginary queue of restarts by its interval; a queue of
        less than a whole burst waits for nothing.
        """
        interval = 1 / RESTARTS_PER_S
        self._burst_ends_at = max(self._burst_ends_at, now) + interval
        return max(self._burst_ends_at - now - RESTART_BURST * interval, 0.0)


def backoff_s(failures: int) -> float:
    """Return the wait after so many failures in a row (0 counts as 1), seconds."""
    # The exponent is bounded: 2.0 ** 1024 overflows.
    return min(BACKOFF_FIRST_S * 2.0 ** min(max(failures - 1, 0), 64), BACKOFF_MAX_S)
