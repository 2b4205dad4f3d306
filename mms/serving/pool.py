"""The workers of one servable: started, watched, replaced and stopped.

CPU models are loaded once, in a loader process that never serves, and workers are forked from it
while it is idle: 24 ms and a few MB each instead of a second and the whole model. A GPU model, a
service that started threads, or ``preload: false`` gets fresh processes instead, and so does a
fork that does not report in time.

The pool decides how many and when; what they run is its owner's business (`PoolEvents`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

from mms.errors import DeadlineExceeded, MMSError, ModelLoadFailed, WorkerDied
from mms.protocol import Frame, LoadSpec
from mms.serving.lifecycle import RestartPolicy, WorkerState, backoff_s
from mms.serving.processes import Child, OutputReader, spawn
from mms.serving.worker import WorkerProcess

logger = logging.getLogger("mms.pool")

#: Failed starts in a row of a pool that once worked, before the servable is given up.
_MAX_FAILED_STARTS = 5


class PoolEvents(Protocol):
    """What the owner of a pool hears."""

    def on_worker_ready(self, worker: WorkerProcess) -> None:
        """A worker can take its first batch."""

    def on_worker_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """A worker finished its batch."""

    def on_worker_lost(self, worker: WorkerProcess, reason: str) -> None:
        """A worker is gone; whatever it ran will not come."""

    def on_restart(self, reason: str) -> None:
        """A worker that should live is being replaced."""

    def on_failed(self, error: MMSError) -> None:
        """The pool has given up: workers die or do not load."""


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """How to run the workers.

    Attributes:
        workers: How many.
        gpus: GPUs to place them on in turn; empty is the CPU.
        preload: Whether to fork workers from a loader.
        load_timeout_s: Longest that loading the model may take.
        environment: Of each worker process.
    """

    workers: int
    gpus: tuple[int, ...]
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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._settings = settings
        self._events = events
        self._clock = clock
        self._ids = itertools.count(1)
        self._workers: dict[int, WorkerProcess] = {}
        self._loader: WorkerProcess | None = None
        self._loader_lock = asyncio.Lock()
        self._forks = settings.preload and not settings.gpus
        self._policy = RestartPolicy()
        self._failed_starts = 0
        self._tasks: set[asyncio.Task[None]] = set()
        # Workers forked from a loader print into its pipe, and may outlive it.
        self._outputs: list[OutputReader] = []
        self._gpu_of: dict[int, int] = {}
        self._starting = 0
        self._is_stopping = False

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers alive now."""
        return list(self._workers.values())

    def worker(self, id_: int) -> WorkerProcess:
        """Give a worker alive by its id.

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
        return self._settings.workers

    @property
    def starting(self) -> int:
        """Workers on their way, those in back-off included."""
        return self._starting

    async def start(self) -> None:
        """Start all workers and wait until they are ready.

        Raises:
            MMSError: The model cannot be loaded. Nothing is left running.
        """
        try:
            # The first alone: if the model does not load, one traceback is enough.
            await self._start_worker()
            others = (self._start_worker() for _ in range(1, self.size))
            for result in await asyncio.gather(*others, return_exceptions=True):
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop all workers and the loader, and wait for their ends."""
        self._is_stopping = True
        tasks = [task for task in self._tasks if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        processes = [*self._workers.values(), *([self._loader] if self._loader else [])]
        await asyncio.gather(*(process.stop() for process in processes))
        self._workers.clear()
        self._loader = None
        for output in self._outputs:
            output.close()
        self._outputs.clear()

    def batch_finished(self, worker: WorkerProcess, requests: int) -> None:
        """Take note of a finished batch, so that the worker counts as a working one."""
        worker.batches += 1
        worker.requests += requests
        self._policy.batch_finished()

    def on_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """WorkerEvents: pass a result on."""
        self._events.on_worker_result(worker, frame)

    def on_lost(self, worker: WorkerProcess) -> None:
        """WorkerEvents: the socket of a worker or of the loader closed."""
        # A process may close its socket and live on; it is of no use then.
        worker.kill("")
        if worker is self._loader:
            self._loader = None
        self._gpu_of.pop(worker.id, None)
        serving = self._workers.pop(worker.id, None)
        if serving is not None:
            # At once, before the exit status is known: its requests can run elsewhere.
            self._events.on_worker_lost(worker, worker.kill_reason or "it exited")
        self._run(self._bury(worker, was_serving=serving is not None))

    async def _bury(self, worker: WorkerProcess, was_serving: bool) -> None:
        """Learn how a process ended, say so, and replace it if it should have lived."""
        was_stopping = worker.state is WorkerState.STOPPING
        if worker.state is not WorkerState.DEAD:
            worker.move(WorkerState.DEAD)
        status = await worker.child.wait()
        worker.close()
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
        self._events.on_restart(_restart_reason(worker, status.signal))
        delay = self._policy.worker_died(worker.batches > 0, self._clock() - worker.ready_at)
        if delay is None:
            self._give_up(
                WorkerDied(
                    f"{self._policy.failures} workers in a row died before they finished a "
                    f"batch; the last one {reason}"
                )
            )
            return
        self._run(self._replace(delay))

    async def _replace_loader(self) -> None:
        """Have a loader ready before the next worker needs it; without one, that takes longer."""
        async with self._loader_lock:
            if self._loader is None and self._forks and not self._is_stopping:
                try:
                    self._loader = await self._launch(may_fork=True)
                except MMSError as error:
                    logger.error(
                        "the loader could not be started again: %s",
                        error,
                        extra={"model": self._spec.model_name},
                    )

    async def _replace(self, delay_s: float) -> None:
        """Start a worker after a delay, trying again with growing delays."""
        self._starting += 1
        try:
            while not self._is_stopping:
                await asyncio.sleep(delay_s)
                try:
                    await self._start_worker()
                except MMSError as error:
                    self._failed_starts += 1
                    logger.error(
                        "a worker could not be started: %s",
                        error,
                        extra={"model": self._spec.model_name},
                    )
                    if self._failed_starts >= _MAX_FAILED_STARTS:
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
        if self._is_stopping:
            await worker.stop()
            return
        worker.move(WorkerState.READY)
        self._workers[worker.id] = worker
        self._events.on_worker_ready(worker)

    async def _fork_worker(self) -> WorkerProcess | None:
        """Give a forked worker; None if a fresh process must be used instead."""
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
            try:
                pid, sock = await loader.fork()
                worker = WorkerProcess(next(self._ids), Child(pid), self)
                await worker.connect(sock)
                await worker.await_forked()
            except (DeadlineExceeded, WorkerDied, OSError) as error:
                logger.warning(
                    "a fork failed (%s); starting a fresh process instead",
                    error,
                    extra={"model": self._spec.model_name},
                )
                loader.kill("its fork failed")
                self._loader = None
                return None
            return worker

    async def _launch(self, may_fork: bool) -> WorkerProcess:
        """Start a fresh process and have it load the model.

        Raises:
            MMSError: It did not load, or died, or took too long.
        """
        id_ = next(self._ids)
        gpu = self._emptiest_gpu()
        try:
            child, sock, output = spawn(self._settings.environment, self._spec.model_name)
        except OSError as error:
            raise ModelLoadFailed(
                f"a worker process could not be started: {error.strerror}"
            ) from error
        self._outputs = [*(o for o in self._outputs if o.is_open), output]
        worker = WorkerProcess(id_, child, self)
        if gpu is not None:
            self._gpu_of[id_] = gpu
        try:
            await worker.connect(sock)
            spec = replace(self._spec, gpu=gpu, may_fork=may_fork)
            await worker.load(spec, self._settings.load_timeout_s)
        except WorkerDied as error:
            status = await child.wait()
            worker.close()
            raise ModelLoadFailed(f"the process that loads the model {status}") from error
        except BaseException:
            worker.kill("it did not load")
            await child.wait()
            worker.close()
            raise
        return worker

    def _emptiest_gpu(self) -> int | None:
        """Give the GPU with the fewest of our workers, the first of several; None for the CPU."""
        taken = list(self._gpu_of.values())
        return min(self._settings.gpus, key=taken.count, default=None)

    def _run(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _restart_reason(worker: WorkerProcess, signal_number: int | None) -> str:
    """Give the metric label for why a worker is replaced: a small fixed set."""
    if worker.kill_reason:
        return "timeout" if worker.kill_reason == "timeout" else "protocol"
    return "killed" if signal_number == 9 else "crash"
