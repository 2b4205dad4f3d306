"""One loaded version of one model: its queue, its workers, its counters.

Controls its life cycle: loading, scaling, idle unload, recovery, draining. Its `Lane` runs the
requests, its `Pool` manages the workers. All methods must be called on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from mms.archive.reader import Archive
from mms.config.settings import ModelSettings
from mms.errors import (
    Draining,
    MMSError,
    ModelNotReady,
    Unavailable,
)
from mms.serving.lane import Lane
from mms.serving.lifecycle import ServableState, move_servable
from mms.serving.memory import UNKNOWN, Memory
from mms.serving.pool.placement import Placement
from mms.serving.pool.pool import Pool
from mms.serving.pool.slot import WorkerState
from mms.serving.pool.worker_process import WorkerProcess
from mms.serving.provisioning import (
    initial_size,
    load_spec,
    pool_settings,
    queue_limits,
    queue_size,
    threads,
)
from mms.serving.tasks import Tasks, first_of
from mms.serving.upkeep import Autoscaler, Recovery, recycling_reason
from mms.telemetry.counters import ServableMetrics
from mms.telemetry.prometheus import ServableSnapshot
from mms.wire.frames import Buffer
from mms.wire.messages import Answer, Ready, RequestLimits

logger = logging.getLogger("mms.servable")


class Servable:
    """Serves one version of one model.

    Args:
        name: Name clients use.
        version: Its version.
        archive: Its archive.
        settings: Its settings, including the archive's defaults.
        max_response_bytes: Maximum length of a response.
        make_environment: Returns the environment of a worker for a number of compute threads.
        size: Initial number of workers, possibly 0; None means as in the settings.
        placement: Reservations of GPUs by all servables.
        limits: Limits on one request in a worker.
        is_strict: Whether minor mistakes of the service's author keep the model from loading.
        metrics: Counters of the servable that it replaces, to continue them.
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
        metrics: ServableMetrics | None = None,
    ) -> None:
        self.name = name
        self.version = version
        self.archive = archive
        #: Whether its service can read a request's headers and query: 1.x handlers can.
        self.wants_headers = bool(archive.manifest.handler)
        self.settings = settings
        self.state = ServableState.UNLOADED
        self._is_gone = False
        self._was_evicted = False
        self.last_error: MMSError | None = None
        self.last_ready: Ready | None = None
        #: Reason for which workers run requests one at a time despite batch_size.
        self.alone_reason = ""
        self.last_used_at = time.monotonic()
        #: Stamp of its archive's files when they were last checked, to detect changes.
        self.stamp: Any = None
        #: Resident bytes of each worker at the last reading, for the metrics.
        self.worker_memory: list[int] = []
        self.metrics = metrics or ServableMetrics(name, version)
        self._max_response_bytes = max_response_bytes
        self._request_limits = limits or RequestLimits()
        self._is_strict = is_strict
        self._make_environment = make_environment
        self._placement = placement or Placement()
        self._size = initial_size(settings) if size is None else size
        self._queue_limits = queue_limits(self.settings, self._size)
        self.lane, self._pool = self._make_lane_and_pool()
        self._retired: list[Pool] = []
        self._autoscaler = Autoscaler()
        self._recovery = Recovery()
        self._recovering = asyncio.Lock()
        self._loading: asyncio.Task[None] | None = None
        self._tasks = Tasks()

    @property
    def pool(self) -> Pool:
        """The pool of workers."""
        return self._pool

    @property
    def pids(self) -> list[int]:
        """The ids of its processes: the workers and their loader."""
        loader = self._pool.loader
        return [p.child.pid for p in (*self._pool.workers, *([loader] if loader else []))]

    @property
    def limits_memory(self) -> bool:
        """Whether workers are replaced when they hold too much memory."""
        return bool(self.settings.max_worker_memory or self.settings.worker_memory_limit)

    @property
    def size(self) -> int:
        """The requested number of workers; autoscaling may add to it."""
        return self._size

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be served.

        True while a dead worker is being replaced, and for an unloaded model that loads on request:
        requests wait in the queue.
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
            # Requests that arrived meanwhile would wait for ever.
            self.lane.fail_all(self._unavailable())
            raise
        if self.last_error is not None and self.state is ServableState.FAILED:
            # Its workers loaded, but kept dying before the last was ready.
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
            # Requested and automatic recovery may coincide: once is enough.
            if self.state is ServableState.FAILED:
                await self._stop_retired(self._renew_pool())
                await self.load()

    async def sleep(self) -> None:
        """Unload an idle model by stopping its workers; the next request loads it again."""
        if self.state is not ServableState.READY or not self.lane.is_empty:
            return
        self._was_evicted = True
        self.state = move_servable(self.state, ServableState.UNLOADED)
        await self._stop_retired(self._renew_pool())

    async def _stop_retired(self, pool: Pool) -> None:
        """Stop a replaced pool; if that is cancelled, `unload` does it."""
        self._retired.append(pool)
        await pool.stop()
        self._retired.remove(pool)

    def _renew_pool(self) -> Pool:
        """Create a new pool and an empty queue, and return the old pool, which must be stopped."""
        self.lane.fail_all(self._unavailable())
        self.lane.close()
        old = self._pool
        self.lane, self._pool = self._make_lane_and_pool()
        return old

    async def resize(self, size: int) -> None:
        """Change the number of workers, and wait until new ones are ready.

        Raises:
            MMSError: A new worker could not be started.
        """
        self._size = size
        self._queue_limits.queue_size = queue_size(self.settings, self._size)
        if self.state is ServableState.FAILED and size > 0:
            await self.recover()
        elif self.state is ServableState.READY:
            await self._pool.resize(size)

    def configure(self, settings: ModelSettings) -> None:
        """Change the settings of the queue and the batches; those of the workers stay."""
        self.settings = settings
        self._queue_limits = queue_limits(self.settings, self._size)
        self.lane.configure(self._queue_limits, settings.cancel_running == "kill")
        self._pool.configure(settings.batch_size)

    async def unload(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Finish what was accepted, then stop the workers.

        Args:
            timeout_s: Time that accepted requests have to finish.
            hurry: Stops the wait once it is set.
        """
        if self.state is ServableState.DRAINING or self._is_gone:
            return
        self._is_gone = True
        self.state = move_servable(self.state, ServableState.DRAINING)
        await first_of(self.lane.drain(), hurry.wait(), timeout_s=timeout_s)
        self.lane.fail_all(Draining(f"model {self.name!r} is being unloaded"))
        self.lane.close()
        if self._loading:
            self._loading.cancel()
            await asyncio.gather(self._loading, return_exceptions=True)
        await self._tasks.cancel()
        await asyncio.gather(*(pool.stop() for pool in (self._pool, *self._retired)))
        self.state = move_servable(self.state, ServableState.UNLOADED)

    def housekeep(self, now: float, memory: Mapping[int, Memory]) -> None:
        """Perform the periodic work: recovery, recycling, scaling, idle unload.

        Args:
            now: Monotonic time.
            memory: Memory of its workers by process id, if it limits that.
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
        if 0 < self.settings.idle_timeout < idle_s and self.lane.is_empty:
            logger.info("idle for %.0f s; unloading", idle_s, extra={"model": self.name})
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
            oldest_wait_s=self.lane.oldest_wait_s(now),
            idle=self.lane.idle,
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

    def _make_lane_and_pool(self) -> tuple[Lane, Pool]:
        kills = self.settings.cancel_running == "kill"
        lane = Lane(self.name, self._queue_limits, kills, self.metrics, self._after_batch)
        pool = self._make_pool(lane)
        lane.attach(pool)
        return lane, pool

    def _after_batch(self, worker: WorkerProcess) -> None:
        if self.settings.max_requests:
            # By number of requests only: `housekeep` checks the memory.
            self._recycle_if_due(worker, time.monotonic(), UNKNOWN)

    def _make_pool(self, lane: Lane) -> Pool:
        settings = self.settings
        spec = load_spec(
            self.name,
            self.version,
            self.archive,
            settings,
            self._max_response_bytes,
            self._request_limits,
            self._is_strict,
        )
        environment = self._make_environment(threads(settings, self._size))
        wanted = pool_settings(settings, self._size, environment)
        return Pool(spec, wanted, lane, self, self._placement)

    def infer(
        self,
        meta: bytes,
        chunks: Sequence[Buffer],
        size: int,
        timeout_s: float | None = None,
        is_urgent: bool = False,
    ) -> Coroutine[Any, Any, Answer]:
        """Run one request; await the result for the model's answer.

        Args:
            meta: The encoded RequestMeta.
            chunks: The body in chunks, as received.
            size: Its length in bytes.
            timeout_s: The client's own limit in seconds, capped by ``response_timeout``.
            is_urgent: Whether it runs before requests that are not.

        Raises:
            MMSError: The request failed.
            asyncio.CancelledError: The client left; the request is dropped if it is still queued.
        """
        if self.state is not ServableState.READY:
            self._load_or_refuse()
        elif not (self._size or self._pool.size or self._pool.workers):
            raise ModelNotReady(
                f"No worker is available to serve request: {self.name}; scale the model up", 1.0
            )
        self.last_used_at = time.monotonic()
        return self.lane.infer(meta, chunks, size, timeout_s, is_urgent)

    def snapshot(self) -> ServableSnapshot:
        """Return the current gauges for the metrics."""
        workers = self._pool.states()
        return ServableSnapshot(
            metrics=self.metrics,
            state=self.state.value,
            states=[state.value for state in ServableState],
            queue_depth=self.lane.depth,
            queue_limit=self._queue_limits.queue_size,
            in_flight=self.lane.in_flight,
            workers={state.value: workers[state] for state in WorkerState},
            worker_memory=self.worker_memory,
        )

    def on_worker_ready(self, ready: Ready) -> None:
        """PoolOwner: record what a worker reports about its model."""
        self.alone_reason = ready.alone_reason or self.alone_reason
        self.last_ready = ready

    def on_worker_lost(self) -> None:
        """PoolOwner: fail the queued requests if no worker is left."""
        if self.state is ServableState.FAILED and not self._pool.workers:
            # The last worker that was still serving: no other will follow.
            self.lane.fail_all(self._unavailable())

    def on_metrics(self, report: Any) -> None:
        """PoolOwner: record the metrics that the service has reported."""
        self.metrics.reported.take(report)

    def on_alone(self, reason: str) -> None:
        """PoolOwner: run requests one at a time in all workers, as one of them does now."""
        self.alone_reason = reason
        self._pool.configure(1)

    def on_restart(self, reason: str) -> None:
        """PoolOwner: count the restart."""
        self.metrics.restarts[reason] += 1

    def on_failed(self, error: MMSError) -> None:
        """PoolOwner: mark the servable as failed."""
        self.last_error = error
        self._recovery.failed(time.monotonic())
        if self.state in (ServableState.READY, ServableState.LOADING):
            self.state = move_servable(self.state, ServableState.FAILED)
        if not self._pool.workers:
            self.lane.fail_all(self._unavailable())

    def _load_or_refuse(self) -> None:
        """Load an unloaded model for the current request, which then waits in the queue.

        Raises:
            Unavailable: The model cannot be served, or requests do not load it.
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

    def _unavailable(self) -> Unavailable:
        if self.state is ServableState.DRAINING:
            return Draining(f"model {self.name!r} is being unloaded")
        if self.state is ServableState.FAILED:
            return ModelNotReady(
                f"model {self.name!r} has failed: {self.last_error}", retry_after_s=30.0
            )
        return ModelNotReady(f"model {self.name!r} is not loaded yet", retry_after_s=1.0)
