"""The state machine of a pool: events and times in, instructions out. Pure.

A slot is a place for a worker; processes come and go in it. There are always as many slots as
workers are wanted, plus one for each worker that is being replaced while it serves. Workers on
their way out no longer have a slot. The `Pool` carries out the instructions with real processes and
reports the results.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from mms.errors import MMSError, WorkerDied
from mms.serving.lifecycle import IllegalMove
from mms.serving.pool.restarts import RestartPolicy
from mms.serving.pool.slot import Slot, WorkerState


class Phase(enum.Enum):
    """State of a pool."""

    NEW = "new"
    LOADING = "loading"
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"


#: Allowed transitions; docs/architecture.md draws them.
PHASE_MOVES = {
    Phase.NEW: {Phase.LOADING, Phase.STOPPED},
    Phase.LOADING: {Phase.RUNNING, Phase.FAILED, Phase.STOPPED},
    Phase.RUNNING: {Phase.FAILED, Phase.STOPPED},
    Phase.FAILED: {Phase.STOPPED},
    # A failed load stops the pool, and so does the unload that follows.
    Phase.STOPPED: {Phase.STOPPED},
}
_SERVING = (WorkerState.READY, WorkerState.BUSY)
#: Order in which excess slots are dropped: those not serving yet, then the idle.
_FIRST_TO_GO = {
    WorkerState.BACKOFF: 0,
    WorkerState.STOPPING: 1,
    WorkerState.STARTING: 2,
    WorkerState.READY: 3,
    WorkerState.BUSY: 4,
}


@dataclass(frozen=True, slots=True)
class Spawn:
    """Start a process; answer with `started` or `start_failed`."""

    worker: int


@dataclass(frozen=True, slots=True)
class Serve:
    """Send batches to a worker that has started."""

    worker: int


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Send a worker no further batch."""

    worker: int


