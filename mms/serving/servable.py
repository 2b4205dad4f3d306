"""One loaded version of one model: its queue, its workers, its counters.

Ties the pure parts (`Dispatcher`, lifecycle) to the processes (`Pool`) and to the event loop. All
methods belong to the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from mms.archive.reader import Archive
from mms.config.resources import usable_cores
from mms.config.settings import ModelSettings
from mms.errors import (
    DeadlineExceeded,
    Draining,
    InvalidServiceOutput,
    MMSError,
    ModelNotReady,
    ProtocolError,
    Unavailable,
    WorkerDied,
)
from mms.serving.lifecycle import ServableState, move_servable
from mms.serving.memory import UNKNOWN, Memory
from mms.serving.pool.placement import Placement
from mms.serving.pool.pool import Pool
from mms.serving.pool.slot import WorkerState
from mms.serving.pool.starter import PoolSettings
from mms.serving.pool.worker_process import WorkerProcess
from mms.serving.queue.dispatcher import Batch, Dispatcher, Limits
from mms.serving.queue.job import Inference
from mms.serving.tasks import Tasks
from mms.serving.upkeep import Autoscaler, Recovery, recycling_reason
from mms.telemetry.counters import ServableMetrics
from mms.telemetry.prometheus import ServableSnapshot
from mms.wire.codec import decode_result, encode_batch
from mms.wire.frames import Buffer, Frame
from mms.wire.messages import Answer, LoadSpec, Ready, RequestLimits

logger = logging.getLogger("mms.servable")

_QUEUE_PER_WORKER = 100


class Servable:
    """Serves one version of one model.

    Args:
        name: Name clients use.
        version: Its version.
        archive: Where it comes from.
        settings: How to serve it, the archive's defaults included.
        max_response_bytes: Longest answer that may be sent.
        make_environment: Gives the environment of a worker with so many compute threads.
        size: Workers to start with, 0 included; by default what the settings say.
        placement: What is booked of the GPUs, by all servables.
        limits: What one request may cost in a worker.
        is_strict: Whether slips of the service's author keep it from being served.
    """

    def __init__(
        self,
        name: str,
        version: str,
        archive: Archive,
        settings: ModelSettings,
        max_response_bytes: int,
        make_environment: Callable[[int], Mapping[str, str]],
        size: int | None = None,
        placement: Placement | None = None,
        limits: RequestLimits | None = None,
        is_strict: bool = False,
    ) -> None:
        self.name = name
        self.version = version
        self.archive = archive
        #: Whether its service may look at a request's headers and query: 1.x handlers may.
        self.wants_headers = bool(archive.manifest.handler)
        self.settings = settings
        self.state = ServableState.UNLOADED
        self._is_gone = False
        self._was_evicted = False
        self.last_error: MMSError | None = None
        self.last_ready: Ready | None = None
        #: Why workers run requests one at a time, though batch_size says otherwise.
        self.alone_reason = ""
        self.last_used_at = time.monotonic()
        #: The state of its archive's files when they were last looked at, to see changes.
        self.stamp: Any = None
        #: Resident bytes of each worker, as they were read last; for the metrics.
        self.worker_memory: list[int] = []
        self.metrics = ServableMetrics(name, version)
        self._max_response_bytes = max_response_bytes
        self._request_limits = limits or RequestLimits()
        self._is_strict = is_strict
        self._make_environment = make_environment
        self._placement = placement or Placement()
        self._size = self._initial_size() if size is None else size
        self._dispatcher = Dispatcher(self._limits())
        self._pool = self._make_pool()
        self._retired: list[Pool] = []
        self._autoscaler = Autoscaler()
        self._recovery = Recovery()
        self._recovering = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None
        self._is_pump_due = False
        self._empty = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers alive now."""
        return self._pool.workers

    @property
    def pool(self) -> Pool:
        """The workers and who keeps them."""
        return self._pool

    @property
    def pids(self) -> list[int]:
        """The ids of its processes: the workers, and the loader that they are forked from."""
        pids = [worker.child.pid for worker in self.workers]
        if self._pool.loader:
            pids.append(self._pool.loader.child.pid)
        return pids

    @property
    def limits_memory(self) -> bool:
        """Whether workers are replaced when they hold too much memory."""
        return bool(self.settings.max_worker_memory or self.settings.worker_memory_limit)

    @property
    def limits(self) -> Limits:
        """The queue's settings as they are now."""
        return self._dispatcher.limits

    @property
    def size(self) -> int:
        """The number of workers asked for; autoscaling may add to it."""
        return self._size

    @property
    def queue_depth(self) -> int:
        """Requests waiting."""
        return self._dispatcher.depth

    @property
    def in_flight(self) -> int:
        """Requests in workers."""
        return self._dispatcher.in_flight

    @property
    def is_gone(self) -> bool:
        """Whether it was replaced or unregistered: it finishes what it has and accepts no more."""
        return self._is_gone

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be served.

        A dead worker on its way back does not count against it, nor does a model that loads on
        request: requests wait in the queue.
        """
        if self._loads_on_request and self.state in (ServableState.UNLOADED, ServableState.LOADING):
            return True
        return self.state is ServableState.READY and bool(self._pool.workers or self._pool.starting)

    @property
    def _loads_on_request(self) -> bool:
        return self.settings.load == "lazy" or self.settings.idle_timeout > 0 or self._was_evicted

    async def load(self) -> None:
        """Start the workers and wait until they are ready.

        Raises:
            MMSError: The model does not load; the servable is then FAILED, with nothing left
                running.
        """
        started = time.monotonic()
        self.state = move_servable(self.state, ServableState.LOADING)
        try:
            await self._pool.start()
        except MMSError as error:
            self.last_error = error
            self._recovery.failed(time.monotonic())
            if self.state is ServableState.LOADING:
                self.state = move_servable(self.state, ServableState.FAILED)
            # Those who came meanwhile wait for workers that do not come.
            self._dispatcher.fail_all(self._unavailable())
            raise
        if self.last_error is not None and self.state is ServableState.FAILED:
            # Its workers loaded, and died one after the other before the last was ready.
            raise self.last_error
        self._recovery.recovered()
        self.metrics.load_seconds = time.monotonic() - started
        self.last_used_at = time.monotonic()
        if self.state is ServableState.LOADING:
            self.state = move_servable(self.state, ServableState.READY)
            if self._pool.size != self._size:
                # Scaled before it was loaded, or while it was.
                await self._pool.resize(self._size)

    async def recover(self) -> None:
        """Load a FAILED model again.

        Raises:
            MMSError: It still does not load.
        """
        async with self._recovering:
            # By hand and by itself at the same moment: once is enough.
            if self.state is ServableState.FAILED:
                await self._stop_retired(self._renew_pool())
                await self.load()

    async def sleep(self) -> None:
        """Stop the workers of a model that nobody is asking; the next request loads it again."""
        if self.state is not ServableState.READY or not self._dispatcher.is_empty:
            return
        self._was_evicted = True
        self.state = move_servable(self.state, ServableState.UNLOADED)
        await self._stop_retired(self._renew_pool())

    async def _stop_retired(self, pool: Pool) -> None:
        """Stop a pool that has been replaced; if that is cancelled, `unload` does it."""
        self._retired.append(pool)
        await pool.stop()
        self._retired.remove(pool)

    def _renew_pool(self) -> Pool:
        """Begin with a new pool and an empty queue; return the old pool, which is to be stopped."""
        self._dispatcher.fail_all(self._unavailable())
        self._dispatcher = Dispatcher(self._dispatcher.limits)
        old, self._pool = self._pool, self._make_pool()
        return old

    async def resize(self, size: int) -> None:
        """Change the number of workers, and wait for new ones.

        Raises:
            MMSError: A new one could not be started.
        """
        self._size = size
        self._dispatcher.limits.queue_size = self._queue_size()
        if self.state is ServableState.FAILED and size > 0:
            await self.recover()
        elif self.state is ServableState.READY:
            await self._pool.resize(size)

    def configure(self, settings: ModelSettings) -> None:
        """Change the settings of the queue and the batches; those of the workers stay."""
        self.settings = settings
        self._dispatcher.limits = self._limits()
        self._pool.configure(settings.batch_size)

    async def unload(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Finish what was accepted, then stop the workers.

        Args:
            timeout_s: What the accepted requests get to finish.
            hurry: Ends the waiting when it is set.
        """
        if self.state is ServableState.DRAINING or self._is_gone:
            return
        self._is_gone = True
        self.state = move_servable(self.state, ServableState.DRAINING)
        self._note_if_empty()
        await _first_of(self._empty.wait(), hurry.wait(), timeout_s=timeout_s)
        self._dispatcher.fail_all(Draining(f"model {self.name!r} is being unloaded"))
        if self._timer:
            self._timer.cancel()
        if self._loading:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._tasks.cancel()
        await asyncio.gather(*(pool.stop() for pool in (self._pool, *self._retired)))
        self.state = move_servable(self.state, ServableState.UNLOADED)

    def housekeep(self, now: float, memory: Mapping[int, Memory]) -> None:
        """Do what is due now and then: recover, recycle, scale, fall asleep.

        Args:
            now: Monotonic time.
            memory: What its workers hold by their process ids, if it limits that.
        """
        if self.state is ServableState.FAILED and self._recovery.is_due(now):
            self._tasks.start(self._try_recover())
        if self.state is not ServableState.READY:
            return
        self._pool.tick()
        for worker in self._pool.workers:
            self._recycle_if_due(worker, now, memory.get(worker.child.pid, UNKNOWN))
        if self.settings.max_workers > self._size:
            self._autoscale(now)
        idle_s = now - self.last_used_at
        if 0 < self.settings.idle_timeout < idle_s and self._dispatcher.is_empty:
            logger.info("idle for %.0f s; going to sleep", idle_s, extra={"model": self.name})
            self._tasks.start(self.sleep())

    def _recycle_if_due(self, worker: WorkerProcess, now: float, memory: Memory) -> None:
        reason = recycling_reason(
            self.settings,
            age_s=now - worker.ready_at,
            resident_bytes=memory.resident,
            private_bytes=memory.private,
            requests=worker.requests,
            spread=worker.child.pid,
        )
        if reason:
            self._pool.recycle(worker, reason)

    def _autoscale(self, now: float) -> None:
        size = self._pool.size
        target = self._autoscaler.target(
            self.settings,
            now,
            size=size,
            floor=self._size,
            oldest_wait_s=self._dispatcher.oldest_wait_s(now),
            idle=self._dispatcher.idle,
            starting=self._pool.starting,
        )
        if target != size:
            logger.info("scaling to %d workers", target, extra={"model": self.name})
            self._tasks.start(self._try_resize(target))

    async def _try_recover(self) -> None:
        try:
            await self.recover()
        except MMSError as error:
            logger.error("still cannot be loaded: %s", error, extra={"model": self.name})
        else:
            logger.info("has recovered", extra={"model": self.name})

    async def _try_resize(self, size: int) -> None:
        try:
            await self._pool.resize(size)
        except MMSError as error:
            logger.error("cannot scale to %d workers: %s", size, error, extra={"model": self.name})

    def _initial_size(self) -> int:
        return self.settings.workers or len(self.settings.gpu) or usable_cores()

    def _queue_size(self) -> int:
        return self.settings.queue_size or _QUEUE_PER_WORKER * max(
            self._size, self.settings.max_workers, 1
        )

    def _limits(self) -> Limits:
        settings = self.settings
        return Limits(
            batch_size=settings.batch_size,
            queue_size=self._queue_size(),
            max_batch_delay_s=settings.max_batch_delay / 1000,
            linger_s=settings.linger / 1000,
            response_timeout_s=settings.response_timeout,
            retry_on_crash=settings.retry_on_crash,
        )

    def _make_pool(self) -> Pool:
        settings = self.settings
        threads = settings.threads or max(1, usable_cores() // max(self._size, 1))
        return Pool(
            LoadSpec(
                model_name=self.name,
                version=self.version,
                folder=str(self.archive.folder),
                service_file=settings.service and str(Path(settings.service).resolve()),
                handler=self.archive.manifest.handler,
                decode_input_request=settings.decode_input_request,
                gpu=None,
                batch_size=settings.batch_size,
                max_response_bytes=self._max_response_bytes,
                log_level=logging.getLogger().getEffectiveLevel(),
                server_pid=os.getpid(),
                may_fork=False,
                memory_limit=settings.worker_memory_limit,
                limits=self._request_limits,
                is_strict=self._is_strict,
            ),
            PoolSettings(
                workers=self._size,
                gpus=settings.gpu,
                gpu_memory=settings.gpu_memory,
                preload=settings.preload,
                load_timeout_s=settings.load_timeout,
                environment=self._make_environment(threads),
            ),
            self,
            self._placement,
        )

    async def infer(
        self,
        meta: bytes,
        chunks: Sequence[Buffer],
        size: int,
        timeout_s: float | None = None,
        is_urgent: bool = False,
    ) -> Answer:
        """Return the model's answer to one request.

        Args:
            meta: The encoded RequestMeta.
            chunks: The body as it arrived.
            size: Its length in bytes.
            timeout_s: The client's own limit; the model's ``response_timeout`` bounds it.
            is_urgent: Whether it goes before requests that are not.

        Raises:
            MMSError: Whatever kept the model from answering.
            asyncio.CancelledError: The client left; the request is dropped if it still waits.
        """
        if self.state is not ServableState.READY:
            self._wake_or_refuse()
        elif not (self._size or self._pool.size or self._pool.workers):
            raise ModelNotReady(
                f"No worker is available to serve request: {self.name}; scale the model up", 1.0
            )
        now = self.last_used_at = time.monotonic()
        limit = self.settings.response_timeout
        timeout = limit if timeout_s is None else min(timeout_s, limit)
        future: asyncio.Future[Answer] = self._loop.create_future()
        job = Inference(meta, chunks, size, now, now + timeout, future, is_urgent)
        self._dispatcher.submit(job)
        self.metrics.request_bytes.observe(size)
        self._schedule_pump()
        if job.deadline < self._timer_at:
            self._set_timer(job.deadline, now)
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(job)
            raise
        finally:
            # The future refers to an error, that to this frame, and this frame to the future: in
            # such a circle, bodies would stay until the garbage collector comes by.
            del future, job

    def snapshot(self) -> ServableSnapshot:
        """Return what the metrics show of this moment."""
        workers = self._pool.states()
        return ServableSnapshot(
            metrics=self.metrics,
            state=self.state.value,
            states=[state.value for state in ServableState],
            queue_depth=self._dispatcher.depth,
            queue_limit=self._dispatcher.limits.queue_size,
            in_flight=self._dispatcher.in_flight,
            workers={state.value: workers[state] for state in WorkerState},
            worker_memory=self.worker_memory,
        )

    def on_worker_ready(self, worker: WorkerProcess) -> None:
        """PoolEvents: take a worker into service."""
        if worker.ready and worker.ready.alone_reason:
            self.alone_reason = worker.ready.alone_reason
        self.last_ready = worker.ready
        self._dispatcher.worker_ready(worker.id)
        self._schedule_pump()

    def on_worker_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """PoolEvents: hand out a batch's answers, after sending the worker its next batch."""
        try:
            result = decode_result(frame)
        except ProtocolError as error:
            worker.kill(str(error))
            return
        if worker.kill_reason:
            return
        if self._pool.state(worker) is not WorkerState.BUSY:
            worker.kill("it sent a result that nobody had asked for")
            return
        now = time.monotonic()
        batch = self._dispatcher.finish(worker.id, now, sum(result.stage_seconds))
        if len(result.answers) != len(batch.jobs):
            self._mismatch(batch, worker, len(result.answers))
            return
        self._pool.batch_finished(worker, len(batch.jobs))
        if self.settings.max_requests:
            # By its requests: its memory is looked at by `housekeep`.
            self._recycle_if_due(worker, now, UNKNOWN)
        self._pump()
        for job, answer in zip(batch.jobs, result.answers, strict=True):
            if isinstance(answer, MMSError):
                job.fail(answer)
            else:
                job.succeed(answer)  # type: ignore[attr-defined]
        self.metrics.response_bytes.observe_all(
            [len(answer.body) for answer in result.answers if isinstance(answer, Answer)]
        )
        for histogram, seconds in zip(
            self.metrics.stages.values(), result.stage_seconds, strict=True
        ):
            histogram.observe(seconds)

    def on_metrics(self, report: Any) -> None:
        """PoolEvents: keep what the service has reported."""
        self.metrics.reported.take(report)

    def on_alone(self, reason: str) -> None:
        """PoolEvents: run requests one at a time in all workers, as one of them now does."""
        self.alone_reason = reason
        self._pool.configure(1)

    def on_worker_lost(self, worker: WorkerProcess, reason: str) -> None:
        """PoolEvents: put what the worker ran back into the queue."""
        self._dispatcher.worker_lost(worker.id, reason, time.monotonic())
        if self.state is ServableState.FAILED and not self._pool.workers:
            # The last of those that went on serving: nobody comes after it.
            self._dispatcher.fail_all(self._unavailable())
        self._schedule_pump()

    def on_worker_withdrawn(self, worker: WorkerProcess) -> None:
        """PoolEvents: send a worker no more batches."""
        self._dispatcher.withdraw(worker.id)

    def on_restart(self, reason: str) -> None:
        """PoolEvents: count it."""
        self.metrics.restarts[reason] += 1

    def on_failed(self, error: MMSError) -> None:
        """PoolEvents: nobody is left to serve what waits."""
        self.last_error = error
        self._recovery.failed(time.monotonic())
        if self.state in (ServableState.READY, ServableState.LOADING):
            self.state = move_servable(self.state, ServableState.FAILED)
        if not self._pool.workers:
            self._dispatcher.fail_all(self._unavailable())

    def _wake_or_refuse(self) -> None:
        """Load a sleeping model for the request at hand, which then waits in the queue.

        Raises:
            Unavailable: The model cannot be served, or not by this request's doing.
        """
        if self._is_gone or not self._loads_on_request:
            raise self._unavailable()
        if self.state is ServableState.UNLOADED and self._loading is None:
            self._loading = asyncio.create_task(self._load_on_request())
        elif self.state is not ServableState.LOADING and self._loading is None:
            raise self._unavailable()

    async def _load_on_request(self) -> None:
        try:
            await self.load()
        except MMSError as error:
            logger.error("cannot be loaded: %s", error, extra={"model": self.name})
        finally:
            self._loading = None

    def _abandon(self, job: Inference) -> None:
        """Free what a request held whose client has left."""
        # In a worker already, it is not sent again: nobody waits for its answer.
        job.chunks = ()
        if not self._dispatcher.cancel(job) and self.settings.cancel_running == "kill":
            id_ = self._dispatcher.forsaken_worker(job)
            if id_ is not None:
                # Its death is our doing: no request is to blame.
                self._dispatcher.fail_batch(id_, WorkerDied("all clients of its batch have left"))
                self._pool.worker(id_).kill("cancelled")
        self._note_if_empty()

    def _note_if_empty(self) -> None:
        """End a drain once nothing is left to finish."""
        if self.state is ServableState.DRAINING and self._dispatcher.is_empty:
            self._empty.set()

    def _schedule_pump(self) -> None:
        """Dispatch at the end of this turn of the loop.

        Requests that arrived in the same turn, on different connections, so travel together.
        """
        if not self._is_pump_due:
            self._is_pump_due = True
            self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._is_pump_due = False
        now = time.monotonic()
        for batch in self._dispatcher.dispatch(now):
            self._send(batch, now)
        self._note_if_empty()
        if self.settings.max_batch_delay or self.settings.linger:
            self._set_timer(self._dispatcher.wake_at(), now)

    def _send(self, batch: Batch, now: float) -> None:
        worker = self._pool.worker(batch.worker)
        self._pool.batch_begun(worker)
        items = []
        for job in batch.jobs:
            assert isinstance(job, Inference)  # noqa: S101 - nobody else submits
            ms_left = int((job.deadline - now) * 1000)
            items.append((job.meta, job.chunks, job.size, ms_left))
        self.metrics.queue_wait.observe_all([now - job.enqueued_at for job in batch.jobs])
        self.metrics.batch_size.observe(len(items))
        self.metrics.releases[batch.release.value] += 1
        worker.send(encode_batch(batch.id, items))

    def _mismatch(self, batch: Batch, worker: WorkerProcess, count: int) -> None:
        """Handle answers that cannot be told apart; none of them may reach a client.

        The worker is about to be killed: it must not take a next batch with it.
        """
        self._dispatcher.withdraw(worker.id)
        error = InvalidServiceOutput(
            f"the worker gave {count} answers to {len(batch.jobs)} requests"
        )
        for job in batch.jobs:
            job.fail(error)
        worker.kill(str(error))

    def _set_timer(self, at: float, now: float) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._timer_at = at
        if at < math.inf:
            self._timer = self._loop.call_later(max(at - now, 0.0), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._timer_at = math.inf
        # Timers of the loop have a grain of a millisecond and may fire that much early.
        now = time.monotonic() + 0.001
        for id_ in self._dispatcher.expire(now):
            self._dispatcher.fail_batch(
                id_,
                DeadlineExceeded(
                    f"the model did not answer within response_timeout "
                    f"({self.settings.response_timeout:g} s); its worker was killed"
                ),
            )
            worker = self._pool.worker(id_)
            logger.error(
                "worker %d hangs: no answer within %g s; killing it",
                worker.child.pid,
                self.settings.response_timeout,
                extra={"model": self.name},
            )
            worker.kill("timeout")
        self._pump()
        self._set_timer(self._dispatcher.wake_at(), time.monotonic())

    def _unavailable(self) -> Unavailable:
        if self.state is ServableState.DRAINING:
            return Draining(f"model {self.name!r} is being unloaded")
        if self.state is ServableState.FAILED:
            return ModelNotReady(
                f"model {self.name!r} has failed: {self.last_error}", retry_after_s=30.0
            )
        return ModelNotReady(f"model {self.name!r} is not loaded yet", retry_after_s=1.0)


async def _first_of(*waits: Coroutine[Any, Any, Any], timeout_s: float) -> None:
    """Wait for the first of several things, or for a time."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    await asyncio.wait(tasks, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
