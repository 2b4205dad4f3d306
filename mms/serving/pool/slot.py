"""A place for a worker, its states and the transitions between them. Pure."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from mms.serving.lifecycle import IllegalMove


class WorkerState(enum.Enum):
    """State of one worker slot.

    STOPPING includes a lost worker, until its process has ended.
    """

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    BACKOFF = "backoff"


#: Allowed transitions; docs/architecture.md draws them.
WORKER_MOVES = {
    WorkerState.STARTING: {WorkerState.READY, WorkerState.STOPPING, WorkerState.BACKOFF},
    WorkerState.READY: {WorkerState.BUSY, WorkerState.STOPPING},
    WorkerState.BUSY: {WorkerState.READY, WorkerState.STOPPING},
    WorkerState.STOPPING: {WorkerState.STARTING, WorkerState.BACKOFF},
    WorkerState.BACKOFF: {WorkerState.STARTING},
}


@dataclass(slots=True, eq=False)
class Slot:
    """A place for a worker.

    Attributes:
        state: State of its worker.
        worker: The process in it, None if there is none.
        relieves: The slot whose worker serves until this one's is ready.
        is_leaving: Whether its worker is not replaced: it ends once it is idle.
        has_started: Whether any worker in it has been ready.
        ready_at: Monotonic time at which the current worker became ready.
        has_served: Whether the current worker has finished a batch.
        was_busy: Whether the current worker was lost with a batch in it.
        lifetime_s: Time that the current, now lost worker was ready, in seconds.
        due_at: Monotonic time at which to start the next worker, in BACKOFF.
    """

    state: WorkerState = WorkerState.STARTING
    worker: int | None = None
    relieves: Slot | None = None
    is_leaving: bool = False
    has_started: bool = False
    ready_at: float = 0.0
    has_served: bool = False
    was_busy: bool = False
    lifetime_s: float = 0.0
    due_at: float = math.inf

    def move(self, state: WorkerState) -> None:
        """Move to another state.

        Raises:
            IllegalMove: The transition is not allowed.
        """
        if state not in WORKER_MOVES[self.state]:
            raise IllegalMove(f"a worker cannot go from {self.state.name} to {state.name}")
        self.state = state
