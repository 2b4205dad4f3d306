"""Requests known to kill: which are refused, for how long, and what looking them up costs."""

from __future__ import annotations

import asyncio

import pytest

from mms.errors import WorkerDied
from mms.serving.queue.dispatcher import Dispatcher, Limits
from mms.serving.queue.job import Inference
from mms.serving.queue.poison import (
    CULPRIT_DEATHS,
    MAX_HASHED_BYTES,
    MAX_REMEMBERED,
    REMEMBERED_S,
    PoisonTable,
)
from mms.wire.messages import Dialect, RequestMeta
from tests.unit.jobs import FakeJob


class CountingJob(FakeJob):
    """A request that counts how often it is hashed."""

    hashed = 0

    def digest(self) -> bytes:
        type(self).hashed += 1
        return super().digest()


@pytest.fixture(autouse=True)
def nothing_hashed() -> None:
    CountingJob.hashed = 0


def job(body: bytes, deaths: int = CULPRIT_DEATHS) -> CountingJob:
    made = CountingJob(size=len(body), body=body)
    made.deaths = deaths
    return made


def table(*bodies: bytes) -> PoisonTable:
    made = PoisonTable()
    for body in bodies:
        made.record(job(body), 0.0)
    CountingJob.hashed = 0
    return made


def test_a_request_that_killed_is_refused_for_a_minute_and_told_since_when() -> None:
    poison = table(b"kills")
    refusal = poison.refusal(job(b"kills"), 12.0)
    assert isinstance(refusal, WorkerDied)
    assert "this request killed a worker 12 s ago" in str(refusal)
    assert poison.refusal(job(b"kills"), REMEMBERED_S - 0.1)
    assert poison.refusal(job(b"kills"), REMEMBERED_S) is None
    assert len(poison) == 0


def test_another_request_is_not_refused() -> None:
    poison = table(b"kills")
    for body in (b"", b"kill", b"kilns", b"kills!", b"lives"):
        assert poison.refusal(job(body), 1.0) is None


def test_one_death_may_be_chance() -> None:
    poison = PoisonTable()
    poison.record(job(b"unlucky", deaths=1), 0.0)
    assert poison.refusal(job(b"unlucky"), 1.0) is None
    poison.record(job(b"unlucky", deaths=1), 2.0)
    assert poison.refusal(job(b"unlucky"), 3.0)


def test_two_deaths_more_than_a_minute_apart_are_chance() -> None:
    poison = PoisonTable()
    poison.record(job(b"unlucky", deaths=1), 0.0)
    poison.record(job(b"unlucky", deaths=1), REMEMBERED_S)
    assert poison.refusal(job(b"unlucky"), REMEMBERED_S + 1) is None


def test_nothing_is_hashed_before_a_death_or_after_all_are_forgotten() -> None:
    poison = PoisonTable()
    assert poison.refusal(job(b"lives"), 1.0) is None
    poison.record(job(b"kills"), 1.0)
    CountingJob.hashed = 0
    assert poison.refusal(job(b"kills"), 1.0 + REMEMBERED_S) is None
    assert CountingJob.hashed == 0


def test_only_bodies_of_the_same_length_and_beginning_are_hashed() -> None:
    poison = table(b"kills")
    for body in (b"", b"kill", b"kills more", b"other"):
        poison.refusal(job(body), 1.0)
    assert CountingJob.hashed == 0
    poison.refusal(job(b"kilns"), 1.0)
    assert CountingJob.hashed == 1


def test_long_bodies_are_never_hashed() -> None:
    poison = table()
    long = job(b"x")
    long.size = MAX_HASHED_BYTES + 1
    poison.record(long, 0.0)
    assert (len(poison), CountingJob.hashed) == (0, 0)
    poison.record(job(b"x"), 0.0)
    CountingJob.hashed = 0
    assert poison.refusal(long, 1.0) is None
    assert CountingJob.hashed == 0


def test_the_oldest_is_forgotten_when_there_are_too_many() -> None:
    bodies = [b"%05d" % number for number in range(MAX_REMEMBERED)]
    poison = table(*bodies)
    assert poison.refusal(job(bodies[0]), 1.0)
    # Recorded again: no longer the oldest.
    poison.record(job(bodies[0]), 1.0)
    poison.record(job(b"newest"), 2.0)
    assert len(poison) == MAX_REMEMBERED
    assert poison.refusal(job(bodies[0]), 2.0)
    assert poison.refusal(job(bodies[1]), 2.0) is None
    assert poison.refusal(job(b"newest"), 2.0)


