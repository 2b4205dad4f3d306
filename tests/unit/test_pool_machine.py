"""The workers of a pool: any order of starts, deaths, resizes and replacements ends well."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import hypothesis.strategies as st
import pytest
from hypothesis import settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from mms.errors import MMSError, ModelLoadFailed, WorkerDied
from mms.serving.lifecycle import IllegalMove
from mms.serving.pool.machine import (
    CountRestart,
    GiveUp,
    Instruction,
    Loaded,
    Lost,
    Machine,
    Phase,
    Serve,
    Spawn,
    StartLoader,
    Stop,
    Withdraw,
)
from mms.serving.pool.restarts import BACKOFF_MAX_S, MAX_FAILURES
from mms.serving.pool.slot import Slot, WorkerState

W = WorkerState
BROKEN = ModelLoadFailed("does not load")


class World:
    """The processes of a pool, as far as the machine can tell.

    Each process is in one of four places: starting, serving (idle or busy), stopping or lost; what
    the machine asks for must fit, or it has lost count.
    """

    def __init__(self, target: int) -> None:
        self.now = 0.0
        self.machine = Machine(target, itertools.count(1))
        self.starting: set[int] = set()
        self.serving: set[int] = set()
        self.busy: set[int] = set()
        self.withdrawn: set[int] = set()
        self.stopping: set[int] = set()
        self.lost: set[int] = set()
        self.restarts: Counter[str] = Counter()
        self.loader_starts = 0
        self.loaded = 0
        self.error: MMSError | None = None

    def do(self, instructions: Iterable[Instruction]) -> None:
        for step in instructions:
            self._do(step)

    def _do(self, step: Instruction) -> None:
        match step:
            case Spawn(worker):
                assert self.error is None, "started after it was given up"
                assert worker not in self.present
                self.starting.add(worker)
            case Serve(worker):
                assert worker not in self.serving
                self.serving.add(worker)
            case Withdraw(worker):
                assert worker in self.serving
                self.withdrawn.add(worker)
            case Lost(worker):
                self.serving.discard(worker)
                self.busy.discard(worker)
            case Stop(worker):
                assert worker not in self.busy, "stopped while it ran a batch"
                self.serving.discard(worker)
                self.stopping.add(worker)
            case CountRestart(reason):
                self.restarts[reason] += 1
            case StartLoader():
                self.loader_starts += 1
            case Loaded():
                self.loaded += 1
            case GiveUp(error):
                assert self.error is None, "given up twice"
                self.error = error

    @property
    def present(self) -> set[int]:
        return self.starting | self.serving | self.stopping | self.lost

    @property
    def idle(self) -> set[int]:
        return self.serving - self.busy - self.withdrawn

    def load(self) -> None:
        self.do(self.machine.start())
        while self.starting:
            self.succeed(min(self.starting))

    def succeed(self, worker: int) -> None:
        self.starting.remove(worker)
        self.do(self.machine.started(worker, self.now))
        assert worker in self.serving | self.stopping

    def fail(self, worker: int) -> None:
        self.starting.remove(worker)
        self.do(self.machine.start_failed(worker, BROKEN, self.now))

    def begin(self, worker: int) -> None:
        self.busy.add(worker)
        self.machine.batch_begun(worker)

    def finish(self, worker: int) -> None:
        self.busy.remove(worker)
        self.do(self.machine.batch_finished(worker))
        assert (worker in self.stopping) == (worker in self.withdrawn)

    def kill(self, worker: int) -> None:
        """A worker dies; its end is seen later."""
        self.stopping.discard(worker)
        self.do(self.machine.lost(worker, self.now))
        assert worker not in self.serving, "a lost worker still gets batches"
        self.lost.add(worker)

    def end(self, worker: int) -> None:
        """A process that was stopped or lost is seen to end."""
        self.stopping.discard(worker)
        self.lost.discard(worker)
        self.do(self.machine.ended(worker, self.now, "crash", "exited with code 1"))

    def die(self, worker: int) -> None:
        self.kill(worker)
        self.end(worker)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.do(self.machine.tick(self.now))

    def check(self) -> None:
        machine = self.machine
        slots = machine.slots
        if machine.phase in (Phase.LOADING, Phase.RUNNING):
            assert len(slots) == machine.target + machine.replacing
            assert machine.wake_at() >= self.now
        states = machine.states()
        assert states[W.BUSY] == len(self.busy)
        assert states[W.READY] == len(self.serving - self.busy)
        assert states[W.STOPPING] == len(self.stopping | self.lost)
        held = [slot.worker for slot in slots if slot.worker is not None]
        assert len(held) == len(set(held))
        assert set(held) <= self.present
        for worker in self.present:
            assert machine.state(worker) is not None, "a process that nobody knows of"


class Pools(RuleBasedStateMachine):
    """Faults in any order; once they cease, the pool is whole or has been given up."""

    @initialize(size=st.integers(0, 4))
    def make(self, size: int) -> None:
        self.world = World(size)
        self.world.do(self.world.machine.start())

    def pick(self, data: st.DataObject, workers: set[int]) -> int:
        return data.draw(st.sampled_from(sorted(workers)))

    @precondition(lambda self: self.world.starting)
    @rule(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.world.succeed(self.pick(data, self.world.starting))

    @precondition(lambda self: self.world.starting)
    @rule(data=st.data())
    def fail_to_start(self, data: st.DataObject) -> None:
        self.world.fail(self.pick(data, self.world.starting))

    @precondition(lambda self: self.world.idle)
    @rule(data=st.data())
    def begin_batch(self, data: st.DataObject) -> None:
        self.world.begin(self.pick(data, self.world.idle))

    @precondition(lambda self: self.world.busy)
    @rule(data=st.data())
    def finish_batch(self, data: st.DataObject) -> None:
        self.world.finish(self.pick(data, self.world.busy))

    @precondition(lambda self: self.world.serving | self.world.stopping)
    @rule(data=st.data())
    def kill(self, data: st.DataObject) -> None:
        self.world.kill(self.pick(data, self.world.serving | self.world.stopping))

    @precondition(lambda self: self.world.stopping | self.world.lost)
    @rule(data=st.data())
    def see_the_end(self, data: st.DataObject) -> None:
        self.world.end(self.pick(data, self.world.stopping | self.world.lost))

    @rule(size=st.integers(0, 4))
    def resize(self, size: int) -> None:
        self.world.do(self.world.machine.resize(size))

    @precondition(lambda self: self.world.serving)
    @rule(data=st.data())
    def recycle(self, data: st.DataObject) -> None:
        worker = self.pick(data, self.world.serving)
        self.world.do(self.world.machine.recycle(worker, "max_age"))

    @rule()
    def kill_the_loader(self) -> None:
        self.world.do(self.world.machine.loader_ended(self.world.now))

    @rule(seconds=st.sampled_from([0.05, 0.2, 1.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.world.wait(seconds)

    @precondition(lambda self: self.world.present)
    @rule(data=st.data())
    def lose_an_event(self, data: st.DataObject) -> None:
        """A process vanishes and nobody says so; the next comparison finds it missing."""
        world = self.world
        worker = self.pick(data, world.present)
        for place in (world.starting, world.serving, world.busy, world.stopping, world.lost):
            place.discard(worker)
        world.do(world.machine.tick(world.now, world.present))
        if world.machine.phase is not Phase.FAILED:
            assert world.machine.state(worker) is None

    @invariant()
    def agrees_with_the_world(self) -> None:
        if self.world.error is None:
            self.world.check()

    @invariant()
    def is_failed_if_it_has_said_so(self) -> None:
        assert (self.world.machine.phase is Phase.FAILED) == (self.world.error is not None)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        world = self.world
        # No more faults: everything that was asked for succeeds. Two rounds of the longest
        # back-off and of each step's answers are enough for whatever was under way.
        for _ in range(4):
            for worker in sorted(world.starting):
                world.succeed(worker)
            for worker in sorted(world.busy):
                world.finish(worker)
            for worker in sorted(world.stopping | world.lost):
                world.end(worker)
            world.wait(BACKOFF_MAX_S)
        if world.error is not None:
            assert world.machine.phase is Phase.FAILED
            assert not world.starting
            return
        world.check()
        assert world.machine.phase is Phase.RUNNING
        assert world.loaded == 1
        assert world.machine.replacing == 0
        assert world.machine.starting == 0
        assert world.present == world.serving == world.idle
        assert len(world.idle) == world.machine.target


TestPools = Pools.TestCase
TestPools.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def running(target: int) -> World:
    world = World(target)
    world.load()
    assert len(world.idle) == target
    return world


def test_the_first_worker_starts_alone_and_then_all_others_at_once() -> None:
    world = World(3)
    world.do(world.machine.start())
    assert len(world.starting) == 1
    assert world.machine.starting == 3
    world.succeed(min(world.starting))
    assert len(world.starting) == 2
    loaded = []
    for _ in range(2):
        world.succeed(min(world.starting))
        loaded.append((world.loaded, world.machine.phase))
    assert loaded == [(0, Phase.LOADING), (1, Phase.RUNNING)]


@pytest.mark.parametrize("successes", [0, 1, 2])
def test_a_first_load_of_which_any_start_fails_fails(successes: int) -> None:
    world = World(3)
    world.do(world.machine.start())
    for _ in range(successes):
        world.succeed(min(world.starting))
    world.fail(min(world.starting))
    assert world.error is BROKEN
    assert not world.loaded


def test_a_pool_of_no_workers_is_loaded_at_once() -> None:
    world = World(0)
    world.load()
    assert (world.loaded, world.present) == (1, set())


def test_a_worker_that_dies_while_its_replacement_starts_is_replaced_once() -> None:
    world = running(2)
    old = min(world.idle)
    world.do(world.machine.recycle(old, "max_age"))
    (new,) = world.starting
    world.kill(old)
    # Counted as a worker and as its replacement, it would leave one too few here.
    world.do(world.machine.resize(3))
    assert len(world.starting) == 2
    world.end(old)
    for worker in sorted(world.starting):
        world.succeed(worker)
    assert new in world.idle
    assert len(world.idle) == 3
    assert world.restarts == {"max_age": 1}
    world.check()


def test_a_replacement_that_does_not_start_is_tried_again_while_the_old_one_serves() -> None:
    world = running(2)
    other, old = sorted(world.idle)
    world.do(world.machine.recycle(old, "max_age"))
    for _ in range(2 * MAX_FAILURES):
        world.fail(min(world.starting))
        assert world.idle == {other, old}
        # Due again meanwhile, as each look finds: one replacement is enough.
        world.do(world.machine.recycle(old, "max_age"))
        assert not world.starting
        world.wait(BACKOFF_MAX_S)
    world.succeed(min(world.starting))
    assert world.stopping == {old}
    assert world.restarts == {"max_age": 1}
    assert world.error is None


def test_a_worker_whose_replacement_failed_and_that_dies_then_is_replaced() -> None:
    world = running(1)
    (old,) = world.idle
    world.do(world.machine.recycle(old, "max_age"))
    world.fail(min(world.starting))
    world.die(old)
    world.wait(1.0)
    world.succeed(min(world.starting))
    assert len(world.idle) == 1
    world.check()


def test_scaling_to_nothing_while_a_worker_is_replaced_ends_both() -> None:
    world = running(1)
    (old,) = world.idle
    world.do(world.machine.recycle(old, "max_age"))
    world.do(world.machine.resize(0))
    assert world.stopping == {old}
    (new,) = world.starting
    world.succeed(new)
    assert world.stopping == {old, new}
    assert world.machine.starting == 0
    world.check()


def test_a_busy_worker_is_retired_last_and_finishes_its_batch() -> None:
    world = running(3)
    busy = min(world.idle)
    world.begin(busy)
    world.do(world.machine.resize(1))
    assert world.serving == {busy}
    world.do(world.machine.resize(0))
    assert world.serving == {busy}
    assert world.withdrawn >= {busy}
    world.finish(busy)
    assert busy in world.stopping


def test_a_worker_in_back_off_goes_before_one_that_serves() -> None:
    world = running(2)
    first, second = sorted(world.idle)
    world.die(first)
    world.succeed(min(world.starting))
    # The second death of an idle worker waits.
    world.die(second)
    assert world.machine.states()[W.BACKOFF] == 1
    serving = set(world.idle)
    world.do(world.machine.resize(1))
    assert world.idle == serving
    assert world.machine.states()[W.BACKOFF] == 0


def test_of_two_idle_workers_the_one_that_is_being_replaced_goes_first() -> None:
    world = running(2)
    leaking = max(world.idle)
    world.do(world.machine.recycle(leaking, "max_memory"))
    world.do(world.machine.resize(1))
    assert world.stopping == {leaking}


def test_a_lost_worker_counts_as_on_its_way_before_its_end_is_seen() -> None:
    world = running(1)
    (worker,) = world.idle
    world.kill(worker)
    assert world.machine.starting == 1
    assert not world.starting
    world.end(worker)
    assert len(world.starting) == 1
    assert world.restarts == {"crash": 1}


def test_a_worker_that_dies_is_not_replaced_if_the_pool_shrank_before_its_end_was_seen() -> None:
    world = running(2)
    worker = min(world.idle)
    world.kill(worker)
    world.do(world.machine.resize(1))
    world.end(worker)
    assert not world.starting
    assert len(world.idle) == 1
    assert world.restarts == {}


def test_five_deaths_of_idle_workers_fail_the_servable_with_how_the_last_one_ended() -> None:
    world = running(1)
    for _ in range(MAX_FAILURES):
        world.die(min(world.idle))
        world.wait(1.0)
        for worker in sorted(world.starting):
            world.succeed(worker)
    assert isinstance(world.error, WorkerDied)
    assert str(world.error) == (
        "5 workers in a row died while nothing ran in them; the last one exited with code 1"
    )
    assert not world.present


def test_after_it_was_given_up_what_serves_goes_on_and_is_not_replaced() -> None:
    world = running(2)
    steady, other = sorted(world.idle)
    for _ in range(MAX_FAILURES):
        world.die(other)
        world.wait(1.0)
        for worker in sorted(world.starting):
            world.succeed(worker)
        other = max(world.idle)
    assert world.error is not None
    assert world.idle == {steady}
    world.begin(steady)
    world.finish(steady)
    assert world.idle == {steady}
    world.die(steady)
    world.wait(100.0)
    assert not world.present
    assert not world.machine.states()


def test_five_failed_starts_fail_the_servable_unless_another_worker_serves() -> None:
    world = running(2)
    steady, other = sorted(world.idle)
    world.die(other)
    for _ in range(2 * MAX_FAILURES):
        world.fail(min(world.starting))
        world.wait(BACKOFF_MAX_S)
    assert world.error is None
    world.die(steady)
    for worker in sorted(world.starting):
        world.fail(worker)
    assert world.error is BROKEN


def test_a_start_that_fails_after_a_resize_is_tried_again() -> None:
    world = running(1)
    world.do(world.machine.resize(2))
    world.fail(min(world.starting))
    world.wait(world.machine.wake_at() - world.now)
    world.succeed(min(world.starting))
    assert len(world.idle) == 2


def test_the_loader_is_started_again_at_once_and_after_growing_waits_if_it_does_not_load() -> None:
    world = running(1)
    world.do(world.machine.loader_ended(world.now))
    assert world.loader_starts == 1
    waits = []
    for _ in range(MAX_FAILURES - 1):
        world.do(world.machine.loader_failed(world.now))
        waits.append(world.machine.wake_at() - world.now)
        world.wait(waits[-1])
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert world.loader_starts == MAX_FAILURES
    # The next worker that needs one starts it.
    world.do(world.machine.loader_failed(world.now))
    world.wait(1000.0)
    assert world.loader_starts == MAX_FAILURES


def test_a_loader_that_ends_after_the_pool_was_given_up_is_not_started_again() -> None:
    world = World(1)
    world.do(world.machine.start())
    world.fail(min(world.starting))
    world.do(world.machine.loader_ended(world.now))
    assert world.loader_starts == 0


def test_a_process_that_nobody_knows_of_is_stopped() -> None:
    world = running(1)
    present = {*world.present, 99}
    assert world.machine.tick(world.now, present) == [Stop(99)]


def test_a_stopped_pool_starts_nothing() -> None:
    world = running(2)
    world.die(min(world.idle))
    (starting,) = world.starting
    world.machine.stop()
    assert world.machine.resize(4) == []
    assert world.machine.started(starting, world.now) == [Stop(starting)]
    assert world.machine.tick(1000.0, world.present) == []
    assert not world.machine.states()
    assert world.machine.phase is Phase.STOPPED


def test_a_pool_is_started_once() -> None:
    world = running(1)
    with pytest.raises(IllegalMove, match="RUNNING to LOADING"):
        world.machine.start()
    world.machine.stop()
    world.machine.stop()
    with pytest.raises(IllegalMove, match="STOPPED to LOADING"):
        world.machine.start()


WORKER_MOVES = {
    (W.STARTING, W.READY),
    (W.STARTING, W.STOPPING),
    (W.STARTING, W.BACKOFF),
    (W.READY, W.BUSY),
    (W.READY, W.STOPPING),
    (W.BUSY, W.READY),
    (W.BUSY, W.STOPPING),
    (W.STOPPING, W.STARTING),
    (W.STOPPING, W.BACKOFF),
    (W.BACKOFF, W.STARTING),
}


def test_a_worker_makes_only_the_drawn_moves() -> None:
    for current, following in itertools.product(W, W):
        slot = Slot(state=current)
        if (current, following) in WORKER_MOVES:
            slot.move(following)
            assert slot.state is following
        else:
            with pytest.raises(IllegalMove, match=f"{current.name} to {following.name}"):
                slot.move(following)
