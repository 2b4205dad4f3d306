"""The workers of one servable: start, watch, replace and stop them.

`Machine` decides and `Starter` starts processes; the pool carries out the machine's instructions
and reports the results to it. Its `WorkerUser` sends the workers their batches.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from mms.errors import MMSError, ModelLoadFailed
from mms.serving.pool.machine import (
    CountRestart,
    GiveUp,
    Instruction,
    Loaded,
    Lost,
    Machine,
    Phase,
    Serve,
    Spawn,
    StartLoader,
    Stop,
    Withdraw,
)
from mms.serving.pool.placement import Placement
from mms.serving.pool.slot import WorkerState
from mms.serving.pool.starter import PoolSettings, Starter
from mms.serving.pool.worker_process import WorkerProcess
from mms.serving.tasks import Tasks
from mms.wire.codec import encode_control
from mms.wire.frames import Frame, FrameType
from mms.wire.messages import LoadSpec, Ready

logger = logging.getLogger("mms.pool")

#: Unique over all pools: a servable may get a new pool while workers of the old one are ending.
_ids = itertools.count(1)
#: The server's reasons to kill a worker that are labels of a metric.
_KILL_REASONS = ("timeout", "cancelled")


class WorkerUser(Protocol):
    """The user of a pool's workers, which sends them batches."""

    def on_worker_ready(self, worker: WorkerProcess) -> None:
        """Handle a worker that is ready for its first batch."""

    def on_worker_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """Handle the result of a worker's batch."""

    def on_worker_withdrawn(self, worker: WorkerProcess) -> None:
        """Send a worker no further batches; the current one may still be finished."""

    def on_worker_lost(self, worker: WorkerProcess, reason: str) -> None:
        """Handle the loss of a worker: the results of its batch will not come."""


class PoolOwner(Protocol):
    """Receives the events of a pool."""

    def on_worker_ready(self, ready: Ready) -> None:
        """Handle a worker that has loaded the model."""

    def on_worker_lost(self) -> None:
        """Handle the loss of a worker."""

    def on_metrics(self, report: Any) -> None:
        """Handle metrics reported by the service."""

    def on_alone(self, reason: str) -> None:
        """Handle a worker's switch to running requests one at a time."""

    def on_restart(self, reason: str) -> None:
        """Handle the replacement of a worker."""

    def on_failed(self, error: MMSError) -> None:
        """Handle the failure of the pool: workers keep dying, or do not load."""


