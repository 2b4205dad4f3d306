"""When a dead worker is started again, and when the servable is given up."""

from __future__ import annotations

import itertools

import pytest

from mms.serving.pool.restarts import (
    BACKOFF_MAX_S,
    HEALTHY_AFTER_S,
    MAX_FAILURES,
    RESTART_BURST,
    RESTARTS_PER_S,
    RestartPolicy,
    backoff_s,
)


def test_back_off_doubles_from_a_tenth_of_a_second_to_half_a_minute() -> None:
    waits = [backoff_s(n) for n in range(1, 12)]
    assert waits[:4] == [0.1, 0.2, 0.4, 0.8]
    assert waits[-1] == backoff_s(10_000) == BACKOFF_MAX_S == 30.0
    assert all(later == min(2 * earlier, 30.0) for earlier, later in itertools.pairwise(waits))


def died(
    policy: RestartPolicy,
    lifetime_s: float = 1.0,
    *,
    now: float = 0.0,
    was_busy: bool = False,
    has_served: bool = False,
) -> float | None:
    return policy.worker_died(now, was_busy=was_busy, has_served=has_served, lifetime_s=lifetime_s)


@pytest.mark.parametrize("was_busy", [True, False])
@pytest.mark.parametrize("has_served", [True, False])
def test_only_a_death_at_load_or_while_idle_counts_against_the_model(
    was_busy: bool, has_served: bool
) -> None:
    policy = RestartPolicy()
    waits = [died(policy, was_busy=was_busy, has_served=has_served) for _ in range(MAX_FAILURES)]
    if was_busy or has_served:
        assert waits == [0.0] * MAX_FAILURES
        assert policy.deaths == 0
    else:
        assert waits[-1] is None


def test_deaths_with_a_request_do_not_hide_those_of_the_model() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        assert died(policy) is not None
        assert died(policy, was_busy=True) == 0.0
    assert died(policy) is None


def test_a_flood_of_deaths_is_restarted_at_a_bounded_rate() -> None:
    policy = RestartPolicy()
    # Each worker dies as soon as it lives.
    now, starts = 0.0, []
    for _ in range(10 * RESTART_BURST):
        wait = died(policy, now=now, was_busy=True)
        assert wait is not None
        now += wait
        starts.append(now)
    assert starts[:RESTART_BURST] == pytest.approx([0.0] * RESTART_BURST)
    for first, last in zip(starts, starts[RESTART_BURST:], strict=False):
        assert last - first >= (1 - 1e-9) / RESTARTS_PER_S
    assert starts[-1] == pytest.approx((len(starts) - RESTART_BURST) / RESTARTS_PER_S)


def test_after_a_quiet_time_a_whole_burst_is_restarted_at_once_again() -> None:
    policy = RestartPolicy()
    for _ in range(2 * RESTART_BURST):
        died(policy, was_busy=True)
    quiet = 3 * RESTART_BURST / RESTARTS_PER_S
    waits = [died(policy, now=quiet, was_busy=True) for _ in range(RESTART_BURST)]
    assert waits == pytest.approx([0.0] * RESTART_BURST)


def test_an_idle_worker_that_is_killed_once_is_replaced_at_once() -> None:
    assert died(RestartPolicy(), 5.0) == 0.0


def test_a_model_whose_idle_workers_die_waits_longer_and_is_given_up_at_the_fifth() -> None:
    policy = RestartPolicy()
    assert [died(policy) for _ in range(MAX_FAILURES)] == [0.0, 0.1, 0.2, 0.4, None]
    assert policy.deaths == MAX_FAILURES == 5


def test_a_model_that_never_loads_waits_longer_and_is_given_up_at_the_fifth() -> None:
    policy = RestartPolicy()
    waits = [policy.start_failed(others_serve=False) for _ in range(MAX_FAILURES)]
    assert waits == [0.1, 0.2, 0.4, 0.8, None]


def test_failed_starts_beside_a_worker_that_serves_are_tried_for_ever() -> None:
    policy = RestartPolicy()
    waits = [policy.start_failed(others_serve=True) for _ in range(2000)]
    assert None not in waits
    assert waits[-1] == BACKOFF_MAX_S


def test_a_start_that_succeeds_forgives_those_that_failed() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        policy.start_failed(others_serve=False)
    policy.start_succeeded()
    assert policy.start_failed(others_serve=False) == 0.1


def test_a_start_that_succeeds_does_not_hide_deaths_while_idle() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        assert died(policy) is not None
        policy.start_succeeded()
    assert died(policy) is None


def test_a_loader_that_does_not_load_is_left_at_the_fifth_time_and_a_dead_one_never() -> None:
    policy = RestartPolicy()
    assert [policy.loader_failed() for _ in range(MAX_FAILURES)] == [0.1, 0.2, 0.4, 0.8, None]
    policy.loader_succeeded()
    assert policy.loader_failed() == 0.1
    assert [policy.loader_died(0.0) for _ in range(RESTART_BURST)] == pytest.approx(
        [0.0] * RESTART_BURST
    )
    assert policy.loader_died(0.0) == pytest.approx(1 / RESTARTS_PER_S)


def test_a_finished_batch_forgives_earlier_deaths() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        died(policy)
    policy.batch_finished()
    assert died(policy) == 0.0
    assert policy.deaths == 1


def test_a_minute_of_health_forgives_earlier_deaths() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        died(policy)
    assert died(policy, HEALTHY_AFTER_S) == 0.0
    assert policy.deaths == 1


def test_a_worker_that_served_does_not_hide_others_that_never_do() -> None:
    policy = RestartPolicy()
    for _ in range(MAX_FAILURES - 1):
        died(policy)
        died(policy, has_served=True)
    assert died(policy) is None
