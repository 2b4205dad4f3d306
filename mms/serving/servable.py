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
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from mms.archive.reader import Archive
from mms.config import ModelSettings, parse_gpus, usable_cores
from mms.errors import (
    DeadlineExceeded,
    Draining,
    InvalidServiceOutput,
    MMSError,
    ModelNotReady,
    ProtocolError,
    Unavailable,
)
from mms.metrics import ServableMetrics, ServableSnapshot
from mms.protocol import Answer, Buffer, Frame, LoadSpec, decode_result, encode_batch
from mms.serving.dispatcher import Batch, Dispatcher, Limits
from mms.serving.lifecycle import ServableState, WorkerState, move_servable
from mms.serving.pool import Pool, PoolSettings
from mms.serving.worker import WorkerProcess

logger = logging.getLogger("mms.servable")

_QUEUE_PER_WORKER = 100
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Inference:
    """One request from its arrival to its answer; the dispatcher's Job."""

    __slots__ = ("chunks", "deadline", "deaths", "enqueued_at", "future", "meta", "size")

    def __init__(
        self,
        meta: bytes,
        chunks: Sequence[Buffer],
        size: int,
        enqueued_at: float,
        deadline: float,
        future: asyncio.Future[Answer],
    ) -> None:
        self.meta = meta
        self.chunks = chunks
        self.size = size
        self.enqueued_at = enqueued_at
        self.deadline = deadline
        self.deaths = 0
        self.future = future

    def is_abandoned(self) -> bool:
        """Whether nobody waits: the client left, or an error has been answered."""
        return self.future.done()

    def fail(self, error: MMSError) -> None:
        """End it with an error."""
        # The client may have left: its future is then cancelled, and setting it would raise here
        # and leave the rest of the batch waiting for ever.
        if not self.future.done():
            self.future.set_exception(error)

    def succeed(self, answer: Answer) -> None:
        """End it with an answer."""
        if not self.future.done():
            self.future.set_result(answer)


