"""Which state may follow which, and when a dead worker is started again."""

from __future__ import annotations

import itertools

import pytest

from mms.serving.lifecycle import (
    BACKOFF_MAX_S,
    HEALTHY_AFTER_S,
    MAX_FAILURES,
    IllegalMove,
    RestartPolicy,
    ServableState,
    WorkerState,
    backoff_s,
    move_servable,
    move_worker,
)

S, W = ServableState, WorkerState
SERVABLE_MOVES = {
    (S.LOADING, S.READY),
    (S.LOADING, S.FAILED),
    (S.LOADING, S.DRAINING),
    (S.READY, S.DRAINING),
    (S.READY, S.FAILED),
    (S.READY, S.UNLOADED),
    (S.UNLOADED, S.LOADING),
    (S.UNLOADED, S.DRAINING),
    (S.FAILED, S.LOADING),
    (S.FAILED, S.DRAINING),
    (S.DRAINING, S.UNLOADED),
}
WORKER_MOVES = {
    (W.STARTING, W.READY),
    (W.STARTING, W.STOPPING),
    (W.STARTING, W.DEAD),
    (W.READY, W.BUSY),
    (W.READY, W.STOPPING),
    (W.READY, W.DEAD),
    (W.BUSY, W.READY),
    (W.BUSY, W.STOPPING),
    (W.BUSY, W.DEAD),
    (W.STOPPING, W.DEAD),
    (W.DEAD, W.BACKOFF),
    (W.DEAD, W.STARTING),
    (W.BACKOFF, W.STARTING),
    (W.BACKOFF, W.DEAD),
}


def test_a_servable_makes_only_the_drawn_moves() -> None:
    for current, following in itertools.product(S, S):
        if (current, following) in SERVABLE_MOVES:
            assert move_servable(current, following) is following
        else:
            with pytest.raises(IllegalMove, match=f"{current.name} to {following.name}"):
                move_servable(current, following)


def test_a_worker_makes_only_the_drawn_moves() -> None:
    for current, following in itertools.product(W, W):
        if (current, following) in WORKER_MOVES:
            assert move_worker(current, following) is following
        else:
            with pytest.raises(IllegalMove, match=f"{current.name} to {following.name}"):
                move_worker(current, following)


def test_an_unloaded_servable_never_serves_without_loading() -> None:
    assert (S.UNLOADED, S.READY) not in SERVABLE_MOVES


def test_back_off_doubles_from_a_tenth_of_a_second_to_half_a_minute() -> None:
    waits = [backoff_s(n) for n in range(1, 12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == backoff_s(10_000 // 10) == BACKOFF_MAX_S == 30.0
    assert all(later == min(2 * earlier, 30.0) for earlier, later in itertools.pairwise(waits))


def test_a_worker_that_served_is_replaced_at_once_however_often() -> None:
    policy = RestartPolicy()
    for _ in range(3 * MAX_FAILURES):
        policy.batch_finished()
        assert policy.worker_died(has_served=True, lifetime_s=0.1) == 0.0
    assert policy.failures == 0


def test_an_idle_worker_that_is_killed_once_is_replaced_at_once() -> None:
    assert RestartPolicy().worker_died(has_served=False, lifetime_s=5.0) == 0.0


def test_a_worker_that_never_loads_waits_longer_and_is_given_up_at_the_fifth() -> None:
    policy = RestartPolicy()
    waits = [policy.worker_died(has_served=False, lifetime_s=0.0) for _ in range(MAX_FAILURES)]
    first = [wait for wait in waits[:-1] if wait is not None]
    assert len(first) == MAX_FAILURES - 1 == 4
    assert first[0] == 0.1
    assert first == sorted(first)
    assert first[-1] > first[0]
    assert waits[-1] is None


def test_a_finished_batch_forgives_earlier_deaths() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        policy.worker_died(has_served=False, lifetime_s=0.0)
    policy.batch_finished()
    assert policy.worker_died(has_served=False, lifetime_s=0.0) == 0.1


def test_a_minute_of_health_forgives_earlier_deaths() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        policy.worker_died(has_served=False, lifetime_s=0.0)
    assert policy.worker_died(has_served=False, lifetime_s=HEALTHY_AFTER_S) == 0.0
    assert policy.failures == 1


def test_a_worker_that_served_does_not_hide_others_that_never_do() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        policy.worker_died(has_served=False, lifetime_s=0.0)
        policy.worker_died(has_served=True, lifetime_s=1.0)
    assert policy.worker_died(has_served=False, lifetime_s=0.0) is None
