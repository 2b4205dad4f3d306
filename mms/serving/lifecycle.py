"""States of servables and workers, the moves allowed between them, and the restart policy. Pure."""

from __future__ import annotations

import enum

#: Back-off before a worker that never finished a batch is started again (seconds).
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0
#: A worker that lived this long was healthy, whatever ended it.
HEALTHY_AFTER_S = 60.0
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
    """Give `following` if it may follow `current`.

    Raises:
        IllegalMove: It may not.
    """
    if following not in _SERVABLE_MOVES[current]:
        raise IllegalMove(f"a servable cannot go from {current.name} to {following.name}")
    return following


def move_worker(current: WorkerState, following: WorkerState) -> WorkerState:
    """Give `following` if it may follow `current`.

    Raises:
        IllegalMove: It may not.
    """
    if following not in _WORKER_MOVES[current]:
        raise IllegalMove(f"a worker cannot go from {current.name} to {following.name}")
    return following


class RestartPolicy:
    """Decides when a dead worker is started again, and when to give up.

    A worker that finished a batch is replaced at once: whatever killed it was a request or an
    operator. One that never did is started again after 0.1 s, doubling up to 30 s; after five
    such deaths in a row, over all workers of the servable, it is given up.
    """

    def __init__(self) -> None:
        self._failures = 0

    @property
    def failures(self) -> int:
        """Deaths in a row without a batch finished between them."""
        return self._failures

    def batch_finished(self) -> None:
        """Take note that a worker works."""
        self._failures = 0

    def worker_died(self, has_served: bool, lifetime_s: float) -> float | None:
        """Give the seconds to wait before starting another, or None to give up.

        Args:
            has_served: Whether the worker had finished a batch.
            lifetime_s: Seconds it lived after it was ready; 0 if it never was.
        """
        if has_served:
            return 0.0
        if lifetime_s >= HEALTHY_AFTER_S:
            self._failures = 0
        self._failures += 1
        if self._failures >= MAX_FAILURES:
            return None
        if self._failures == 1 and lifetime_s > 0:
            # An idle worker that is killed once is replaced at once, too.
            return 0.0
        return backoff_s(self._failures - (lifetime_s > 0))


def backoff_s(failures: int) -> float:
    """Give the wait after so many failures in a row (0 counts as 1), seconds."""
    return min(BACKOFF_FIRST_S * 2.0 ** max(failures - 1, 0), BACKOFF_MAX_S)