class Servable:
    """Serves one version of one model.

    Args:
        name: Name clients use.
        version: Its version.
        archive: Where it comes from.
        settings: How to serve it, the archive's defaults included.
        max_response_bytes: Longest answer that may be sent.
        make_environment: Gives the environment of a worker with so many compute threads.
    """

    def __init__(
        self,
        name: str,
        version: str,
        archive: Archive,
        settings: ModelSettings,
        max_response_bytes: int,
        make_environment: Callable[[int], Mapping[str, str]],
    ) -> None:
        self.name = name
        self.version = version
        self.archive = archive
        self.settings = settings
        self.state = ServableState.LOADING
        self.last_error: MMSError | None = None
        self.metrics = ServableMetrics(name, version)
        gpus = parse_gpus(settings.gpu)
        workers = settings.workers or (len(gpus) if gpus else usable_cores())
        threads = settings.threads or max(1, usable_cores() // workers)
        self._dispatcher = Dispatcher(
            Limits(
                batch_size=settings.batch_size,
                queue_size=settings.queue_size or _QUEUE_PER_WORKER * workers,
                max_batch_delay_s=settings.max_batch_delay / 1000,
                response_timeout_s=settings.response_timeout,
                retry_on_crash=settings.retry_on_crash,
            )
        )
        self._pool = Pool(
            LoadSpec(
                model_name=name,
                version=version,
                folder=str(archive.folder),
                service_file=settings.service and str(Path(settings.service).resolve()),
                gpu=None,
                batch_size=settings.batch_size,
                max_response_bytes=max_response_bytes,
                log_level=logging.getLogger().getEffectiveLevel(),
                server_pid=os.getpid(),
                may_fork=False,
            ),
            PoolSettings(
                workers=workers,
                gpus=gpus,
                preload=settings.preload,
                load_timeout_s=settings.load_timeout,
                environment=make_environment(threads),
            ),
            self,
        )
        self._is_pump_due = False
        self._empty = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._loop = asyncio.get_running_loop()

    @property
    def workers(self) -> list[WorkerProcess]:
        """The workers alive now."""
        return self._pool.workers

    @property
    def pool(self) -> Pool:
        """The workers and who keeps them."""
        return self._pool

    @property
    def is_ready(self) -> bool:
        """Whether a request sent now would be served: loaded, and a worker alive or on its way.

        A dead worker on its way back does not count against it: requests wait in the queue.
        """
        return self.state is ServableState.READY and bool(self._pool.workers or self._pool.starting)

    async def load(self) -> None:
        """Start the workers and wait until they are ready.

        Raises:
            MMSError: The model does not load; the servable is then FAILED, with nothing left
                running.
        """
        started = time.monotonic()
        try:
            await self._pool.start()
        except MMSError as error:
            self.last_error = error
            self.state = move_servable(self.state, ServableState.FAILED)
            raise
        self.metrics.load_seconds = time.monotonic() - started
        self.state = move_servable(self.state, ServableState.READY)

    async def unload(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Finish what was accepted, then stop the workers.

        Args:
            timeout_s: What the accepted requests get to finish.
            hurry: Ends the waiting when it is set.
        """
        if self.state in (ServableState.DRAINING, ServableState.UNLOADED):
            return
        self.state = move_servable(self.state, ServableState.DRAINING)
        self._note_if_empty()
        await _first_of(self._empty.wait(), hurry.wait(), timeout_s=timeout_s)
        self._dispatcher.fail_all(Draining("the server is stopping"))
        if self._timer:
            self._timer.cancel()
        await self._pool.stop()
        self.state = move_servable(self.state, ServableState.UNLOADED)

    async def infer(
        self, meta: bytes, chunks: Sequence[Buffer], size: int, timeout_s: float | None = None
    ) -> Answer:
        """Give the model's answer to one request.

        Args:
            meta: The encoded RequestMeta.
            chunks: The body as it arrived.
            size: Its length in bytes.
            timeout_s: The client's own limit; the model's ``response_timeout`` bounds it.

        Raises:
            MMSError: Whatever kept the model from answering.
            asyncio.CancelledError: The client left; the request is dropped if it still waits.
        """
        if self.state is not ServableState.READY:
            raise self._unavailable()
        now = time.monotonic()
        limit = self.settings.response_timeout
        timeout = limit if timeout_s is None else min(timeout_s, limit)
        job = Inference(meta, chunks, size, now, now + timeout, self._loop.create_future())
        try:
            self._dispatcher.submit(job)
        except MMSError as error:
            self.metrics.rejected[error.code] += 1
            raise
        self.metrics.request_bytes.observe(size)
        self._schedule_pump()
        if job.deadline < self._timer_at:
            self._set_timer(job.deadline, now)
        try:
            return await job.future
        except asyncio.CancelledError:
            self._dispatcher.cancel(job)
            self._note_if_empty()
            self.metrics.rejected["client_left"] += 1
            raise
        except DeadlineExceeded:
            self.metrics.rejected["deadline"] += 1
            raise

    def retry_after_s(self) -> float:
        """Estimate when a request sent again would be served, seconds."""
        return self._dispatcher.retry_after_s()

    def snapshot(self) -> ServableSnapshot:
        """Give what the metrics show of this moment."""
        workers = Counter(worker.state.value for worker in self._pool.workers)
        workers[WorkerState.STARTING.value] += self._pool.starting
        return ServableSnapshot(
            metrics=self.metrics,
            state=self.state.value,
            states=[state.value for state in ServableState],
            queue_depth=self._dispatcher.depth,
            queue_limit=self._dispatcher.limits.queue_size,
            in_flight=self._dispatcher.in_flight,
            workers={state.value: workers[state.value] for state in WorkerState},
            worker_memory=[
                (worker.child.pid, resident_bytes(worker.child.pid))
                for worker in self._pool.workers
            ],
        )

    def on_worker_ready(self, worker: WorkerProcess) -> None:
        """PoolEvents: take a worker into service."""
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
        if worker.state is not WorkerState.BUSY:
            worker.kill("it sent a result that nobody had asked for")
            return
        worker.move(WorkerState.READY)
        now = time.monotonic()
        batch = self._dispatcher.finish(worker.id, now, sum(result.stage_seconds))
        self._pool.batch_finished(worker, len(batch.jobs))
        self._pump()
        if len(result.answers) != len(batch.jobs):
            self._mismatch(batch, worker, len(result.answers))
            return
        for job, answer in zip(batch.jobs, result.answers, strict=True):
            if isinstance(answer, MMSError):
                job.fail(answer)
            else:
                job.succeed(answer)  # type: ignore[attr-defined]
                self.metrics.response_bytes.observe(len(answer.body))
        for histogram, seconds in zip(
            self.metrics.stages.values(), result.stage_seconds, strict=True
        ):
            histogram.observe(seconds)

    def on_worker_lost(self, worker: WorkerProcess, reason: str) -> None:
        """PoolEvents: put what the worker ran back into the queue."""
        self._dispatcher.worker_lost(worker.id, reason)
        self._schedule_pump()

    def on_restart(self, reason: str) -> None:
        """PoolEvents: count it."""
        self.metrics.restarts[reason] += 1

    def on_failed(self, error: MMSError) -> None:
        """PoolEvents: nobody is left to serve what waits."""
        self.last_error = error
        if self.state is ServableState.READY:
            self.state = move_servable(self.state, ServableState.FAILED)
        if not self._pool.workers:
            self._dispatcher.fail_all(self._unavailable())

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
        if self.settings.max_batch_delay:
            self._set_timer(self._dispatcher.wake_at(), now)

    def _send(self, batch: Batch, now: float) -> None:
        worker = self._pool.worker(batch.worker)
        worker.move(WorkerState.BUSY)
        items = []
        for job in batch.jobs:
            assert isinstance(job, Inference)  # noqa: S101 - nobody else submits
            self.metrics.queue_wait.observe(now - job.enqueued_at)
            ms_left = int((job.deadline - now) * 1000)
            items.append((job.meta, job.chunks, job.size, ms_left))
        self.metrics.batch_size.observe(len(items))
        self.metrics.releases[batch.release.value] += 1
        worker.send(encode_batch(batch.id, items))

    def _mismatch(self, batch: Batch, worker: WorkerProcess, count: int) -> None:
        """Handle answers that cannot be told apart; none of them may reach a client."""
        if batch.jobs:
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


def resident_bytes(pid: int) -> int:
    """Give the resident memory of a process, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0
