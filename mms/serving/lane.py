"""Drive a servable's queue: requests in, batches to workers, answers out.

Connects the pure `Dispatcher` to the processes of a `Pool` and to the event loop. All methods must
be called on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence

from mms.errors import (
    DeadlineExceeded,
    InvalidServiceOutput,
    MMSError,
    ProtocolError,
    WorkerDied,
)
from mms.serving.pool.pool import Pool
from mms.serving.pool.slot import WorkerState
from mms.serving.pool.worker_process import WorkerProcess
from mms.serving.queue.dispatcher import Batch, Dispatcher, Limits
from mms.serving.queue.job import Inference
from mms.telemetry.counters import ServableMetrics
from mms.wire.codec import decode_result, encode_batch
from mms.wire.frames import Buffer, Frame
from mms.wire.messages import Answer

logger = logging.getLogger("mms.lane")


class Lane:
    """Sends requests to the workers of a pool, and returns their answers.

    Args:
        name: Name of the model, for the log.
        limits: Settings of the queue.
        kills_abandoned: Whether a worker is killed when its batch is abandoned.
        metrics: Counters of requests and batches.
        after_batch: Called with a worker that has finished a batch, before it gets the next.
    """

    def __init__(
        self,
        name: str,
        limits: Limits,
        kills_abandoned: bool,
        metrics: ServableMetrics,
        after_batch: Callable[[WorkerProcess], None],
    ) -> None:
        self._limits = limits
        self._kills_abandoned = kills_abandoned
        self._name = name
        self._metrics = metrics
        self._after_batch = after_batch
        self._dispatcher: Dispatcher[Inference] = Dispatcher(limits)
        self._pool: Pool | None = None
        self._is_pump_due = False
        self._drained: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._loop = asyncio.get_running_loop()

    @property
    def limits(self) -> Limits:
        """The current settings of the queue."""
        return self._limits

    @property
    def depth(self) -> int:
        """Number of queued requests."""
        return self._dispatcher.depth

    @property
    def in_flight(self) -> int:
        """Number of requests in workers."""
        return self._dispatcher.in_flight

    @property
    def idle(self) -> int:
        """Number of idle workers."""
        return self._dispatcher.idle

    @property
    def is_empty(self) -> bool:
        """Whether no request is queued or running."""
        return self._dispatcher.is_empty

    def oldest_wait_s(self, now: float) -> float:
        """Return the age of the oldest queued request in seconds, 0 if there is none."""
        return self._dispatcher.oldest_wait_s(now)

    def attach(self, pool: Pool) -> None:
        """Set the pool whose workers run the batches; once, before anything else."""
        self._pool = pool

    def configure(self, limits: Limits, kills_abandoned: bool) -> None:
        """Change the settings of the queue, including for queued requests.

        Args:
            limits: The settings.
            kills_abandoned: Whether a worker is killed when its batch is abandoned.
        """
        self._limits = self._dispatcher.limits = limits
        self._kills_abandoned = kills_abandoned

    async def infer(
        self,
        meta: bytes,
        chunks: Sequence[Buffer],
        size: int,
        timeout_s: float | None,
        is_urgent: bool,
    ) -> Answer:
        """Run one request and return a worker's answer; takes the arguments of `Servable.infer`.

        Raises:
            MMSError: The request failed.
            asyncio.CancelledError: The client left; the request is dropped if it is still queued.
        """
        now = time.monotonic()
        limit = self._limits.response_timeout_s
        timeout = limit if timeout_s is None else min(timeout_s, limit)
        future: asyncio.Future[Answer] = self._loop.create_future()
        job = Inference(meta, chunks, size, now, now + timeout, future, is_urgent)
        self._dispatcher.submit(job)
        self._metrics.request_bytes.observe(size)
        self._schedule_pump()
        if job.deadline < self._timer_at:
            self._set_timer(job.deadline, now)
        try:
            return await future
        except asyncio.CancelledError:
            self._abandon(job)
            raise
        finally:
            # The future refers to an error, the error to this frame, and this frame to the future:
            # such a cycle would keep bodies alive until the next garbage collection.
            del future, job

    async def drain(self) -> None:
        """Wait until no request is queued or running; no more may be added."""
        self._drained = asyncio.Event()
        self._note_if_empty()
        await self._drained.wait()

    def fail_all(self, error: MMSError) -> None:
        """Fail every request, queued or running."""
        self._dispatcher.fail_all(error)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer:
            self._timer.cancel()

    def on_worker_ready(self, worker: WorkerProcess) -> None:
        """WorkerUser: add a worker that is ready."""
        self._dispatcher.worker_ready(worker.id)
        self._schedule_pump()

    def on_worker_result(self, worker: WorkerProcess, frame: Frame) -> None:
        """WorkerUser: deliver a batch's answers, after sending the worker its next batch."""
        try:
            result = decode_result(frame)
        except ProtocolError as error:
            worker.kill(str(error))
            return
        if worker.kill_reason:
            return
        pool = self._workers
        if pool.state(worker) is not WorkerState.BUSY:
            worker.kill("it sent an unsolicited result")
            return
        now = time.monotonic()
        batch = self._dispatcher.finish(worker.id, now, sum(result.stage_seconds))
        if len(result.answers) != len(batch.jobs):
            self._mismatch(batch, worker, len(result.answers))
            return
        pool.batch_finished(worker, len(batch.jobs))
        self._after_batch(worker)
        self._pump()
        for job, answer in zip(batch.jobs, result.answers, strict=True):
            if isinstance(answer, MMSError):
                job.fail(answer)
            else:
                job.succeed(answer)
        metrics = self._metrics
        metrics.response_bytes.observe_all(
            [len(answer.body) for answer in result.answers if isinstance(answer, Answer)]
        )
        for histogram, seconds in zip(metrics.stages.values(), result.stage_seconds, strict=True):
            histogram.observe(seconds)

    def on_worker_lost(self, worker: WorkerProcess, reason: str) -> None:
        """WorkerUser: requeue the requests that the worker was running."""
        self._dispatcher.worker_lost(worker.id, reason, time.monotonic())
        self._schedule_pump()

    def on_worker_withdrawn(self, worker: WorkerProcess) -> None:
        """WorkerUser: send a worker no more batches."""
        self._dispatcher.withdraw(worker.id)

    @property
    def _workers(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("attach a pool first")
        return self._pool

    def _abandon(self, job: Inference) -> None:
        """Free the resources of an abandoned request."""
        # If it is in a worker already, it is not retried: no client waits for it.
        job.chunks = ()
        if not self._dispatcher.cancel(job) and self._kills_abandoned:
            id_ = self._dispatcher.worker_of_abandoned_batch(job)
            if id_ is not None:
                # The server kills the worker: no request is to blame.
                self._dispatcher.fail_batch(id_, WorkerDied("all clients of its batch have left"))
                self._workers.worker(id_).kill("cancelled")
        self._note_if_empty()

    def _note_if_empty(self) -> None:
        """Finish a drain once no request is left."""
        if self._drained is not None and self._dispatcher.is_empty:
            self._drained.set()

    def _schedule_pump(self) -> None:
        """Dispatch at the end of this iteration of the event loop.

        Requests that arrive in the same iteration, on different connections, can share a batch.
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
        if self._limits.max_batch_delay_s or self._limits.linger_s:
            self._set_timer(self._dispatcher.wake_at(), now)

    def _send(self, batch: Batch[Inference], now: float) -> None:
        pool = self._workers
        worker = pool.worker(batch.worker)
        pool.batch_begun(worker)
        items = [
            (job.meta, job.chunks, job.size, int((job.deadline - now) * 1000)) for job in batch.jobs
        ]
        metrics = self._metrics
        metrics.queue_wait.observe_all([now - job.enqueued_at for job in batch.jobs])
        metrics.batch_size.observe(len(items))
        metrics.releases[batch.release.value] += 1
        worker.send(encode_batch(batch.id, items))

    def _mismatch(self, batch: Batch[Inference], worker: WorkerProcess, count: int) -> None:
        """Fail a batch with the wrong number of answers; none of them may reach a client.

        The worker is about to be killed, so it must not get another batch.
        """
        self._dispatcher.withdraw(worker.id)
        error = InvalidServiceOutput(
            f"the worker returned {count} answers to {len(batch.jobs)} requests"
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
        # The loop's timers have a resolution of a millisecond and may fire that much early.
        now = time.monotonic() + 0.001
        limit_s = self._limits.response_timeout_s
        for id_ in self._dispatcher.expire(now):
            self._dispatcher.fail_batch(
                id_,
                DeadlineExceeded(
                    f"the model did not answer within response_timeout ({limit_s:g} s); its worker "
                    "was killed"
                ),
            )
            worker = self._workers.worker(id_)
            logger.error(
                "worker %d hung: no answer within %g s; killing it",
                worker.child.pid,
                limit_s,
                extra={"model": self._name},
            )
            worker.kill("timeout")
        self._pump()
        self._set_timer(self._dispatcher.wake_at(), time.monotonic())
