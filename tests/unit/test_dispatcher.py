"""The queue of one servable: by example, and as a state machine with a clock of its own."""

from __future__ import annotations

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mms.errors import DeadlineExceeded, Draining, QueueFull, WorkerDied
from mms.serving.queue.dispatcher import (
    LARGE_BODY_BYTES,
    MAX_FRAME_BYTES,
    MAX_FRAME_REQUESTS,
    Batch,
    Dispatcher,
    Limits,
    Release,
)
from mms.serving.queue.linger import Linger
from mms.serving.queue.poison import CULPRIT_DEATHS, MAX_HASHED_BYTES, REMEMBERED_S
from tests.unit.jobs import FakeJob


def queue_of(count: int, limits: Limits | None = None) -> tuple[Dispatcher[FakeJob], list[FakeJob]]:
    dispatcher = Dispatcher[FakeJob](limits or Limits())
    jobs = [FakeJob() for _ in range(count)]
    for job in jobs:
        dispatcher.submit(job)
    return dispatcher, jobs


def jobs_of(batch: Batch[FakeJob]) -> list[FakeJob]:
    jobs = [job for job in batch.jobs if isinstance(job, FakeJob)]
    assert len(jobs) == len(batch.jobs)
    return jobs


def test_a_batch_is_what_waits_when_a_worker_is_free() -> None:
    dispatcher, jobs = queue_of(3, Limits(batch_size=8))
    dispatcher.worker_ready(1)
    [batch] = dispatcher.dispatch(1.0)
    assert (batch.jobs, batch.worker, batch.release) == (jobs, 1, Release.DRAINED)
    assert (dispatcher.depth, dispatcher.in_flight) == (0, 3)


def test_a_batch_never_exceeds_its_size() -> None:
    dispatcher, _ = queue_of(10, Limits(batch_size=4))
    dispatcher.worker_ready(1)
    [batch] = dispatcher.dispatch(0.0)
    assert (len(batch.jobs), batch.release) == (4, Release.FULL)


def test_nobody_runs_without_a_worker() -> None:
    dispatcher, _ = queue_of(2)
    assert dispatcher.dispatch(0.0) == []
    assert dispatcher.depth == 2


def test_idle_workers_share_what_waits() -> None:
    dispatcher, _ = queue_of(6, Limits(batch_size=8))
    for worker in (1, 2, 3):
        dispatcher.worker_ready(worker)
    assert [len(batch.jobs) for batch in dispatcher.dispatch(0.0)] == [2, 2, 2]


def test_requests_run_in_the_order_they_came() -> None:
    dispatcher, jobs = queue_of(3)
    dispatcher.worker_ready(1)
    ran = []
    for _ in jobs:
        [batch] = dispatcher.dispatch(0.0)
        ran += batch.jobs
        dispatcher.finish(1, 0.0, busy_s=1.0)
    assert ran == jobs


def test_a_frame_of_a_fast_model_carries_many_requests() -> None:
    dispatcher, _ = queue_of(1)
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.finish(1, 0.0, busy_s=1e-6)
    for _ in range(99):
        dispatcher.submit(FakeJob())
    [batch] = dispatcher.dispatch(0.0)
    assert len(batch.jobs) == MAX_FRAME_REQUESTS


def test_a_frame_of_a_slow_model_carries_one_batch() -> None:
    dispatcher, _ = queue_of(1)
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.finish(1, 0.1, busy_s=0.1)
    for _ in range(9):
        dispatcher.submit(FakeJob())
    [batch] = dispatcher.dispatch(0.1)
    assert len(batch.jobs) == 1


