"""States of servables and workers, the moves allowed between them, and the restart policy. Pure."""

from __future__ import annotations

import enum

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
#: Deaths, or failed loads, in a row that make a servable FAILED.
MAX_FAILURES = 5


class ServableState(enum.Enum):
    """State of one loaded version of one model."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


class WorkerState(enum.Enum):
    """State of one worker slot."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    DEAD = "dead"
    BACKOFF = "backoff"


_SERVABLE_MOVES = {
    ServableState.LOADING: {ServableState.READY, ServableState.FAILED, ServableState.DRAINING},
    # To UNLOADED at once: a model that nobody asks goes to sleep.
    ServableState.READY: {
        ServableState.DRAINING,
        ServableState.FAILED,
        ServableState.UNLOADED,
    },
    ServableState.FAILED: {ServableState.LOADING, ServableState.DRAINING},
    ServableState.DRAINING: {ServableState.UNLOADED},
    # A model that loads on its first request begins, and wakes up, here.
    ServableState.UNLOADED: {ServableState.LOADING, ServableState.DRAINING},
}
_WORKER_MOVES = {
    WorkerState.STARTING: {WorkerState.READY, WorkerState.STOPPING, WorkerState.DEAD},
    WorkerState.READY: {WorkerState.BUSY, WorkerState.STOPPING, WorkerState.DEAD},
    WorkerState.BUSY: {WorkerState.READY, WorkerState.STOPPING, WorkerState.DEAD},
    WorkerState.STOPPING: {WorkerState.DEAD},
    WorkerState.DEAD: {WorkerState.BACKOFF, WorkerState.STARTING},
    WorkerState.BACKOFF: {WorkerState.STARTING, WorkerState.DEAD},
}


class IllegalMove(Exception):
    """A state was to follow another that it cannot follow: a bug of ours."""


def move_servable(current: ServableState, following: ServableState) -> ServableState:
    """Return `following` if it may follow `current`.

    Raises:
        IllegalMove: It may not.
    """
    if following not in _SERVABLE_MOVES[current]:
        raise IllegalMove(f"a servable cannot go from {current.name} to {following.name}")
    return following


def move_worker(current: WorkerState, following: WorkerState) -> WorkerState:
    """Return `following` if it may follow `current`.

    Raises:
        IllegalMove: It may not.
    """
    if following not in _WORKER_MOVES[current]:
        raise IllegalMove(f"a worker cannot go from {current.name} to {following.name}")
    return following


class RestartPolicy:
    """Decides when a dead worker is replaced, and when the servable is given up.

    What a death counts against, and when the next worker is started:

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
    ==================================  ==============  ===============================

    Five deaths in a row against the model, over all workers of the servable and without a batch
    finished between them, are the end. The back-off is 0.1 s, doubling up to 30 s. "At once" holds
    for `RESTART_BURST` replacements in quick succession; more come at `RESTARTS_PER_S`.
    """

    def __init__(self) -> None:
        self._failures = 0
        self._burst_ends_at = 0.0

    @property
    def failures(self) -> int:
        """Deaths in a row that count against the model."""
        return self._failures

    def batch_finished(self) -> None:
        """Record that a worker works."""
        self._failures = 0

    def worker_died(
        self, now: float, *, was_busy: bool, has_served: bool, lifetime_s: float
    ) -> float | None:
        """Return the seconds to wait before another is started, or None to give up.

        Args:
            now: Monotonic time.
            was_busy: Whether it had a request in it.
            has_served: Whether it had finished a batch.
            lifetime_s: Seconds it lived after it was ready; 0 if it never was.
        """
        if was_busy or has_served:
            return self._at_once(now)
        if lifetime_s >= HEALTHY_AFTER_S:
            self._failures = 0
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            return None
        if self._failures == 1 and lifetime_s > 0:
            # An idle worker that is killed once is replaced at once, too.
            return self._at_once(now)
        return backoff_s(self._failures - (lifetime_s > 0))

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
    return min(BACKOFF_FIRST_S * 2.0 ** max(failures - 1, 0), BACKOFF_MAX_S)
