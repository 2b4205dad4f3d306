"""Start worker processes: forked from a loader, or fresh.

CPU models are loaded once, in a loader process that never serves, and workers are forked from it
while it is idle: 24 ms and a few MB each instead of a second and the whole model. A GPU model, a
service that started threads, or ``preload: false`` gets fresh processes instead, and so does a
fork that does not report in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from mms.errors import DeadlineExceeded, MMSError, ModelLoadFailed, OutOfMemory, WorkerDied
from mms.serving.pool.child import Child, spawn
from mms.serving.pool.placement import Placement
from mms.serving.pool.worker_process import WorkerEvents, WorkerProcess
from mms.wire.codec import encode_control
from mms.wire.frames import FrameType
from mms.wire.messages import LoadSpec

logger = logging.getLogger("mms.pool")


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """Settings of a pool's workers.

    Attributes:
        workers: Initial number of workers.
        gpus: GPUs to place them on; empty means CPU.
        gpu_memory: Bytes of GPU memory that each needs; 0 means unknown.
        preload: Whether to fork workers from a loader.
        load_timeout_s: Maximum time to load the model.
        environment: Environment of each worker process.
    """

    workers: int
    gpus: tuple[int, ...]
    gpu_memory: int
    preload: bool
    load_timeout_s: float
    environment: Mapping[str, str]


class Starter:
    """Starts the processes of one servable, and keeps the loader from which they are forked.

    Args:
        spec: The model to load.
        settings: Settings of the workers.
        events: Receives the events of the processes.
        placement: Reservations of GPUs by all servables.
        ids: Source of loaders' numbers.
    """

    def __init__(
        self,
        spec: LoadSpec,
        settings: PoolSettings,
        events: WorkerEvents,
        placement: Placement,
        ids: Iterator[int],
    ) -> None:
        self.spec = spec
        self.loader: WorkerProcess | None = None
        self._settings = settings
        self._events = events
        self._placement = placement
        self._ids = ids
        self._forks = settings.preload and not settings.gpus
        self._lock = asyncio.Lock()

    async def start(self, id_: int) -> WorkerProcess:
        """Start a worker that has loaded the model, by a fork if possible.

        Raises:
            MMSError: It failed to load, died, or took too long; its process is gone.
        """
        worker = await self._fork_worker(id_) if self._forks else None
        if worker is None:
            worker = await self._launch(id_, may_fork=False)
        if not worker.is_connected:
            raise WorkerDied("the worker died right after its start")
        return worker

    async def ensure_loader(self) -> None:
        """Start a loader, if there is none, so that the next worker starts faster.

        Raises:
            MMSError: It failed to load, died, or took too long.
        """
        async with self._lock:
            if self._forks and (self.loader is None or not self.loader.is_connected):
                self.loader = await self._launch(next(self._ids), may_fork=True)

    def release(self, worker: WorkerProcess) -> None:
        """Release the resources of a process that has ended."""
        if worker.gpu is not None:
            self._placement.release(worker.gpu, self._settings.gpu_memory)
        if worker is self.loader:
            self.loader = None

    async def _fork_worker(self, id_: int) -> WorkerProcess | None:
        """Return a forked worker; None if a fresh process must be used instead."""
        async with self._lock:
            if self.loader is None:
                process = await self._launch(next(self._ids), may_fork=True)
                assert process.ready is not None  # noqa: S101 - launch waits for it
                if not process.ready.can_fork:
                    logger.info(
                        "the service has threads of its own, so workers cannot be forked; "
                        "each loads the model itself",
                        extra={"model": self.spec.model_name},
                    )
                    self._forks = False
                    process.id, process.is_loader = id_, False
                    return process
                self.loader = process
            loader = self.loader
            fork = asyncio.create_task(self._fork(loader, id_))
            try:
                return await asyncio.shield(fork)
            except asyncio.CancelledError:
                # A fork cannot be undone: on cancellation, the worker's end must be awaited.
                with contextlib.suppress(MMSError, OSError):
                    await (await fork).stop()
                raise
            except (DeadlineExceeded, WorkerDied, OSError) as error:
                logger.warning(
                    "a fork failed (%s); starting a fresh process instead",
                    error,
                    extra={"model": self.spec.model_name},
                )
                loader.kill("its fork failed")
                self.loader = None
                return None

    async def _fork(self, loader: WorkerProcess, id_: int) -> WorkerProcess:
        """Fork a worker from the loader and wait until it is ready; on failure, it is killed.

        Raises:
            MMSError: It could not be forked, died, or took too long.
            OSError: The system refuses another file.
        """
        output = loader.output
        # Held during the fork: the loader may die meanwhile.
        output.acquire()
        try:
            pid, sock = await loader.fork()
            worker = WorkerProcess(id_, Child(pid), output, self._events)
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

    async def _launch(self, id_: int, may_fork: bool) -> WorkerProcess:
        """Start a fresh process and let it load the model.

        Raises:
            MMSError: It failed to load, died, or took too long.
        """
        need = self._settings.gpu_memory
        gpu = self._placement.acquire(gpus, need) if (gpus := self._settings.gpus) else None
        try:
            child, sock, output = spawn(self._environment(gpu), self.spec.model_name)
        except OSError as error:
            if gpu is not None:
                self._placement.release(gpu, need)
            raise ModelLoadFailed(
                f"a worker process could not be started: {error.strerror}"
            ) from error
        worker = WorkerProcess(id_, child, output, self._events)
        worker.gpu, worker.is_loader = gpu, may_fork
        try:
            await worker.connect(sock)
            # The worker sees its own GPU only, as number 0.
            spec = replace(self.spec, gpu=None if gpu is None else 0, may_fork=may_fork)
            await worker.load(spec, self._settings.load_timeout_s)
        except WorkerDied as error:
            status = await child.wait()
            worker.close()
            if status.signal == signal.SIGKILL:
                # Only the kernel's OOM killer kills a process that is loading.
                raise OutOfMemory(f"the process that loads the model {status}") from error
            raise ModelLoadFailed(f"the process that loads the model {status}") from error
        except BaseException as error:
            worker.kill("it did not load")
            await child.wait()
            worker.close()
            if isinstance(error, DeadlineExceeded):
                raise ModelLoadFailed(f"{error}; raise load_timeout if it needs longer") from error
            raise
        if self.spec.batch_size != spec.batch_size:
            # The batch size was changed during the load.
            worker.send([encode_control(FrameType.CONFIGURE, self.spec.batch_size)])
        return worker

    def _environment(self, gpu: int | None) -> Mapping[str, str]:
        """Return a worker's environment, in which it sees its own GPU only."""
        if gpu is None:
            return self._settings.environment
        visible = self._settings.environment.get("CUDA_VISIBLE_DEVICES", "").split(",")
        # GPU numbers are indices into the GPUs visible to the server.
        device = visible[gpu] if gpu < len(visible) and visible[gpu] else str(gpu)
        return {**self._settings.environment, "CUDA_VISIBLE_DEVICES": device}
