"""A servable's bounded queue, and its scheduling. Pure: events and times in, batches out.

Greedy: the queued requests become the batch of the next free worker, up to the limits, so no
request waits for a batch to fill, unless the model's settings ask for it (`max_batch_delay_s`,
`linger_s`). One batch is in flight per worker; all other requests stay here, where they can still
be cancelled, expire, or go to another worker.

A frame may contain more requests than one forward pass joins: for a model that takes microseconds,
as many as it can run in about a millisecond. Otherwise the cost of frames, not the model, would
limit the throughput.
"""

from __future__ import annotations

import enum
import itertools
import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from mms.errors import DeadlineExceeded, MMSError, QueueFull, WorkerDied
from mms.serving.queue.linger import Linger
from mms.serving.queue.poison import CULPRIT_DEATHS, PoisonTable

#: Target run time of a frame for models faster than this (seconds): long compared to the cost of a
#: frame (about 20 µs on both sides), short compared to anything a client notices.
FRAME_TIME_S = 0.001
MAX_FRAME_REQUESTS = 64
#: Maximum bytes of bodies in one frame: bounds how long a large batch blocks the event loop.
MAX_FRAME_BYTES = 64 << 20
#: Bodies of at least this size go last in a frame, so that small ones do not wait behind them.
LARGE_BODY_BYTES = 256 << 10
#: Maximum number of prioritized requests in a row: of four dequeued requests, at least one is not
#: urgent while any such is queued, and of four batches, at least one is not a retry.
MAX_AHEAD = 3
#: Weight of the newest batch in the running means of service time.
_SMOOTHING = 0.2
_MAX_RETRY_AFTER_S = 60.0


class Job(Protocol):
    """The dispatcher's interface to a request."""

    enqueued_at: float
    deadline: float
    size: int
    deaths: int
    is_urgent: bool

    def is_abandoned(self) -> bool:
        """Return whether no client waits for the answer any more."""

    def fail(self, error: MMSError) -> None:
        """Fail the request with an error, unless it is abandoned."""

    def head(self) -> bytes:
        """Return the first bytes of the body."""

    def digest(self) -> bytes:
        """Return a digest of the body and of everything that affects how it is run."""


J = TypeVar("J", bound=Job)


class Release(enum.Enum):
    """The reason for which a batch was released."""

    FULL = "full"
    DRAINED = "drained"
    DELAY = "delay"
    RETRY = "retry"


@dataclass(slots=True)
class Limits:
    """Settings of one servable's queue; may be changed while it runs.

    Attributes:
        batch_size: Maximum number of requests per forward pass.
        queue_size: Maximum number of queued requests.
        max_batch_delay_s: Maximum time the oldest request waits for a batch to fill.
        linger_s: Time an idle worker waits for just answered clients to send again.
        response_timeout_s: Run time of a batch after which its worker counts as hung.
        retry_on_crash: Whether the requests of a dead worker are retried once, one by one.
    """

    batch_size: int = 1
    queue_size: int = 100
    max_batch_delay_s: float = 0.0
    linger_s: float = 0.0
    response_timeout_s: float = 120.0
    retry_on_crash: bool = True


@dataclass(slots=True)
class Batch(Generic[J]):
    """Requests in flight in one worker.

    Attributes:
        id: Unique within the servable.
        worker: The worker that runs it.
        jobs: Its requests, in the order of the frame; empty once it is doomed.
        sent_at: Monotonic time at which it was sent.
        release: The reason for which it was released.
        is_doomed: Whether its requests have failed and its worker is about to be killed.
    """

    id: int
    worker: int
    jobs: list[J]
    sent_at: float
    release: Release
    is_doomed: bool = False


