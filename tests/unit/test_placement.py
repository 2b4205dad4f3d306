"""Which GPU a worker gets, with GPUs that are only numbers."""

from __future__ import annotations

import pytest

from mms.errors import OutOfMemory
from mms.serving.pool.placement import Placement

GIB = 1 << 30


def placement() -> Placement:
    return Placement(lambda: {0: 16 * GIB, 1: 8 * GIB})


def test_without_a_stated_need_workers_spread_evenly() -> None:
    gpus = placement()
    assert [gpus.acquire((0, 1), 0) for _ in range(4)] == [0, 1, 0, 1]


def test_a_stated_need_goes_where_it_leaves_the_least_room() -> None:
    gpus = placement()
    assert gpus.acquire((0, 1), 6 * GIB) == 1
    assert gpus.acquire((0, 1), 6 * GIB) == 0


def test_what_fits_nowhere_is_refused_with_what_is_free() -> None:
    gpus = placement()
    with pytest.raises(OutOfMemory, match=f"gpu_memory {20 * GIB}.*GPU 0: {16 * GIB}"):
        gpus.acquire((0, 1), 20 * GIB)
    assert gpus.acquire((0, 1), 16 * GIB) == 0


def test_what_is_released_can_be_had_again() -> None:
    gpus = placement()
    gpus.acquire((1,), 8 * GIB)
    with pytest.raises(OutOfMemory):
        gpus.acquire((1,), GIB)
    gpus.release(1, 8 * GIB)
    assert gpus.acquire((1,), GIB) == 1