@dataclass(frozen=True, slots=True)
class Lost:
    """Requeue a lost worker's requests; its process may not have ended yet."""

    worker: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop an idle process; answer with `ended`."""

    worker: int


@dataclass(frozen=True, slots=True)
class CountRestart:
    """Count the replacement of a worker, by reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class StartLoader:
    """Start a loader; answer with `loader_started` or `loader_failed`."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """Report that all workers of the first load are ready."""


@dataclass(frozen=True, slots=True)
class GiveUp:
    """Report that the model does not load, or its workers keep dying; no more are started."""

    error: MMSError


Instruction = Spawn | Serve | Withdraw | Lost | Stop | CountRestart | StartLoader | Loaded | GiveUp


class Machine:
    """The slots of one servable's workers.

    Args:
        target: Wanted number of workers.
        ids: Source of process numbers.
    """

    def __init__(self, target: int, ids: Iterator[int]) -> None:
        self.target = target
        self.phase = Phase.NEW
        self._ids = ids
        self._slots: list[Slot] = []
        self._leaving: list[Slot] = []
        self._by_worker: dict[int, Slot] = {}
        self._policy = RestartPolicy()
        self._has_loaded = False
        self._loader_due_at = math.inf

    @property
    def slots(self) -> Sequence[Slot]:
        """The slots: as many as `target` and `replacing` together while the pool runs."""
        return self._slots

    @property
    def replacing(self) -> int:
        """Number of workers that serve while their replacements start."""
        return sum(slot.relieves is not None for slot in self._slots)

    @property
    def starting(self) -> int:
        """Number of slots whose worker is starting, in back-off, or lost and not yet ended."""
        return sum(slot.state not in _SERVING for slot in self._slots)

    def states(self) -> Counter[WorkerState]:
        """Return the number of workers by state, including those on their way out."""
        return Counter(slot.state for slot in (*self._slots, *self._leaving))

    def state(self, worker: int) -> WorkerState | None:
        """Return the state of a worker, None if it is not (or no longer) known."""
        slot = self._by_worker.get(worker)
        return slot.state if slot is not None else None

    def wake_at(self) -> float:
        """Return when the next `tick` has something to do, infinity if it has nothing."""
        dues = [slot.due_at for slot in self._slots if slot.state is WorkerState.BACKOFF]
        return min(self._loader_due_at, *dues) if dues else self._loader_due_at

    def start(self) -> list[Instruction]:
        """Start all workers; the first alone, so that a broken model logs one traceback only."""
        self._enter(Phase.LOADING)
        return self._reconcile()

    def resize(self, target: int) -> list[Instruction]:
        """Change the wanted number of workers."""
        self.target = target
        return self._reconcile()

    def recycle(self, worker: int, reason: str) -> list[Instruction]:
        """Replace a working worker; the new one is ready before the old one is retired."""
        slot = self._by_worker.get(worker)
        if slot is None or slot.is_leaving or slot.state not in _SERVING or not self._is_active:
            return []
        if any(other.relieves is slot for other in self._slots):
            return []
        relief = Slot(relieves=slot)
        self._slots.append(relief)
        return [CountRestart(reason), self._spawn(relief)]

    def started(self, worker: int, now: float) -> list[Instruction]:
        """Record that a process has loaded the model."""
        slot = self._by_worker.get(worker)
        if slot is None:
            return [Stop(worker)]
        if slot.state is not WorkerState.STARTING:
            return []
        if slot.is_leaving:
            slot.move(WorkerState.STOPPING)
            return [Stop(worker)]
        self._policy.start_succeeded()
        slot.move(WorkerState.READY)
        slot.ready_at = now
        slot.has_served = False
        slot.has_started = self._has_loaded = True
        instructions: list[Instruction] = [Serve(worker)]
        if slot.relieves is not None:
            relieved, slot.relieves = slot.relieves, None
            instructions += self._retire(relieved)
        return instructions + self._reconcile()

    def start_failed(self, worker: int, error: MMSError, now: float) -> list[Instruction]:
        """Record that a process could not be started or did not load the model."""
        slot = self._by_worker.get(worker)
        if slot is None or slot.state is not WorkerState.STARTING:
            return []
        self._empty(slot)
        if slot.is_leaving:
            self._leaving.remove(slot)
            return []
        if self.phase is Phase.LOADING and not slot.has_started:
            return self._give_up(error)
        delay_s = self._policy.start_failed(others_serve=self._serves())
        if delay_s is None:
            return self._give_up(error)
        return self._restart(slot, now, delay_s)

    def batch_begun(self, worker: int) -> None:
        """Record that a worker has been sent a batch."""
        self._by_worker[worker].move(WorkerState.BUSY)

    def batch_finished(self, worker: int) -> Sequence[Instruction]:
        """Record that a worker has answered its batch."""
        slot = self._by_worker[worker]
        slot.move(WorkerState.READY)
        slot.has_served = True
        self._policy.batch_finished()
        if not slot.is_leaving:
            return ()
        slot.move(WorkerState.STOPPING)
        return (Stop(worker),)

    def lost(self, worker: int, now: float) -> list[Instruction]:
        """Record that a worker is lost; `ended` follows once its process has ended."""
        slot = self._by_worker.get(worker)
        if slot is None or slot.state not in _SERVING:
            return []
        slot.was_busy = slot.state is WorkerState.BUSY
        slot.lifetime_s = now - slot.ready_at
        slot.move(WorkerState.STOPPING)
        for relief in self._slots:
            if relief.relieves is slot:
                # The replacement takes over at once; the worker needs no second one.
                relief.relieves = None
                self._leave(slot)
                break
        return [Lost(worker)]

    def ended(self, worker: int, now: float, reason: str, message: str) -> list[Instruction]:
        """Record that a lost or stopped process has ended.

        Args:
            worker: The worker.
            now: Monotonic time.
            reason: Reason for its replacement, if it is replaced: the label of a metric.
            message: How it ended, for the error if the servable is given up.
        """
        slot = self._by_worker.get(worker)
        if slot is None or slot.state is not WorkerState.STOPPING:
            return []
        self._empty(slot)
        if slot.is_leaving:
            self._leaving.remove(slot)
            return []
        if not self._is_active:
            self._slots.remove(slot)
            return []
        delay_s = self._policy.worker_died(
            now,
            was_busy=slot.was_busy,
            has_served=slot.has_served,
            lifetime_s=slot.lifetime_s,
        )
        instructions: list[Instruction] = [CountRestart(reason)]
        if delay_s is None:
            return instructions + self._give_up(
                WorkerDied(
                    f"{self._policy.deaths} workers in a row died while nothing ran in them; "
                    f"the last one {message}"
                )
            )
        return instructions + self._restart(slot, now, delay_s)

    def loader_ended(self, now: float) -> list[Instruction]:
        """Record that the loader has ended unexpectedly."""
        return self._restart_loader(now, self._policy.loader_died(now))

    def loader_started(self) -> None:
        """Record that a new loader is ready."""
        self._policy.loader_succeeded()

    def loader_failed(self, now: float) -> list[Instruction]:
        """Record that the loader could not be restarted."""
        delay_s = self._policy.loader_failed()
        return [] if delay_s is None else self._restart_loader(now, delay_s)

    def tick(self, now: float, present: Collection[int] | None = None) -> list[Instruction]:
        """Start what is due, and reconcile the slots with the processes.

        Args:
            now: Monotonic time.
            present: The existing processes, including those starting and ending; workers that are
                missing among them are replaced. None skips this check.
        """
        if not self._is_active:
            return []
        instructions: list[Instruction] = []
        if self._loader_due_at <= now:
            self._loader_due_at = math.inf
            instructions.append(StartLoader())
        for slot in self._slots:
            if slot.state is WorkerState.BACKOFF and slot.due_at <= now:
                slot.move(WorkerState.STARTING)
        if present is not None:
            for worker in [worker for worker in self._by_worker if worker not in present]:
                instructions += self._missed(worker, now)
            strangers = [worker for worker in present if worker not in self._by_worker]
            instructions += [Stop(worker) for worker in strangers]
        return instructions + self._reconcile()

    def stop(self) -> None:
        """Reset the state: all processes are stopped, and their exits are ignored."""
        self._enter(Phase.STOPPED)
        self._slots.clear()
        self._leaving.clear()
        self._by_worker.clear()
        self._loader_due_at = math.inf

    def _enter(self, phase: Phase) -> None:
        if phase not in PHASE_MOVES[self.phase]:
            raise IllegalMove(f"a pool cannot go from {self.phase.name} to {phase.name}")
        self.phase = phase

    @property
    def _is_active(self) -> bool:
        return self.phase in (Phase.LOADING, Phase.RUNNING)

    def _serves(self) -> bool:
        return any(slot.state in _SERVING for slot in (*self._slots, *self._leaving))

    def _reconcile(self) -> list[Instruction]:
        """Add or drop slots until their number is as wanted, and fill empty ones."""
        if not self._is_active:
            return []
        instructions: list[Instruction] = []
        places = [slot for slot in self._slots if slot.relieves is None]
        self._slots += [Slot() for _ in range(self.target - len(places))]
        # Of workers in the same state, one that is to be replaced goes first.
        relieved = [slot.relieves for slot in self._slots]
        places.sort(key=lambda slot: (_FIRST_TO_GO[slot.state], slot not in relieved))
        for slot in places[: max(len(places) - self.target, 0)]:
            instructions += self._drop(slot)
        instructions += self._fill()
        if self.phase is Phase.LOADING and all(slot.has_started for slot in self._slots):
            self._enter(Phase.RUNNING)
            instructions.append(Loaded())
        return instructions

    def _fill(self) -> list[Instruction]:
        empty = [
            slot
            for slot in self._slots
            if slot.state is WorkerState.STARTING and slot.worker is None
        ]
        if self.phase is Phase.LOADING and not self._has_loaded:
            is_first_under_way = any(slot.worker is not None for slot in self._slots)
            empty = [] if is_first_under_way else empty[:1]
        return [self._spawn(slot) for slot in empty]

    def _spawn(self, slot: Slot) -> Spawn:
        slot.worker = next(self._ids)
        self._by_worker[slot.worker] = slot
        return Spawn(slot.worker)

    def _empty(self, slot: Slot) -> None:
        if slot.worker is not None:
            del self._by_worker[slot.worker]
            slot.worker = None

    def _leave(self, slot: Slot) -> None:
        """Remove a slot from the count; its worker only has to end."""
        slot.is_leaving = True
        self._slots.remove(slot)
        if slot.worker is not None:
            self._leaving.append(slot)

    def _retire(self, slot: Slot) -> list[Instruction]:
        """Stop a worker once it is idle."""
        self._leave(slot)
        if slot.worker is None or slot.state not in _SERVING:
            return []
        instructions: list[Instruction] = [Withdraw(slot.worker)]
        if slot.state is WorkerState.READY:
            slot.move(WorkerState.STOPPING)
            instructions.append(Stop(slot.worker))
        return instructions

    def _drop(self, slot: Slot) -> list[Instruction]:
        """Retire the worker of a slot, and its replacement."""
        reliefs = [relief for relief in self._slots if relief.relieves is slot]
        instructions = self._retire(slot)
        for relief in reliefs:
            relief.relieves = None
            instructions += self._retire(relief)
        return instructions

    def _restart(self, slot: Slot, now: float, delay_s: float) -> list[Instruction]:
        if delay_s > 0:
            slot.move(WorkerState.BACKOFF)
            slot.due_at = now + delay_s
            return []
        slot.move(WorkerState.STARTING)
        return [self._spawn(slot)]

    def _restart_loader(self, now: float, delay_s: float) -> list[Instruction]:
        if not self._is_active:
            return []
        if delay_s > 0:
            self._loader_due_at = now + delay_s
            return []
        return [StartLoader()]

    def _missed(self, worker: int, now: float) -> list[Instruction]:
        """Replace a process whose end was not reported."""
        if self._by_worker[worker].state is WorkerState.STARTING:
            return self.start_failed(worker, WorkerDied("the worker disappeared"), now)
        instructions = self.lost(worker, now)
        return instructions + self.ended(worker, now, "crash", "disappeared")

    def _give_up(self, error: MMSError) -> list[Instruction]:
        """Start no more workers; those that serve finish the queue."""
        self._enter(Phase.FAILED)
        self._loader_due_at = math.inf
        for slot in [slot for slot in self._slots if slot.state not in _SERVING]:
            slot.relieves = None
            self._leave(slot)
        return [GiveUp(error)]
