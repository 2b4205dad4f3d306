"""Nobody is starved in the queue of a servable, whatever the others send."""

from __future__ import annotations

from collections import deque
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.serving.queue.dispatcher import MAX_AHEAD, Dispatcher, Limits, Release
from tests.unit.jobs import FakeJob

WINDOW = MAX_AHEAD + 1

#: What may happen: a request comes (urgent or not), a client leaves, a batch is taken.
EVENTS = st.lists(
    st.sampled_from(["plain", "urgent", "urgent", "urgent", "leaves", "batch"]),
    # Long enough for a window of each kind: short ones say nothing.
    min_size=30,
    max_size=200,
)


@settings(max_examples=200, deadline=None)
@given(events=EVENTS, batch_size=st.integers(1, 8), workers=st.integers(1, 3))
def test_of_any_four_requests_taken_one_is_plain_while_plain_ones_wait_and_one_urgent(
    events: list[str], batch_size: int, workers: int
) -> None:
    dispatcher = Dispatcher[FakeJob](Limits(batch_size=batch_size, queue_size=1000))
    for worker in range(workers):
        dispatcher.worker_ready(worker)
    waiting: list[FakeJob] = []
    taken: list[tuple[bool, bool, bool]] = []
    for event in events:
        if event == "batch":
            for batch in dispatcher.dispatch(0.0):
                for job in batch.jobs:
                    assert isinstance(job, FakeJob)
                    urgent = [other.is_urgent for other in waiting if not other.has_left]
                    taken.append((job.is_urgent, False in urgent, True in urgent))
                    waiting.remove(job)
                dispatcher.finish(batch.worker, 0.0, busy_s=1.0)
        elif event == "leaves":
            for job in waiting[:1]:
                job.has_left = True
        else:
            waiting.append(FakeJob(is_urgent=event == "urgent"))
            dispatcher.submit(waiting[-1])
    for start in range(len(taken) - WINDOW + 1):
        window = taken[start : start + WINDOW]
        kinds = {is_urgent for is_urgent, _, _ in window}
        if all(plain_waits for _, plain_waits, _ in window):
            assert False in kinds, f"no plain request in {window}"
        if all(urgent_waits for _, _, urgent_waits in window):
            assert True in kinds, f"no urgent request in {window}"


@given(st.integers(0, 40), st.integers(1, 40), st.integers(1, 8))
def test_each_kind_is_answered_in_the_order_it_came(
    plain: int, urgent: int, batch_size: int
) -> None:
    dispatcher = Dispatcher[FakeJob](Limits(batch_size=batch_size))
    jobs = [FakeJob(is_urgent=index >= plain) for index in range(plain + urgent)]
    for job in jobs:
        dispatcher.submit(job)
    dispatcher.worker_ready(1)
    ran: list[FakeJob] = []
    while batches := dispatcher.dispatch(0.0):
        ran += [job for job in batches[0].jobs if isinstance(job, FakeJob)]
        dispatcher.finish(1, 0.0, busy_s=1.0)
    for kind in (True, False):
        order = [jobs.index(job) for job in ran if job.is_urgent is kind]
        assert order == sorted(order)
    assert len(ran) == len(jobs)


@pytest.mark.parametrize("batch_size", [1, 4, 7])
def test_a_batch_mixes_urgent_and_plain_requests(batch_size: int) -> None:
    dispatcher = Dispatcher[FakeJob](Limits(batch_size=batch_size))
    for index in range(40):
        dispatcher.submit(FakeJob(is_urgent=index % 2 == 0))
    dispatcher.worker_ready(1)
    ran: list[bool] = []
    while len(ran) < 24:
        (batch,) = dispatcher.dispatch(0.0)
        ran += [job.is_urgent for job in batch.jobs]
        dispatcher.finish(1, 0.0, busy_s=1.0)
    # Exactly one in four: urgent still means sooner.
    assert ran[:24] == [True, True, True, False] * 6


def test_a_lone_urgent_request_goes_first_after_a_long_row_of_plain_ones() -> None:
    dispatcher = Dispatcher[FakeJob](Limits())
    dispatcher.worker_ready(1)
    for _ in range(10):
        dispatcher.submit(FakeJob())
    dispatcher.dispatch(0.0)
    dispatcher.finish(1, 0.0, busy_s=1.0)
    urgent = FakeJob(is_urgent=True)
    dispatcher.submit(urgent)
    (batch,) = dispatcher.dispatch(0.0)
    assert batch.jobs == [urgent]


@pytest.mark.parametrize("is_urgent", [True, False])
def test_of_any_four_batches_one_is_no_retry_while_others_wait(is_urgent: bool) -> None:
    dispatcher = Dispatcher[FakeJob](Limits(batch_size=20))
    for _ in range(20):
        dispatcher.submit(FakeJob())
    dispatcher.worker_ready(0)
    dispatcher.dispatch(0.0)
    dispatcher.worker_lost(0, "signal 11", 0.0)
    dispatcher.limits.batch_size = 1
    for _ in range(20):
        dispatcher.submit(FakeJob(is_urgent=is_urgent))
    worker = 0
    releases: deque[Release] = deque()
    while dispatcher.depth:
        worker += 1
        dispatcher.worker_ready(worker)
        (batch,) = dispatcher.dispatch(0.0)
        releases.append(batch.release)
        # Each retry kills, as a flood of poison would.
        if batch.release is Release.RETRY:
            dispatcher.worker_lost(worker, "signal 11", 0.0)
        else:
            dispatcher.finish(worker, 0.0, busy_s=1.0)
            dispatcher.withdraw(worker)
    ordinary = [index for index, release in enumerate(releases) if release is not Release.RETRY]
    last_retry = max(i for i, release in enumerate(releases) if release is Release.RETRY)
    assert ordinary[0] < WINDOW
    assert all(
        later - earlier <= WINDOW for earlier, later in pairwise(ordinary) if later < last_retry
    )
    assert len(releases) == 40
