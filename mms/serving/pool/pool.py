"""The workers of one servable: started, watched, replaced and stopped.

`Machine` decides, `Starter` starts; the pool carries out what the one says with the processes that
the other gives, and reports what becomes of them. What they run is the business of
its `WorkerUser`.
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

#: Unique over all pools: a servable may get a new pool while workers of the old one still end.
_ids = itertools.count(1)
#: Reasons of ours to kill a worker that are labels of a metric.
_KILL_REASONS = ("timeout", "cancelled")


class WorkerUser(Protocol):
    """Who gives the workers of a pool their batches."""

    def on_worker_ready(self, worker: WorkerProcess) -> None:
        """A worker can take its first batch."""

    def on_worker_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """A worker finished its batch."""

    def on_worker_withdrawn(self, worker: WorkerProcess) -> None:
        """A worker takes no further batch; the one it has may still be finished."""

    def on_worker_lost(self, worker: WorkerProcess, reason: str) -> None:
        """A worker is gone; whatever it ran will not come."""


class PoolOwner(Protocol):
    """What the owner of a pool hears."""

    def on_worker_ready(self, ready: Ready) -> None:
        """A worker has loaded the model."""

    def on_worker_lost(self) -> None:
        """A worker is gone."""

    def on_metrics(self, report: Any) -> None:
        """The service has reported metrics."""

    def on_alone(self, reason: str) -> None:
        """Workers run their requests one at a time from now on."""

    def on_restart(self, reason: str) -> None:
        """A worker that should live is being replaced."""

    def on_failed(self, error: MMSError) -> None:
        """The pool has given up: workers die or do not load."""


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
        # By the number that the machine gave them: those that serve, and all that have started and
        # not been seen to end.
        self._serving: dict[int, WorkerProcess] = {}
        self._started: dict[int, WorkerProcess] = {}
        self._starts: dict[int, asyncio.Task[MMSError | None]] = {}
        # Lost, but their ends not seen yet.
        self._dying: set[WorkerProcess] = set()
        self._tasks = Tasks()
        self._loaded: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers alive now."""
        return list(self._serving.values())

    def worker(self, id_: int) -> WorkerProcess:
        """Return a worker alive by its id.

        Raises:
            KeyError: It is not alive.
        """
        return self._serving[id_]

    @property
    def loader(self) -> WorkerProcess | None:
        """The process that workers are forked from, if there is one."""
        return self._starter.loader

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return self._machine.target

    @property
    def starting(self) -> int:
        """Workers on their way, those in back-off and those whose end is awaited included."""
        return self._machine.starting

    @property
    def phase(self) -> Phase:
        """What the pool as a whole is doing."""
        return self._machine.phase

    def states(self) -> Counter[WorkerState]:
        """Return how many workers are in which state, those on their way out included."""
        return self._machine.states()

    def state(self, worker: WorkerProcess) -> WorkerState | None:
        """Return what a worker is doing, None if it is none of this pool (any more)."""
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
        """Start or retire workers until there are so many, and wait for the new ones.

        Raises:
            MMSError: A new one could not be started; it is tried again, and those that could stay.
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
        """Change how many requests workers join, those to come included."""
        self._starter.spec = replace(self._starter.spec, batch_size=batch_size)
        for process in [*self._serving.values(), *([self.loader] if self.loader else [])]:
            process.send([encode_control(FrameType.CONFIGURE, batch_size)])

    def recycle(self, worker: WorkerProcess, reason: str) -> None:
        """Replace a worker that works; the new one is ready before the old one is retired."""
        self._carry_out(self._machine.recycle(worker.id, reason))

    def tick(self) -> None:
        """Bring what should be and what is into agreement; called now and then."""
        present = self._starts.keys() | self._started.keys()
        self._carry_out(self._machine.tick(self._clock(), present))

    def batch_begun(self, worker: WorkerProcess) -> None:
        """Record that a worker is sent a batch."""
        self._machine.batch_begun(worker.id)

    def batch_finished(self, worker: WorkerProcess, requests: int) -> None:
        """Record that a worker has answered its batch; stop it if it was waited for."""
        worker.batches += 1
        worker.requests += requests
        if instructions := self._machine.batch_finished(worker.id):
            self._carry_out(instructions)

    async def stop(self) -> None:
        """Stop all workers and the loader, and wait for their ends."""
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
        # Not ours any more: their ends are nobody's business.
        self._serving.clear()
        self._started.clear()
        self._starter.loader = None
        await asyncio.gather(*(process.stop() for process in self._dying))
        self._dying.clear()
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(None)

    def on_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """WorkerEvents: pass a result on."""
        self._user.on_worker_result(worker, frame)

    def on_metrics(self, report: Any) -> None:
        """WorkerEvents: pass what a service has reported on."""
        self._owner.on_metrics(report)

    def on_alone(self, reason: str) -> None:
        """WorkerEvents: pass on why requests run one at a time."""
        self._owner.on_alone(reason)

    def on_exited(self, worker: WorkerProcess) -> None:
        """WorkerEvents: a process has ended, but its last answer may be on its way."""
        if self._serving.get(worker.id) is worker:
            # Or that answer would bring the next batch to a dead process.
            self._user.on_worker_withdrawn(worker)

    def on_lost(self, worker: WorkerProcess) -> None:
        """WorkerEvents: a worker or the loader is gone, or useless."""
        # A process may close its socket and live on; it is of no use then.
        worker.kill("")
        self._starter.release(worker)
        if self._started.get(worker.id) is worker:
            # At once, before the exit status is known: its requests can run elsewhere.
            self._carry_out(self._machine.lost(worker.id, self._clock()))
        self._dying.add(worker)
        self._tasks.start(self._bury(worker))

    async def _bury(self, worker: WorkerProcess) -> None:
        """Learn how a process ended, and report it."""
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
        """Start one worker and report it; return why it could not be."""
        try:
            worker = await self._starter.start(id_)
        except MMSError as error:
            failure = error
        except Exception as error:
            # A bug of ours, or an error of the system that nobody foresaw: its slot must not be
            # left waiting for ever.
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
                "the loader could not be started again: %s",
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
    """Return the metric label for why a worker is replaced: a small fixed set."""
    if worker.kill_reason:
        return worker.kill_reason if worker.kill_reason in _KILL_REASONS else "protocol"
    return "killed" if signal_number == 9 else "crash"
