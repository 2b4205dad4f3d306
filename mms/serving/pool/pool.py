"""The workers of one servable: started, watched, replaced and stopped.

CPU models are loaded once, in a loader process that never serves, and workers are forked from it
while it is idle: 24 ms and a few MB each instead of a second and the whole model. A GPU model, a
service that started threads, or ``preload: false`` gets fresh processes instead, and so does a
fork that does not report in time.

The pool decides how many and when; what they run is its owner's business (`PoolEvents`).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mms.errors import DeadlineExceeded, MMSError, ModelLoadFailed, OutOfMemory, WorkerDied
from mms.protocol import Frame, FrameType, LoadSpec, encode_control
from mms.serving.lifecycle import RestartPolicy, WorkerState, backoff_s
from mms.serving.pool.child import Child, spawn
from mms.serving.pool.placement import Placement
from mms.serving.pool.worker_process import WorkerProcess
from mms.serving.tasks import Tasks

logger = logging.getLogger("mms.pool")

#: Unique over all pools: a servable may get a new pool while workers of the old one still end.
_ids = itertools.count(1)
#: Failed starts in a row of a pool that once worked, before the servable is given up.
_MAX_FAILED_STARTS = 5
#: Reasons of ours to kill a worker that are labels of a metric.
_KILL_REASONS = ("timeout", "cancelled")


class PoolEvents(Protocol):
    """What the owner of a pool hears."""

    def on_worker_ready(self, worker: WorkerProcess) -> None:
        """A worker can take its first batch."""

    def on_worker_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """A worker finished its batch."""

    def on_metrics(self, report: Any) -> None:
        """The service has reported metrics."""

    def on_alone(self, reason: str) -> None:
        """Workers run their requests one at a time from now on."""

    def on_worker_lost(self, worker: WorkerProcess, reason: str) -> None:
        """A worker is gone; whatever it ran will not come."""

    def on_restart(self, reason: str) -> None:
        """A worker that should live is being replaced."""

    def withdraw(self, worker: WorkerProcess) -> bool:
        """Send a worker no more batches, and return whether it is idle.

        If it is not, the owner calls `dismiss` when its batch is done.
        """

    def on_failed(self, error: MMSError) -> None:
        """The pool has given up: workers die or do not load."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How to run the workers.

    Attributes:
        workers: How many to begin with.
        gpus: GPUs to place them on; empty is the CPU.
        gpu_memory: Bytes of a GPU that each of them needs; 0 is not stated.
        preload: Whether to fork workers from a loader.
        load_timeout_s: Longest that loading the model may take.
        environment: Of each worker process.
    """

    workers: int
    gpus: tuple[int, ...]
    gpu_memory: int
    preload: bool
    load_timeout_s: float
    environment: Mapping[str, str]


class Pool:
    """Keeps the wanted number of workers of one servable alive."""

    def __init__(
        self,
        spec: LoadSpec,
        settings: PoolSettings,
        events: PoolEvents,
        placement: Placement,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._events = events
        self._placement = placement
        self._clock = clock
        self._size = settings.workers
        self._workers: dict[int, WorkerProcess] = {}
        self._loader: WorkerProcess | None = None
        self._loader_lock = asyncio.Lock()
        self._forks = settings.preload and not settings.gpus
        self._policy = RestartPolicy()
        self._failed_starts = 0
        self._tasks = Tasks()
        self._starting = 0
        # Dismissed or lost, but their ends not seen yet.
        self._dying: set[WorkerProcess] = set()
        self._is_stopping = False

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers alive now."""
        return list(self._workers.values())

    def worker(self, id_: int) -> WorkerProcess:
        """Return a worker alive by its id.

        Raises:
            KeyError: It is not alive.
        """
        return self._workers[id_]

    @property
    def loader(self) -> WorkerProcess | None:
        """The process that workers are forked from, if there is one."""
        return self._loader

    @property
    def size(self) -> int:
        """How many workers there should be."""
        return self._size

    @property
    def starting(self) -> int:
        """Workers on their way, those in back-off and those whose end is awaited included."""
        return self._starting

    async def start(self) -> None:
        """Start all workers and wait until they are ready.

        Raises:
            MMSError: The model cannot be loaded. Nothing is left running.
        """
        try:
            if self._size == 0:
                return
            # The first alone: if the model does not load, one traceback is enough.
            await self._start_worker()
            others = (self._start_worker() for _ in range(1, self._size))
            for result in await asyncio.gather(*others, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await self.stop()
            raise

    async def resize(self, size: int) -> None:
        """Start or retire workers until there are so many, and wait for the new ones.

        Raises:
            MMSError: A new one could not be started; those that could stay.
        """
        self._size = size
        present = [worker for worker in self._workers.values() if not worker.is_retiring]
        missing = size - len(present) - self._starting
        if missing > 0:
            self._starting += missing
            try:
                starts = (self._start_worker() for _ in range(missing))
                for result in await asyncio.gather(*starts, return_exceptions=True):
                    if isinstance(result, BaseException):
                        raise result
            finally:
                self._starting -= missing
        for worker in sorted(present, key=lambda w: w.state is WorkerState.BUSY)[
            : max(-missing, 0)
        ]:
            self.retire(worker)

    def configure(self, batch_size: int) -> None:
        """Change how many requests workers join, those to come included."""
        self._spec = replace(self._spec, batch_size=batch_size)
        for process in [*self._workers.values(), *([self._loader] if self._loader else [])]:
            process.send([encode_control(FrameType.CONFIGURE, batch_size)])

    def retire(self, worker: WorkerProcess) -> None:
        """Stop a worker once it is idle; it is not replaced."""
        worker.is_retiring = worker.is_withdrawn = True
        if self._events.withdraw(worker):
            self.dismiss(worker)

    def dismiss(self, worker: WorkerProcess) -> None:
        """Stop a worker that runs nothing and gets nothing more."""
        if self._workers.pop(worker.id, None):
            self._dying.add(worker)
            self._tasks.start(self._stop_one(worker))

    def recycle(self, worker: WorkerProcess, reason: str) -> None:
        """Replace a worker that works; the new one is ready before the old one is retired."""
        if not worker.is_retiring:
            worker.is_retiring = True
            self._events.on_restart(reason)
            self._tasks.start(self._replace_by_fresh(worker))

    async def _replace_by_fresh(self, worker: WorkerProcess) -> None:
        self._starting += 1
        try:
            await self._start_worker()
        except MMSError as error:
            # Better the old one than none.
            worker.is_retiring = False
            logger.error(
                "no replacement could be started: %s",
                error,
                extra={"model": self._spec.model_name},
            )
            if worker.id not in self._workers:
                # It has died meanwhile, and was not replaced, since this was to do it.
                self._starting += 1
                self._tasks.start(self._replace(backoff_s(1)))
            return
        finally:
            self._starting -= 1
        if worker.id in self._workers:
            self.retire(worker)

    async def _stop_one(self, worker: WorkerProcess) -> None:
        await worker.stop()

    async def stop(self) -> None:
        """Stop all workers and the loader, and wait for their ends."""
        self._is_stopping = True
        await self._tasks.cancel()
        loader = [self._loader] if self._loader else []
        self._dying.update(self._workers.values(), loader)
        # Not ours any more: their ends are nobody's business.
        self._workers.clear()
        self._loader = None
        await asyncio.gather(*(process.stop() for process in self._dying))
        self._dying.clear()

    def batch_finished(self, worker: WorkerProcess, requests: int) -> None:
        """Record a finished batch, so that the worker counts as a working one."""
        worker.batches += 1
        worker.requests += requests
        self._policy.batch_finished()

    def on_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """WorkerEvents: pass a result on."""
        self._events.on_worker_result(worker, frame)

    def on_metrics(self, report: Any) -> None:
        """WorkerEvents: pass what a service has reported on."""
        self._events.on_metrics(report)

    def on_alone(self, reason: str) -> None:
        """WorkerEvents: pass on why requests run one at a time."""
        self._events.on_alone(reason)

    def on_exited(self, worker: WorkerProcess) -> None:
        """WorkerEvents: a process has ended, but its last answer may be on its way."""
        if worker.id in self._workers:
            # Or that answer would bring the next batch to a dead process.
            self._events.withdraw(worker)

    def on_lost(self, worker: WorkerProcess) -> None:
        """WorkerEvents: a worker or the loader is gone, or useless."""
        # A process may close its socket and live on; it is of no use then.
        worker.kill("")
        if worker.gpu is not None:
            self._placement.release(worker.gpu, self._settings.gpu_memory)
        if worker is self._loader:
            self._loader = None
        was_busy = worker.state is WorkerState.BUSY
        serving = self._workers.pop(worker.id, None)
        if serving is not None:
            self._starting += 1
            # At once, before the exit status is known: its requests can run elsewhere.
            self._events.on_worker_lost(worker, worker.kill_reason or "it exited")
        self._dying.add(worker)
        self._tasks.start(self._bury(worker, serving is not None, was_busy))

    async def _bury(self, worker: WorkerProcess, was_serving: bool, was_busy: bool) -> None:
        """Learn how a process ended, say so, and replace it if it should have lived."""
        was_stopping = worker.state is WorkerState.STOPPING
        if worker.state is not WorkerState.DEAD:
            worker.move(WorkerState.DEAD)
        status = await worker.child.wait()
        worker.close()
        self._dying.discard(worker)
        if was_serving:
            # From here on `_replace` counts it, unless nobody follows.
            self._starting -= 1
        if was_stopping or self._is_stopping or worker.ready is None:
            return
        role = "worker" if was_serving else "loader"
        reason = worker.kill_reason or str(status)
        logger.error(
            "%s %d %s (%s)",
            role,
            worker.child.pid,
            status,
            worker.kill_reason or "unasked",
            extra={"model": self._spec.model_name},
        )
        if not was_serving:
            await self._replace_loader()
            return
        if worker.is_retiring:
            # Its replacement is ready or on its way.
            return
        self._events.on_restart(_restart_reason(worker, status.signal))
        now = self._clock()
        delay = self._policy.worker_died(
            now,
            was_busy=was_busy,
            has_served=worker.batches > 0,
            lifetime_s=now - worker.ready_at,
        )
        if delay is None:
            self._give_up(
                WorkerDied(
                    f"{self._policy.failures} workers in a row died while nothing ran in them; "
                    f"the last one {reason}"
                )
            )
            return
        self._starting += 1
        self._tasks.start(self._replace(delay))

    async def _replace_loader(self) -> None:
        """Have a loader ready before the next worker needs it; without one, that takes longer."""
        for failures in range(1, _MAX_FAILED_STARTS + 1):
            async with self._loader_lock:
                if self._loader is not None or not self._forks or self._is_stopping:
                    return
                try:
                    self._loader = await self._launch(may_fork=True)
                    return
                except MMSError as error:
                    logger.error(
                        "the loader could not be started again: %s",
                        error,
                        extra={"model": self._spec.model_name},
                    )
            await asyncio.sleep(backoff_s(failures))

    async def _replace(self, delay_s: float) -> None:
        """Start a worker after a delay, trying again with growing delays; `starting` counts it."""
        try:
            while not self._is_stopping:
                await asyncio.sleep(delay_s)
                if len([w for w in self._workers.values() if not w.is_retiring]) >= self._size:
                    # Scaled down meanwhile.
                    return
                try:
                    await self._start_worker()
                except MMSError as error:
                    self._failed_starts += 1
                    logger.error(
                        "a worker could not be started: %s",
                        error,
                        extra={"model": self._spec.model_name},
                    )
                    # While another worker serves, a shortage of processes, say, must not stop it.
                    if self._failed_starts >= _MAX_FAILED_STARTS and not self._workers:
                        self._give_up(error)
                        return
                    delay_s = backoff_s(self._failed_starts)
                else:
                    self._failed_starts = 0
                    return
        finally:
            self._starting -= 1

    def _give_up(self, error: MMSError) -> None:
        logger.critical("giving up: %s", error, extra={"model": self._spec.model_name})
        self._events.on_failed(error)

    async def _start_worker(self) -> None:
        """Start one worker, by a fork where that is possible, and announce it.

        Raises:
            MMSError: It did not load, or died, or took too long.
        """
        worker = await self._fork_worker() if self._forks else None
        if worker is None:
            worker = await self._launch(may_fork=False)
        kept = [w for w in self._workers.values() if not w.is_retiring]
        if self._is_stopping or len(kept) >= self._size:
            # Scaled down meanwhile.
            await worker.stop()
            return
        if not worker.is_connected:
            raise WorkerDied("the worker died as soon as it had started")
        worker.move(WorkerState.READY)
        self._workers[worker.id] = worker
        self._events.on_worker_ready(worker)

    async def _fork_worker(self) -> WorkerProcess | None:
        """Return a forked worker; None if a fresh process must be used instead."""
        async with self._loader_lock:
            if self._loader is None:
                process = await self._launch(may_fork=True)
                assert process.ready is not None  # noqa: S101 - launch waits for it
                if not process.ready.can_fork:
                    logger.info(
                        "the service has threads of its own, so workers cannot be forked; "
                        "each loads the model itself",
                        extra={"model": self._spec.model_name},
                    )
                    self._forks = False
                    return process
                self._loader = process
            loader = self._loader
            fork = asyncio.create_task(self._fork(loader))
            try:
                return await asyncio.shield(fork)
            except asyncio.CancelledError:
                # A fork cannot be taken back: whoever stops must see the worker's end.
                with contextlib.suppress(MMSError, OSError):
                    await (await fork).stop()
                raise
            except (DeadlineExceeded, WorkerDied, OSError) as error:
                logger.warning(
                    "a fork failed (%s); starting a fresh process instead",
                    error,
                    extra={"model": self._spec.model_name},
                )
                loader.kill("its fork failed")
                self._loader = None
                return None

    async def _fork(self, loader: WorkerProcess) -> WorkerProcess:
        """Return a worker forked from the loader, ready; on failure nothing of it is left.

        Raises:
            MMSError: It could not be forked, died, or took too long.
            OSError: The system refuses another file.
        """
        output = loader.output
        # Held while the fork is under way: the loader may die meanwhile.
        output.acquire()
        try:
            pid, sock = await loader.fork()
            worker = WorkerProcess(next(_ids), Child(pid), output, self)
        finally:
            output.release()
        try:
            await worker.connect(sock)
            await worker.await_forked()
        except BaseException:
            worker.kill("it did not start")
            await worker.child.wait()
            worker.close()
            raise
        return worker

    async def _launch(self, may_fork: bool) -> WorkerProcess:
        """Start a fresh process and have it load the model.

        Raises:
            MMSError: It did not load, or died, or took too long.
        """
        id_, need = next(_ids), self._settings.gpu_memory
        gpu = self._placement.acquire(gpus, need) if (gpus := self._settings.gpus) else None
        try:
            child, sock, output = spawn(self._environment(gpu), self._spec.model_name)
        except OSError as error:
            if gpu is not None:
                self._placement.release(gpu, need)
            raise ModelLoadFailed(
                f"a worker process could not be started: {error.strerror}"
            ) from error
        worker = WorkerProcess(id_, child, output, self)
        worker.gpu = gpu
        try:
            await worker.connect(sock)
            # The worker sees its own GPU only, as number 0.
            spec = replace(self._spec, gpu=None if gpu is None else 0, may_fork=may_fork)
            await worker.load(spec, self._settings.load_timeout_s)
        except WorkerDied as error:
            status = await child.wait()
            worker.close()
            if status.signal == signal.SIGKILL:
                # Nobody else kills a process that loads.
                raise OutOfMemory(f"the process that loads the model {status}") from error
            raise ModelLoadFailed(f"the process that loads the model {status}") from error
        except BaseException as error:
            worker.kill("it did not load")
            await child.wait()
            worker.close()
            if isinstance(error, DeadlineExceeded):
                raise ModelLoadFailed(f"{error}; raise load_timeout if it needs longer") from error
            raise
        if self._spec.batch_size != spec.batch_size:
            # Changed while it was loading.
            worker.send([encode_control(FrameType.CONFIGURE, self._spec.batch_size)])
        return worker

    def _environment(self, gpu: int | None) -> Mapping[str, str]:
        """Return a worker's environment, in which it sees its own GPU only."""
        if gpu is None:
            return self._settings.environment
        visible = self._settings.environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        # Numbers count what the server itself may see.
        device = visible[gpu] if gpu < len(visible) and visible[gpu] else str(gpu)
        return {**self._settings.environment, "CUDA_VISIBLE_DEVICES": device}


def _restart_reason(worker: WorkerProcess, signal_number: int | None) -> str:
    """Return the metric label for why a worker is replaced: a small fixed set."""
    if worker.kill_reason:
        return worker.kill_reason if worker.kill_reason in _KILL_REASONS else "protocol"
    return "killed" if signal_number == 9 else "crash"