class Pool:
    """Keeps the wanted number of workers of one servable alive."""

    def __init__(
        self,
        spec: LoadSpec,
        settings: PoolSettings,
        user: WorkerUser,
        owner: PoolOwner,
        placement: Placement,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._user = user
        self._owner = owner
        self._clock = clock
        self._machine = Machine(settings.workers, _ids)
        self._starter = Starter(spec, settings, self, placement, _ids)
        # By their numbers in the machine: those that serve, and all that have started and not yet
        # ended.
        self._serving: dict[int, WorkerProcess] = {}
        self._started: dict[int, WorkerProcess] = {}
        self._starts: dict[int, asyncio.Task[MMSError | None]] = {}
        # Lost, but not ended yet.
        self._dying: set[WorkerProcess] = set()
        self._tasks = Tasks()
        self._loaded: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    @property
    def workers(self) -> list[WorkerProcess]:
        """The live workers."""
        return list(self._serving.values())

    def worker(self, id_: int) -> WorkerProcess:
        """Return a live worker by its id.

        Raises:
            KeyError: It is not alive.
        """
        return self._serving[id_]

    @property
    def loader(self) -> WorkerProcess | None:
        """The loader, from which workers are forked, if there is one."""
        return self._starter.loader

    @property
    def size(self) -> int:
        """The wanted number of workers."""
        return self._machine.target

    @property
    def starting(self) -> int:
        """Number of workers starting, in back-off, or lost and not yet ended."""
        return self._machine.starting

    @property
    def phase(self) -> Phase:
        """The state of the pool as a whole."""
        return self._machine.phase

    def states(self) -> Counter[WorkerState]:
        """Return the number of workers by state, including those on their way out."""
        return self._machine.states()

    def state(self, worker: WorkerProcess) -> WorkerState | None:
        """Return the state of a worker, None if it is not (or no longer) in this pool."""
        return self._machine.state(worker.id)

    async def start(self) -> None:
        """Start all workers and wait until they are ready.

        Raises:
            MMSError: The model cannot be loaded. Nothing is left running.
        """
        self._loaded = asyncio.get_running_loop().create_future()
        try:
            self._carry_out(self._machine.start())
            await self._loaded
        except BaseException:
            await self.stop()
            raise

    async def resize(self, size: int) -> None:
        """Start or retire workers to reach a number, and wait until new ones are ready.

        Raises:
            MMSError: A new worker could not be started; it is retried, and the others stay.
        """
        instructions = self._machine.resize(size)
        self._carry_out(instructions)
        starts = [self._starts[step.worker] for step in instructions if isinstance(step, Spawn)]
        if starts:
            await asyncio.wait(starts)
        for start in starts:
            if not start.cancelled() and (error := start.result()):
                raise error

    def configure(self, batch_size: int) -> None:
        """Change the batch size of current and future workers."""
        self._starter.spec = replace(self._starter.spec, batch_size=batch_size)
        for process in [*self._serving.values(), *([self.loader] if self.loader else [])]:
            process.send([encode_control(FrameType.CONFIGURE, batch_size)])

    def recycle(self, worker: WorkerProcess, reason: str) -> None:
        """Replace a working worker; the new one is ready before the old one is retired."""
        self._carry_out(self._machine.recycle(worker.id, reason))

    def tick(self) -> None:
        """Reconcile the wanted and the actual workers; called periodically."""
        present = self._starts.keys() | self._started.keys()
        self._carry_out(self._machine.tick(self._clock(), present))

    def batch_begun(self, worker: WorkerProcess) -> None:
        """Record that a worker has been sent a batch."""
        self._machine.batch_begun(worker.id)

    def batch_finished(self, worker: WorkerProcess, requests: int) -> None:
        """Record that a worker has finished its batch; stop it if it has been withdrawn."""
        worker.batches += 1
        worker.requests += requests
        if instructions := self._machine.batch_finished(worker.id):
            self._carry_out(instructions)

    async def stop(self) -> None:
        """Stop all workers and the loader, and wait until they have ended."""
        self._machine.stop()
        if self._timer is not None:
            self._timer.cancel()
        starts = list(self._starts.values())
        for start in starts:
            start.cancel()
        await self._tasks.cancel()
        await asyncio.gather(*starts, return_exceptions=True)
        loader = [self.loader] if self.loader else []
        self._dying.update(self._started.values(), loader)
        # No longer tracked: their exits are ignored.
        self._serving.clear()
        self._started.clear()
        self._starter.loader = None
        await asyncio.gather(*(process.stop() for process in self._dying))
        self._dying.clear()
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)

    def on_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """WorkerEvents: forward a result."""
        self._user.on_worker_result(worker, frame)

    def on_metrics(self, report: Any) -> None:
        """WorkerEvents: forward a service's metrics."""
        self._owner.on_metrics(report)

    def on_alone(self, reason: str) -> None:
        """WorkerEvents: forward the reason for running requests one at a time."""
        self._owner.on_alone(reason)

    def on_exited(self, worker: WorkerProcess) -> None:
        """WorkerEvents: withdraw an ended process, whose last answer may still arrive."""
        if self._serving.get(worker.id) is worker:
            # Otherwise that answer would cause the next batch to be sent to a dead process.
            self._user.on_worker_withdrawn(worker)

    def on_lost(self, worker: WorkerProcess) -> None:
        """WorkerEvents: handle the loss of a worker or the loader."""
        # A process may close its socket and stay alive; it is useless then.
        worker.kill("")
        self._starter.release(worker)
        if self._started.get(worker.id) is worker:
            # At once, before the exit status is known: its requests can run elsewhere.
            self._carry_out(self._machine.lost(worker.id, self._clock()))
        self._dying.add(worker)
        self._tasks.start(self._bury(worker))

    async def _bury(self, worker: WorkerProcess) -> None:
        """Wait for a process to end, and report its exit status."""
        status = await worker.child.wait()
        worker.close()
        self._dying.discard(worker)
        is_ours = self._started.get(worker.id) is worker
        if not worker.is_stopping and (is_ours or (worker.is_loader and worker.ready)):
            logger.error(
                "%s %d %s (%s)",
                "worker" if is_ours else "loader",
                worker.child.pid,
                status,
                worker.kill_reason or "unasked",
                extra={"model": self._starter.spec.model_name},
            )
            if not is_ours:
                self._carry_out(self._machine.loader_ended(self._clock()))
        if is_ours:
            del self._started[worker.id]
            reason = _restart_reason(worker, status.signal)
            message = worker.kill_reason or str(status)
            self._carry_out(self._machine.ended(worker.id, self._clock(), reason, message))

    def _carry_out(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Spawn(id_):
                    self._starts[id_] = asyncio.create_task(self._start_worker(id_))
                case Serve(id_):
                    worker = self._serving[id_] = self._started[id_]
                    if worker.ready:
                        self._owner.on_worker_ready(worker.ready)
                    self._user.on_worker_ready(worker)
                case Withdraw(id_):
                    self._user.on_worker_withdrawn(self._serving[id_])
                case Lost(id_):
                    if lost := self._serving.pop(id_, None):
                        self._user.on_worker_lost(lost, lost.kill_reason or "it exited")
                        self._owner.on_worker_lost()
                case Stop(id_):
                    self._serving.pop(id_, None)
                    if process := self._started.get(id_):
                        self._tasks.start(self._stop_worker(process))
                case CountRestart(reason):
                    self._owner.on_restart(reason)
                case StartLoader():
                    self._tasks.start(self._start_loader())
                case Loaded():
                    self._finish_loading(None)
                case GiveUp(error):
                    self._finish_loading(error)
        self._set_timer()

    async def _start_worker(self, id_: int) -> MMSError | None:
        """Start one worker and report it; return the error if it could not be started."""
        try:
            worker = await self._starter.start(id_)
        except MMSError as error:
            failure = error
        except Exception as error:
            # A bug, or an unforeseen system error: the slot must not be left waiting for ever.
            logger.exception("a worker could not be started")
            failure = ModelLoadFailed(f"a worker process could not be started: {error}")
        else:
            del self._starts[id_]
            self._started[id_] = worker
            self._carry_out(self._machine.started(id_, self._clock()))
            return None
        del self._starts[id_]
        if self.phase is not Phase.LOADING:
            logger.error(
                "a worker could not be started: %s",
                failure,
                extra={"model": self._starter.spec.model_name},
            )
        self._carry_out(self._machine.start_failed(id_, failure, self._clock()))
        return failure

    async def _start_loader(self) -> None:
        try:
            await self._starter.ensure_loader()
        except MMSError as error:
            logger.error(
                "the loader could not be restarted: %s",
                error,
                extra={"model": self._starter.spec.model_name},
            )
            self._carry_out(self._machine.loader_failed(self._clock()))
        else:
            self._machine.loader_started()

    async def _stop_worker(self, worker: WorkerProcess) -> None:
        await worker.stop()

    def _finish_loading(self, error: MMSError | None) -> None:
        if self._loaded is not None and not self._loaded.done():
            if error is None:
                self._loaded.set_result(None)
            else:
                self._loaded.set_exception(error)
        elif error is not None:
            logger.critical("giving up: %s", error, extra={"model": self._starter.spec.model_name})
            self._owner.on_failed(error)

    def _set_timer(self) -> None:
        at = self._machine.wake_at()
        if at == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at < math.inf:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(at - self._clock(), 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        self._carry_out(self._machine.tick(self._clock()))


def _restart_reason(worker: WorkerProcess, signal_number: int | None) -> str:
    """Return the reason for a worker's replacement, as a metric label from a small fixed set."""
    if worker.kill_reason:
        return worker.kill_reason if worker.kill_reason in _KILL_REASONS else "protocol"
    return "killed" if signal_number == 9 else "crash"
