"""A short run of the simulation; ``make simulate`` is the long one."""

from __future__ import annotations

from collections import Counter

from tests.simulation.simulator import World

#: What must have come up before the short run proves anything.
_KINDS = {"answered", "restarts", "failed", "hangs", "left", "refused", "known", "errors"}


def test_what_is_accepted_is_answered_once_and_pools_are_whole_when_faults_cease() -> None:
    counts = Counter[str]()
    for seed in range(40):
        if seed >= 5 and counts.keys() >= _KINDS:
            break
        world = World(seed)
        world.run(4000)
        counts += world.counts
    assert counts.keys() >= _KINDS


def test_the_same_seed_is_the_same_run() -> None:
    first, second = World(7), World(7)
    first.run(2000)
    second.run(2000)
    assert (first.now, first.counts) == (second.now, second.counts)