def test_a_frame_stays_below_its_bytes_unless_one_body_alone_exceeds_them() -> None:
    dispatcher = Dispatcher[FakeJob](Limits(batch_size=8))
    sizes = (MAX_FRAME_BYTES // 2, MAX_FRAME_BYTES // 2, 1, MAX_FRAME_BYTES * 2)
    for size in sizes:
        dispatcher.submit(FakeJob(size=size))
    sent = []
    dispatcher.worker_ready(1)
    while dispatcher.depth:
        [batch] = dispatcher.dispatch(0.0)
        sent.append([job.size for job in batch.jobs])
        dispatcher.finish(1, 0.0, busy_s=1.0)
    assert sent == [[sizes[0], sizes[1]], [1], [sizes[3]]]


def test_large_bodies_go_last_in_their_frame() -> None:
    dispatcher = Dispatcher[FakeJob](Limits(batch_size=8))
    for size in (LARGE_BODY_BYTES, 1, LARGE_BODY_BYTES + 1, 2):
        dispatcher.submit(FakeJob(size=size))
    dispatcher.worker_ready(1)
    [batch] = dispatcher.dispatch(0.0)
    assert [job.size for job in batch.jobs] == [1, 2, LARGE_BODY_BYTES, LARGE_BODY_BYTES + 1]


def test_a_full_queue_names_its_setting_and_says_when_to_come_back() -> None:
    dispatcher, _ = queue_of(2, Limits(queue_size=2))
    with pytest.raises(QueueFull, match=r"2 requests are waiting.*queue_size") as caught:
        dispatcher.submit(FakeJob())
    assert caught.value.retry_after_s >= 1.0
    assert dispatcher.depth == 2


def test_retry_after_follows_the_measured_rate() -> None:
    dispatcher, _ = queue_of(100)
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.finish(1, 10.0, busy_s=10.0)
    slow = dispatcher.retry_after_s()
    for _ in range(20):
        dispatcher.dispatch(20.0)
        dispatcher.finish(1, 20.01, busy_s=0.01)
    assert slow == 60.0
    assert dispatcher.retry_after_s() < 10.0


def test_cancelled_request_does_not_delay_its_batch() -> None:
    dispatcher, jobs = queue_of(3, Limits(batch_size=8))
    jobs[1].has_left = True
    assert dispatcher.cancel(jobs[1])
    dispatcher.worker_ready(1)
    [batch] = dispatcher.dispatch(0.0)
    assert batch.jobs == [jobs[0], jobs[2]]


def test_a_request_in_a_worker_cannot_be_cancelled_out_of_it() -> None:
    dispatcher, jobs = queue_of(1)
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    assert not dispatcher.cancel(jobs[0])
    assert dispatcher.in_flight == 1


def test_a_request_nobody_waits_for_is_not_run() -> None:
    dispatcher, jobs = queue_of(2)
    jobs[0].has_left = True
    dispatcher.worker_ready(1)
    [batch] = dispatcher.dispatch(0.0)
    assert batch.jobs == [jobs[1]]


def test_a_request_past_its_deadline_is_answered_and_never_run() -> None:
    dispatcher = Dispatcher[FakeJob](Limits())
    job = FakeJob(deadline=1.0)
    dispatcher.submit(job)
    dispatcher.worker_ready(1)
    assert dispatcher.dispatch(1.0) == []
    [error] = job.endings
    assert isinstance(error, DeadlineExceeded)
    assert "waited in the queue past its deadline" in str(error)
    assert dispatcher.is_empty


def test_expiry_answers_waiting_and_running_requests() -> None:
    dispatcher = Dispatcher[FakeJob](Limits())
    running, waiting, patient = FakeJob(deadline=1.0), FakeJob(deadline=2.0), FakeJob(deadline=9.0)
    dispatcher.submit(running)
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.submit(waiting)
    dispatcher.submit(patient)
    assert dispatcher.expire(2.0) == []
    assert isinstance(running.endings[0], DeadlineExceeded)
    assert isinstance(waiting.endings[0], DeadlineExceeded)
    assert patient.endings == []
    assert dispatcher.depth == 1


def test_a_batch_that_runs_too_long_gives_its_worker_away() -> None:
    dispatcher, jobs = queue_of(1, Limits(response_timeout_s=5.0))
    dispatcher.worker_ready(7)
    dispatcher.dispatch(1.0)
    assert dispatcher.expire(5.9) == []
    assert dispatcher.wake_at() == 6.0
    assert dispatcher.expire(6.0) == [7]
    dispatcher.fail_batch(7, DeadlineExceeded("hung"))
    assert str(jobs[0].endings[0]) == "hung"
    assert dispatcher.expire(7.0) == []
    assert dispatcher.worker_lost(7, "killed", 0.0) is not None
    assert dispatcher.is_empty
    assert len(jobs[0].endings) == 1


def test_requests_of_a_dead_worker_run_again_alone_and_only_once() -> None:
    dispatcher, jobs = queue_of(2, Limits(batch_size=8))
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.worker_lost(1, "signal 11", 0.0)
    assert [job.endings for job in jobs] == [[], []]
    for worker, job in zip((2, 3), jobs, strict=True):
        dispatcher.worker_ready(worker)
        [batch] = dispatcher.dispatch(0.0)
        assert (batch.jobs, batch.release) == ([job], Release.RETRY)
        dispatcher.worker_lost(worker, "signal 11", 0.0)
    for job in jobs:
        [error] = job.endings
        assert isinstance(error, WorkerDied)
        assert "signal 11" in str(error)


def test_retries_go_before_what_waits() -> None:
    dispatcher, jobs = queue_of(2)
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.worker_lost(1, "x", 0.0)
    dispatcher.worker_ready(2)
    [batch] = dispatcher.dispatch(0.0)
    assert batch.jobs == [jobs[0]]


def test_without_retries_a_dead_worker_fails_its_requests_at_once() -> None:
    dispatcher, jobs = queue_of(1, Limits(retry_on_crash=False))
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.worker_lost(1, "exit 3", 0.0)
    assert isinstance(jobs[0].endings[0], WorkerDied)
    assert dispatcher.is_empty


def test_an_idle_worker_that_dies_gets_nothing() -> None:
    dispatcher, _ = queue_of(1)
    dispatcher.worker_ready(1)
    assert dispatcher.worker_lost(1, "x", 0.0) is None
    assert dispatcher.dispatch(0.0) == []


def test_a_delay_waits_for_company_until_the_oldest_has_waited_enough() -> None:
    dispatcher, _ = queue_of(1, Limits(batch_size=2, max_batch_delay_s=0.5))
    dispatcher.worker_ready(1)
    assert dispatcher.dispatch(0.4) == []
    assert dispatcher.wake_at() == 0.5
    [batch] = dispatcher.dispatch(0.5)
    assert batch.release is Release.DELAY


def test_a_delay_ends_when_the_batch_is_full() -> None:
    dispatcher, _ = queue_of(2, Limits(batch_size=2, max_batch_delay_s=0.5))
    dispatcher.worker_ready(1)
    [batch] = dispatcher.dispatch(0.0)
    assert (len(batch.jobs), batch.release) == (2, Release.FULL)


class TestLinger:
    def test_a_worker_waits_until_those_it_answered_are_back(self) -> None:
        dispatcher = answered(3)
        dispatcher.submit(FakeJob(1.001))
        assert dispatcher.dispatch(1.001) == []
        dispatcher.submit(FakeJob(1.002))
        assert dispatcher.dispatch(1.002) == []
        assert dispatcher.wake_at() == 1.01
        dispatcher.submit(FakeJob(1.003))
        [batch] = dispatcher.dispatch(1.003)
        assert len(batch.jobs) == 3

    def test_the_wait_ends_when_its_time_is_over(self) -> None:
        dispatcher = answered(3)
        dispatcher.submit(FakeJob(1.001))
        assert dispatcher.dispatch(1.009) == []
        [batch] = dispatcher.dispatch(1.01)
        assert len(batch.jobs) == 1

    def test_a_lone_client_never_waits(self) -> None:
        dispatcher = answered(1)
        dispatcher.submit(FakeJob(1.001))
        assert len(dispatcher.dispatch(1.001)) == 1

    def test_no_more_than_the_idle_worker_can_take_is_waited_for(self) -> None:
        dispatcher = answered(4)
        dispatcher.limits.batch_size = 2
        for _ in range(2):
            dispatcher.submit(FakeJob(1.001))
        assert len(dispatcher.dispatch(1.001)) == 1

    def test_urgent_requests_do_not_wait(self) -> None:
        dispatcher = answered(3)
        dispatcher.submit(FakeJob(1.001, is_urgent=True))
        assert len(dispatcher.dispatch(1.001)) == 1

    def test_where_few_come_back_nobody_waits_until_more_do(self) -> None:
        linger = Linger()
        for second in range(6):
            linger.answered(4, second, window_s=0.1)
            linger.arrived(second + 0.5)
        assert not linger.waits(1, 8, 5.05)
        for second in range(6, 12):
            linger.answered(4, second, window_s=0.1)
            for _ in range(4):
                linger.arrived(second + 0.05)
        linger.answered(4, 12.0, window_s=0.1)
        assert linger.waits(1, 8, 12.05)

    def test_those_of_several_workers_are_expected_together(self) -> None:
        linger = Linger()
        linger.answered(2, 1.0, window_s=0.1)
        linger.answered(3, 1.05, window_s=0.1)
        for _ in range(4):
            linger.arrived(1.06)
        assert linger.waits(4, 16, 1.12)
        linger.arrived(1.13)
        assert not linger.waits(5, 16, 1.13)

    def test_a_model_faster_than_the_wait_is_not_held_up(self) -> None:
        linger = Linger()
        for tick in range(10):
            now = 1.0 + tick / 100
            linger.answered(3, now, window_s=0.1)
            for _ in range(3):
                linger.arrived(now + 0.001)
            assert not linger.waits(3, 32, now + 0.001)


def answered(count: int) -> Dispatcher[FakeJob]:
    """Return a dispatcher with one worker, which has answered so many at once, 1.0 being now."""
    dispatcher, _ = queue_of(count, Limits(batch_size=8, linger_s=0.01))
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    dispatcher.finish(1, 1.0, busy_s=1.0)
    return dispatcher


def test_failing_all_ends_what_waits_and_what_runs_and_retries() -> None:
    dispatcher, jobs = queue_of(3)
    dispatcher.worker_ready(1)
    dispatcher.worker_ready(2)
    dispatcher.dispatch(0.0)
    dispatcher.worker_lost(1, "x", 0.0)
    dispatcher.fail_all(Draining("stopping"))
    assert [str(job.endings[0]) for job in jobs] == ["stopping"] * 3
    assert (dispatcher.depth, dispatcher.in_flight) == (0, 0)
    dispatcher.worker_lost(2, "stopped", 0.0)
    assert dispatcher.is_empty


def test_an_urgent_request_goes_before_those_that_wait() -> None:
    dispatcher, _ = queue_of(2)
    urgent = FakeJob(is_urgent=True)
    dispatcher.submit(urgent)
    dispatcher.worker_ready(1)
    (batch,) = dispatcher.dispatch(0.0)
    assert batch.jobs == [urgent]


def test_a_withdrawn_worker_gets_nothing_after_its_batch() -> None:
    dispatcher, _ = queue_of(2)
    dispatcher.worker_ready(1)
    dispatcher.dispatch(0.0)
    assert not dispatcher.withdraw(1)
    dispatcher.finish(1, 0.0, 1.0)
    assert dispatcher.dispatch(0.0) == []
    dispatcher.worker_ready(2)
    assert dispatcher.withdraw(2)
    assert dispatcher.dispatch(0.0) == []


def test_a_batch_is_forsaken_once_all_its_clients_have_left() -> None:
    dispatcher, jobs = queue_of(2, Limits(batch_size=2))
    dispatcher.worker_ready(7)
    dispatcher.dispatch(0.0)
    jobs[0].has_left = True
    assert dispatcher.worker_of_abandoned_batch(jobs[0]) is None
    jobs[1].has_left = True
    assert dispatcher.worker_of_abandoned_batch(jobs[1]) == 7


def test_an_empty_queue_never_wakes_anybody() -> None:
    assert Dispatcher(Limits()).wake_at() == math.inf


class DispatcherMachine(RuleBasedStateMachine):
    """Anything that can happen to a queue, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jobs: list[FakeJob] = []
        self.idle: set[int] = set()
        self.busy: dict[int, list[FakeJob]] = {}
        self.doomed: set[int] = set()
        self.withdrawn: set[int] = set()
        self.last_worker = 0
        self.culprits: dict[bytes, tuple[int, float]] = {}

    @initialize(
        batch_size=st.integers(1, 6),
        queue_size=st.integers(1, 12),
        delay=st.sampled_from([0.0, 0.3]),
        linger=st.sampled_from([0.0, 0.2]),
        timeout=st.sampled_from([1.0, 4.0]),
        retry=st.booleans(),
    )
    def configure(
        self,
        batch_size: int,
        queue_size: int,
        delay: float,
        linger: float,
        timeout: float,
        retry: bool,
    ) -> None:
        self.limits = Limits(batch_size, queue_size, delay, linger, timeout, retry)
        self.dispatcher = Dispatcher[FakeJob](self.limits)

    @rule(
        timeout=st.sampled_from([0.2, 1.0, 3.0]),
        size=st.sampled_from([0, 10, MAX_FRAME_BYTES]),
        is_urgent=st.booleans(),
        body=st.sampled_from([b"ant", b"anthem", b"bee"]),
    )
    def submit(self, timeout: float, size: int, is_urgent: bool, body: bytes) -> None:
        # The length is the body's own unless the frame is to be full.
        job = FakeJob(self.now, self.now + timeout, size, is_urgent, body + b"%d" % size)
        depth = self.dispatcher.depth
        if depth < self.limits.queue_size and self.is_culprit(job):
            with pytest.raises(WorkerDied, match="it is not run again"):
                self.dispatcher.submit(job)
            return
        if depth < self.limits.queue_size:
            self.dispatcher.submit(job)
            self.jobs.append(job)
            return
        with pytest.raises(QueueFull) as caught:
            self.dispatcher.submit(job)
        assert 1.0 <= caught.value.retry_after_s <= 60.0

    def is_culprit(self, job: FakeJob) -> bool:
        deaths, at = self.culprits.get(job.body, (0, -math.inf))
        return deaths >= CULPRIT_DEATHS and self.now < at + REMEMBERED_S

    @precondition(lambda self: len(self.idle) + len(self.busy) < 4)
    @rule()
    def worker_ready(self) -> None:
        self.last_worker += 1
        self.idle.add(self.last_worker)
        self.dispatcher.worker_ready(self.last_worker)

    @rule()
    def dispatch(self) -> None:
        for batch in self.dispatcher.dispatch(self.now):
            jobs = jobs_of(batch)
            assert jobs
            assert len(jobs) <= max(self.limits.batch_size, MAX_FRAME_REQUESTS)
            self.idle.remove(batch.worker)
            elsewhere = [job for others in self.busy.values() for job in others]
            for job in jobs:
                assert job not in elsewhere
                assert not job.is_abandoned()
                assert job.deadline > self.now
                assert not self.is_culprit(job)
                job.runs += 1
                assert job.runs <= 2
                assert job.runs == 1 or len(jobs) == 1
            self.busy[batch.worker] = jobs

    @precondition(lambda self: self.busy.keys() - self.doomed)
    @rule(data=st.data(), busy_s=st.sampled_from([0.0, 1e-6, 0.01, 1.0]))
    def finish(self, data: st.DataObject, busy_s: float) -> None:
        worker = data.draw(st.sampled_from(sorted(self.busy.keys() - self.doomed)))
        jobs = self.busy.pop(worker)
        batch = self.dispatcher.finish(worker, self.now, busy_s)
        assert jobs_of(batch) == jobs
        for job in jobs:
            job.succeed()
        if worker in self.withdrawn:
            self.withdrawn.remove(worker)
        else:
            self.idle.add(worker)

    @precondition(lambda self: self.busy or self.idle)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.idle | self.busy.keys())))
        is_idle = self.dispatcher.withdraw(worker)
        assert is_idle == (worker in self.idle)
        self.idle.discard(worker)
        if not is_idle:
            self.withdrawn.add(worker)

    @precondition(lambda self: self.busy or self.idle)
    @rule(data=st.data())
    def worker_lost(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.idle | self.busy.keys())))
        self.idle.discard(worker)
        self.withdrawn.discard(worker)
        ran = self.busy.pop(worker, [])
        is_ours = worker in self.doomed
        self.doomed.discard(worker)
        if len(ran) == 1 and not is_ours:
            self.blame(ran[0])
        batch = self.dispatcher.worker_lost(worker, "signal 9", self.now)
        assert (batch is None) == (not ran)

    def blame(self, job: FakeJob) -> None:
        """Count the deaths under a request that was alone, unless it is run once more."""
        deaths = job.deaths + 1
        if deaths < CULPRIT_DEATHS and self.limits.retry_on_crash and not job.is_abandoned():
            return
        if job.size > MAX_HASHED_BYTES:
            return
        earlier, at = self.culprits.get(job.body, (0, -math.inf))
        if self.now >= at + REMEMBERED_S:
            earlier = 0
        self.culprits[job.body] = (earlier + deaths, self.now)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), is_cancelled=st.booleans())
    def client_leaves(self, data: st.DataObject, is_cancelled: bool) -> None:
        job = data.draw(st.sampled_from(self.jobs))
        job.has_left = job.has_left or not job.endings
        if is_cancelled:
            self.dispatcher.cancel(job)

    @rule()
    def expire(self) -> None:
        for worker in self.dispatcher.expire(self.now):
            assert worker in self.busy
            self.dispatcher.fail_batch(worker, DeadlineExceeded("hung"))
            self.doomed.add(worker)
        for job in self.jobs:
            assert job.deadline > self.now or job.is_abandoned()

    @rule(seconds=st.sampled_from([0.01, 0.1, 0.5, 2.0, REMEMBERED_S]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wakes_up(self) -> None:
        self.expire()
        self.dispatch()
        assert self.dispatcher.wake_at() > self.now

    @invariant()
    def each_request_ends_at_most_once(self) -> None:
        assert all(len(job.endings) <= 1 for job in self.jobs)

    @invariant()
    def the_queue_keeps_its_bound(self) -> None:
        if hasattr(self, "dispatcher"):
            retries = sum(job.deaths == 1 and job.runs == 1 for job in self.jobs)
            assert self.dispatcher.depth <= self.limits.queue_size + retries

    @invariant()
    def in_flight_is_what_workers_hold(self) -> None:
        if hasattr(self, "dispatcher"):
            held = sum(len(jobs) for worker, jobs in self.busy.items() if worker not in self.doomed)
            assert self.dispatcher.in_flight == held

    def teardown(self) -> None:
        """Nothing is lost: run everything that is left, and each request has ended."""
        if not hasattr(self, "dispatcher"):
            return
        for worker in sorted(self.doomed):
            self.busy.pop(worker)
            self.dispatcher.worker_lost(worker, "killed", self.now)
        self.doomed.clear()
        for _ in range(len(self.jobs) + 1):
            self.wakes_up()
            for worker in sorted(self.busy.keys() - self.doomed):
                for job in self.busy.pop(worker):
                    job.succeed()
                self.dispatcher.finish(worker, self.now, 0.01)
                if worker not in self.withdrawn:
                    self.idle.add(worker)
                self.withdrawn.discard(worker)
            if not self.idle:
                self.worker_ready()
            self.now = max(self.now, min(self.dispatcher.wake_at(), self.now + 1.0))
        for worker in sorted(self.doomed):
            self.dispatcher.worker_lost(worker, "killed", self.now)
        assert self.dispatcher.is_empty
        assert all(job.is_abandoned() for job in self.jobs)


TestDispatcherMachine = DispatcherMachine.TestCase
TestDispatcherMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
