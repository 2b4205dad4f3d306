"""When a servable grows, shrinks, replaces a worker or tries again."""

from __future__ import annotations

import pytest

from mms.config.settings import ModelSettings
from mms.serving.upkeep import (
    RECOVER_FIRST_S,
    RECOVER_MAX_S,
    Autoscaler,
    Recovery,
    recycling_reason,
)

SETTINGS = ModelSettings(max_workers=4, scale_up_wait=100.0, scale_down_after=60.0)


def target(scaler: Autoscaler, now: float, **changes: float) -> int:
    values = {"size": 2, "floor": 1, "oldest_wait_s": 0.0, "idle": 1, "starting": 0, **changes}
    return scaler.target(
        SETTINGS,
        now,
        size=int(values["size"]),
        floor=int(values["floor"]),
        oldest_wait_s=values["oldest_wait_s"],
        idle=int(values["idle"]),
        starting=int(values["starting"]),
    )


def test_it_grows_by_one_while_requests_wait_too_long() -> None:
    assert target(Autoscaler(), 0.0, oldest_wait_s=0.2, idle=0) == 3


def test_it_does_not_grow_while_a_worker_is_on_its_way() -> None:
    assert target(Autoscaler(), 0.0, oldest_wait_s=0.2, idle=0, starting=1) == 2


def test_it_never_grows_past_max_workers() -> None:
    assert target(Autoscaler(), 0.0, oldest_wait_s=9.0, idle=0, size=4) == 4


def test_it_shrinks_by_one_after_a_quiet_time_and_not_below_the_floor() -> None:
    scaler = Autoscaler()
    assert target(scaler, 0.0, idle=0, size=3) == 3
    assert target(scaler, 59.0, size=3) == 3
    assert target(scaler, 61.0, size=3) == 2
    assert target(scaler, 62.0, size=2) == 2
    assert target(scaler, 122.0, size=2) == 1
    assert target(scaler, 500.0, size=1) == 1


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (ModelSettings(), ""),
        (ModelSettings(max_requests=50), "max_requests"),
        (ModelSettings(max_requests=51), ""),
        (ModelSettings(max_worker_age=9.0), "max_age"),
        (ModelSettings(max_worker_age=10.0), ""),
        (ModelSettings(max_worker_memory=999), "max_memory"),
        (ModelSettings(max_worker_memory=1000), ""),
        (ModelSettings(worker_memory_limit=899), "max_memory"),
        (ModelSettings(worker_memory_limit=900), ""),
    ],
)
def test_a_worker_is_replaced_for_what_the_settings_say(
    settings: ModelSettings, reason: str
) -> None:
    assert (
        recycling_reason(
            settings, age_s=10.0, resident_bytes=1000, private_bytes=900, requests=50, spread=5
        )
        == reason
    )


def test_workers_of_one_model_do_not_all_reach_max_requests_at_once() -> None:
    settings = ModelSettings(max_requests=100)
    limits = {
        next(
            n
            for n in range(200)
            if recycling_reason(
                settings, age_s=0, resident_bytes=0, private_bytes=0, requests=n, spread=pid
            )
        )
        for pid in range(1000, 1010)
    }
    assert limits == set(range(100, 110))


def test_recovery_is_tried_once_per_failure_and_less_often_each_time() -> None:
    recovery = Recovery()
    assert not recovery.is_due(1e9)
    now, waits = 0.0, []
    for _ in range(8):
        recovery.failed(now)
        due = next(t for t in range(2000) if recovery.is_due(now + t))
        assert not recovery.is_due(now + 5000)
        waits.append(due)
        now += due
    assert waits[:3] == [RECOVER_FIRST_S, 2 * RECOVER_FIRST_S, 4 * RECOVER_FIRST_S]
    assert waits[-1] == RECOVER_MAX_S


def test_recovery_begins_anew_after_a_success() -> None:
    recovery = Recovery()
    recovery.failed(0.0)
    recovery.failed(0.0)
    recovery.recovered()
    assert not recovery.is_due(1e9)
    recovery.failed(0.0)
    assert recovery.is_due(RECOVER_FIRST_S)