class TestInTheQueue:
    """What the dispatcher makes of it."""

    def kill_alone(self, dispatcher: Dispatcher[FakeJob], body: bytes, now: float = 1.0) -> None:
        dispatcher.submit(job(body, deaths=0))
        for worker in range(CULPRIT_DEATHS):
            dispatcher.worker_ready(worker)
            dispatcher.dispatch(now)
            dispatcher.worker_lost(worker, "signal 11", now)

    def test_a_known_killer_is_refused_when_it_comes(self) -> None:
        dispatcher = Dispatcher[FakeJob](Limits())
        self.kill_alone(dispatcher, b"kills")
        later = job(b"kills", deaths=0)
        later.enqueued_at = 2.0
        with pytest.raises(WorkerDied, match="1 s ago"):
            dispatcher.submit(later)
        assert dispatcher.is_empty

    def test_those_that_wait_when_it_becomes_known_are_not_run(self) -> None:
        dispatcher = Dispatcher[FakeJob](Limits())
        twins = [job(b"kills", deaths=0) for _ in range(20)]
        for twin in twins:
            dispatcher.submit(twin)
        deaths = 0
        while not dispatcher.is_empty:
            deaths += 1
            dispatcher.worker_ready(deaths)
            for batch in dispatcher.dispatch(1.0):
                dispatcher.worker_lost(batch.worker, "signal 11", 1.0)
        # The last worker ready had nothing to run.
        assert deaths == CULPRIT_DEATHS + 1
        assert all(isinstance(twin.endings[0], WorkerDied) for twin in twins)

    def test_neighbours_of_a_killer_are_never_blamed(self) -> None:
        dispatcher = Dispatcher[FakeJob](Limits(batch_size=4, retry_on_crash=False))
        for _ in range(CULPRIT_DEATHS):
            for body in (b"kills", b"lives"):
                dispatcher.submit(job(body, deaths=0))
            dispatcher.worker_ready(1)
            dispatcher.dispatch(1.0)
            dispatcher.worker_lost(1, "signal 11", 1.0)
        # Neither is known, since nobody knows which of them it was.
        dispatcher.submit(job(b"lives", deaths=0))
        dispatcher.submit(job(b"kills", deaths=0))
        assert dispatcher.depth == 2

    def test_a_worker_killed_for_taking_too_long_blames_nobody(self) -> None:
        dispatcher = Dispatcher[FakeJob](Limits(retry_on_crash=False))
        for _ in range(CULPRIT_DEATHS + 1):
            dispatcher.submit(job(b"slow", deaths=0))
            dispatcher.worker_ready(1)
            dispatcher.dispatch(1.0)
            dispatcher.fail_batch(1, WorkerDied("took too long"))
            dispatcher.worker_lost(1, "timeout", 1.0)

    def test_a_killer_whose_client_does_not_wait_is_known_after_two_deaths(self) -> None:
        dispatcher = Dispatcher[FakeJob](Limits())
        for _ in range(CULPRIT_DEATHS):
            hasty = job(b"kills", deaths=0)
            dispatcher.submit(hasty)
            dispatcher.worker_ready(1)
            dispatcher.dispatch(1.0)
            hasty.has_left = True
            dispatcher.worker_lost(1, "signal 11", 1.0)
        with pytest.raises(WorkerDied):
            dispatcher.submit(job(b"kills", deaths=0))


class TestDigest:
    """When two sendings are the same request."""

    def inference(self, meta: RequestMeta, *chunks: bytes) -> Inference:
        loop = asyncio.new_event_loop()
        future = loop.create_future()
        loop.close()
        size = sum(map(len, chunks))
        return Inference(meta.encode(), chunks, size, 0.0, 1.0, future, False)

    def test_the_same_request_has_the_same_digest_however_it_arrived(self) -> None:
        body = bytes(range(200))
        headers = {"X-Request-Id": "1", "TraceParent": "00-1", "A": "b"}
        whole = self.inference(RequestMeta("1", Dialect.PLAIN, "t", "", "", headers), body)
        headers = {"A": "b", "X-Request-Id": "2"}
        meta = RequestMeta("2", Dialect.PLAIN, "t", "", "", headers)
        cut = self.inference(meta, body[:1], b"", body[1:70], body[70:])
        assert whole.digest() == cut.digest()
        assert whole.head() == cut.head() == body[:64]

    @pytest.mark.parametrize(
        "other",
        [
            RequestMeta("1", Dialect.V1, "t", "a"),
            RequestMeta("1", Dialect.PLAIN, "u", "a"),
            RequestMeta("1", Dialect.PLAIN, "t", "b"),
            RequestMeta("1", Dialect.PLAIN, "t", "a", "gzip"),
            RequestMeta("1", Dialect.PLAIN, "t", "a", "", {"Scale": "2"}),
            RequestMeta("1", Dialect.PLAIN, "t", "a", "", {}, (("scale", "2"),)),
        ],
    )
    def test_what_decides_how_a_body_is_read_is_part_of_it(self, other: RequestMeta) -> None:
        first = self.inference(RequestMeta("1", Dialect.PLAIN, "t", "a"), b"body")
        assert first.digest() != self.inference(other, b"body").digest()

    def test_the_body_is_part_of_it(self) -> None:
        meta = RequestMeta("1", Dialect.PLAIN, "t", "a")
        assert self.inference(meta, b"one").digest() != self.inference(meta, b"two").digest()

    def test_a_request_without_a_body_has_an_empty_head(self) -> None:
        assert self.inference(RequestMeta("1", Dialect.PLAIN, "", "")).head() == b""