class Dispatcher(Generic[J]):
    """The queue of one servable and the batches in flight."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._queue: deque[J] = deque()
        self._urgent: deque[J] = deque()
        self._retries: deque[J] = deque()
        self._idle: list[int] = []
        self._withdrawn: set[int] = set()
        self._in_flight: dict[int, Batch[J]] = {}
        self._ids = itertools.count(1)
        self._linger = Linger()
        self._poison = PoisonTable()
        self._urgent_in_a_row = 0
        self._retries_in_a_row = 0
        self._request_time_s = math.inf
        self._drain_rate = 0.0

    @property
    def depth(self) -> int:
        """Number of queued requests."""
        return len(self._queue) + len(self._urgent) + len(self._retries)

    @property
    def idle(self) -> int:
        """Number of idle workers."""
        return len(self._idle)

    @property
    def in_flight(self) -> int:
        """Number of requests in workers."""
        return sum(len(batch.jobs) for batch in self._in_flight.values())

    @property
    def is_empty(self) -> bool:
        """Whether no request is queued or running."""
        return not (self.depth or self._in_flight)

    def submit(self, job: J) -> None:
        """Queue a request.

        Raises:
            QueueFull: The queue is full.
            WorkerDied: The same request has killed workers within the last minute.
        """
        if self.depth >= self.limits.queue_size:
            raise QueueFull(
                f"{self.depth} requests are waiting, the maximum that queue_size allows",
                self.retry_after_s(),
            )
        if self._poison.is_in_use and (refusal := self._poison.refusal(job, job.enqueued_at)):
            raise refusal
        (self._urgent if job.is_urgent else self._queue).append(job)
        if self.limits.linger_s:
            self._linger.arrived(job.enqueued_at)

    def cancel(self, job: J) -> bool:
        """Remove a request from the queue; return False if it is not (or no longer) there."""
        for queue in self._queues():
            try:
                queue.remove(job)
            except ValueError:
                continue
            return True
        return False

    def worker_ready(self, worker: int) -> None:
        """Record that a worker is ready for a batch."""
        self._idle.append(worker)

    def worker_of_abandoned_batch(self, job: J) -> int | None:
        """Return the worker that runs a request if its whole batch is abandoned."""
        for worker, batch in self._in_flight.items():
            if job in batch.jobs:
                return worker if all(other.is_abandoned() for other in batch.jobs) else None
        return None

    def withdraw(self, worker: int) -> bool:
        """Send a worker no more batches, and return whether it is idle and can be stopped."""
        if worker in self._idle:
            self._idle.remove(worker)
            return True
        if worker in self._in_flight:
            self._withdrawn.add(worker)
            return False
        return True

    def oldest_wait_s(self, now: float) -> float:
        """Return the age of the oldest queued request in seconds, 0 if there is none."""
        heads = [queue[0].enqueued_at for queue in self._queues() if queue]
        return now - min(heads) if heads else 0.0

    def dispatch(self, now: float) -> list[Batch[J]]:
        """Return the batches to send now, at most one per worker."""
        batches = []
        while self._idle and self.depth:
            if self._should_hold(now):
                break
            jobs, release = self._take(now)
            if not jobs:
                continue
            # LIFO: the most recently busy worker has warm caches.
            worker = self._idle.pop()
            batch = Batch(next(self._ids), worker, jobs, now, release)
            self._in_flight[worker] = batch
            batches.append(batch)
        return batches

    def finish(self, worker: int, now: float, busy_s: float) -> Batch[J]:
        """Record a worker's result: return its batch, and mark it as idle.

        Args:
            worker: The worker.
            now: Monotonic time.
            busy_s: Seconds that the worker itself spent on the batch.
        """
        batch = self._in_flight.pop(worker)
        if worker in self._withdrawn:
            self._withdrawn.remove(worker)
        else:
            self._idle.append(worker)
        count = len(batch.jobs)
        if count == 0:
            return batch
        if self.limits.linger_s:
            self._linger.answered(count, now, self.limits.linger_s)
        per_request = busy_s / count
        if math.isinf(self._request_time_s):
            self._request_time_s = per_request
        self._request_time_s += _SMOOTHING * (per_request - self._request_time_s)
        rate = count / max(now - batch.sent_at, 1e-6)
        self._drain_rate += _SMOOTHING * (rate - self._drain_rate)
        return batch

    def worker_lost(self, worker: int, reason: str, now: float) -> Batch[J] | None:
        """Remove a dead worker; its requests are queued for a retry, one by one, or failed.

        A request that was alone in its worker and is not retried is recorded as the cause.

        Args:
            worker: The worker.
            reason: How it ended, for the message.
            now: Monotonic time.

        Returns:
            The batch that was in it, if any.
        """
        if worker in self._idle:
            self._idle.remove(worker)
        self._withdrawn.discard(worker)
        batch = self._in_flight.pop(worker, None)
        for job in batch.jobs if batch else ():
            job.deaths += 1
            may_retry = self.limits.retry_on_crash and job.deaths < CULPRIT_DEATHS
            if may_retry and not job.is_abandoned():
                self._retries.append(job)
                continue
            job.fail(WorkerDied(f"the worker died while it ran this request: {reason}"))
            if batch and len(batch.jobs) == 1:
                self._poison.record(job, now)
        return batch

    def fail_batch(self, worker: int, error: MMSError) -> None:
        """Fail the requests of a worker that is about to be killed; its batch stays, empty."""
        batch = self._in_flight.get(worker)
        if batch:
            for job in batch.jobs:
                job.fail(error)
            batch.jobs = []
            batch.is_doomed = True

    def expire(self, now: float) -> list[int]:
        """Fail requests past their deadline; return the workers whose batch runs too long."""
        for queue in self._queues():
            expired = [job for job in queue if job.deadline <= now]
            for job in expired:
                queue.remove(job)
                job.fail(DeadlineExceeded("the request waited in the queue past its deadline"))
        for batch in self._in_flight.values():
            for job in batch.jobs:
                if job.deadline <= now:
                    job.fail(DeadlineExceeded("the model did not answer before the deadline"))
        return [worker for worker, batch in self._in_flight.items() if self._hung_at(batch) <= now]

    def wake_at(self) -> float:
        """Return the next time at which `expire` or `dispatch` has something to do."""
        waiting = [job.deadline for queue in self._queues() for job in queue]
        running = [
            job.deadline
            for batch in self._in_flight.values()
            for job in batch.jobs
            if not job.is_abandoned()
        ]
        hung = [self._hung_at(batch) for batch in self._in_flight.values()]
        filling = []
        delay, linger = self.limits.max_batch_delay_s, self.limits.linger_s
        if self._queue and self._idle and (delay > 0 or linger > 0):
            # The later of the two: the batch waits while either applies.
            ends = self._queue[0].enqueued_at + delay
            filling = [max(ends, self._linger.until) if linger > 0 else ends]
        return min(itertools.chain(waiting, running, hung, filling), default=math.inf)

    def fail_all(self, error: MMSError) -> None:
        """Fail every request, queued or running."""
        for queue in self._queues():
            for job in queue:
                job.fail(error)
            queue.clear()
        for worker in list(self._in_flight):
            self.fail_batch(worker, error)

    def retry_after_s(self) -> float:
        """Estimate when the queue will have room: its length divided by the measured drain rate."""
        workers = max(len(self._in_flight), 1)
        if self._drain_rate <= 0:
            return 1.0
        return min(max(self.depth / (self._drain_rate * workers), 1.0), _MAX_RETRY_AFTER_S)

    def _hung_at(self, batch: Batch[J]) -> float:
        return math.inf if batch.is_doomed else batch.sent_at + self.limits.response_timeout_s

    def _should_hold(self, now: float) -> bool:
        waiting = len(self._queue)
        if self._retries or self._urgent or not waiting:
            return False
        delay, size = self.limits.max_batch_delay_s, self.limits.batch_size
        if delay > 0 and waiting < size and now < self._queue[0].enqueued_at + delay:
            return True
        return self.limits.linger_s > 0 and self._linger.waits(waiting, size * len(self._idle), now)

    def _take(self, now: float) -> tuple[list[J], Release]:
        """Dequeue the next batch; empty if no queued request was worth running."""
        if self._retries and (retry := self._take_retry(now)):
            return [retry], Release.RETRY
        # A share for each idle worker: two half batches are faster than a full one.
        share = math.ceil((len(self._urgent) + len(self._queue)) / len(self._idle))
        limit = min(self._frame_limit(), max(share, 1))
        jobs: list[J] = []
        size = 0
        while len(jobs) < limit and (queue := self._next_queue() if self._urgent else self._queue):
            if jobs and size + queue[0].size > MAX_FRAME_BYTES:
                break
            job = queue.popleft()
            if self._is_wanted(job, now):
                jobs.append(job)
                size += job.size
                if job.is_urgent:
                    self._urgent_in_a_row += 1
                elif self._urgent_in_a_row:
                    self._urgent_in_a_row = 0
        if len(jobs) > 1 and size > LARGE_BODY_BYTES:
            jobs.sort(key=lambda job: job.size >= LARGE_BODY_BYTES)
        return jobs, self._release(len(jobs))

    def _take_retry(self, now: float) -> J | None:
        """Dequeue the next retry if it is its turn."""
        others_wait = bool(self._queue or self._urgent)
        if others_wait and self._retries_in_a_row >= MAX_AHEAD:
            self._retries_in_a_row = 0
            return None
        while self._retries:
            job = self._retries.popleft()
            if self._is_wanted(job, now):
                self._retries_in_a_row = self._retries_in_a_row + 1 if self._retries else 0
                return job
        self._retries_in_a_row = 0
        return None

    def _next_queue(self) -> deque[J]:
        """Return the queue whose turn it is while urgent requests are queued."""
        if self._queue and self._urgent_in_a_row >= MAX_AHEAD:
            return self._queue
        return self._urgent

    def _release(self, count: int) -> Release:
        if count >= self.limits.batch_size:
            return Release.FULL
        return Release.DELAY if self.limits.max_batch_delay_s > 0 else Release.DRAINED

    def _queues(self) -> tuple[deque[J], deque[J], deque[J]]:
        """Return all queues."""
        return self._retries, self._urgent, self._queue

    def _frame_limit(self) -> int:
        affordable = int(FRAME_TIME_S / max(self._request_time_s, 1e-7))
        return max(self.limits.batch_size, min(affordable, MAX_FRAME_REQUESTS))

    def _is_wanted(self, job: J, now: float) -> bool:
        if job.is_abandoned():
            return False
        if job.deadline <= now:
            job.fail(DeadlineExceeded("the request waited in the queue past its deadline"))
            return False
        # Later requests were looked up on arrival.
        if job.enqueued_at <= self._poison.newest_at and (
            refusal := self._poison.refusal(job, now)
        ):
            job.fail(refusal)
            return False
        return True
