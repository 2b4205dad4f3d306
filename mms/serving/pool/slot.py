"""A place for a worker, the states it goes through and the moves between them. Pure."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from mms.serving.lifecycle import IllegalMove


class WorkerState(enum.Enum):
    """State of one worker slot.

    STOPPING is also a worker that is lost, until its process has been seen to end.
    """

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    STOPPING = "stopping"
    BACKOFF = "backoff"


#: Which states may follow each; docs/architecture.md draws it.
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
        state: What its worker is doing.
        worker: The process that is in it, None if there is none.
        relieves: The slot whose worker serves until this one's is ready.
        is_leaving: Whether its worker is the last: it ends once it runs nothing.
        has_started: Whether any worker in it has been ready.
        ready_at: When the present worker became ready, monotonic.
        has_served: Whether the present worker has finished a batch.
        was_busy: Whether the present worker was lost with a batch in it.
        lifetime_s: How long the present worker, now lost, was ready.
        due_at: When the next worker is to be started, in BACKOFF.
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
        """Go to another state.

        Raises:
            IllegalMove: It cannot follow the present one.
        """
        if state not in WORKER_MOVES[self.state]:
            raise IllegalMove(f"a worker cannot go from {self.state.name} to {state.name}")
        self.state = state
