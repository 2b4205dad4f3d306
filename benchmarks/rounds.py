"""Rounds in which the server and its references take turns.

The speed of a machine drifts, by a factor of three on a shared one. So what is compared runs
within seconds of each other, and the order changes from round to round: over many rounds a drift
favours neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.client import Demand, Level, Sample
from benchmarks.references import Reference
from benchmarks.server import Server
from benchmarks.workloads import CLOSED, OPEN, Workload
from tests.kit.load.schedule import percentiles

SERVER = "server"


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: Times that the server and its references take turns.
        seconds: Of load that counts, for each of them at each level.
        warm_up_s: Of load that does not, before that.
        starts: Times that the server is started.
        kills: Workers that are killed.
    """

    rounds: int
    seconds: float
    warm_up_s: float
    starts: int
    kills: int


@dataclass(frozen=True, slots=True)
class Row:
    """A workload at one level: a sample per round, by the name of who was asked."""

    level: Level
    samples: dict[str, list[Sample]] = field(default_factory=dict)


def take_turns(
    workload: Workload,
    server: Server,
    references: Sequence[tuple[Reference, tuple[Level, ...]]],
    plan: Plan,
    say: Callable[[str], None],
) -> list[Row]:
    """Measure the server and its references at every level, round by round.

    Args:
        workload: What is asked.
        server: A server of the workload's model.
        references: What to compare it with, each with its levels.
        plan: How much.
        say: Told what is being done.
    """
    rows = [Row(level) for level in CLOSED + OPEN]
    for number in range(plan.rounds):
        capacity = 0.0
        for row in rows:
            say(f"{workload.name}: round {number + 1} of {plan.rounds}, {row.level}")
            level = row.level
            rate = None if level.share is None else level.share * capacity
            demand = Demand(level, plan.warm_up_s, plan.seconds, rate, seed=number)
            turns: dict[str, Callable[[], Sample]] = {
                SERVER: partial(server.measure, workload.name, workload.request, demand)
            }
            for reference, levels in references:
                if level in levels:
                    turns[reference.name] = partial(reference.measure, demand)
            samples = _take(turns, is_reversed=number % 2 == 1)
            for name in turns:
                row.samples.setdefault(name, []).append(samples[name])
            if rate is None:
                # Of this round, since the next one may find another machine.
                capacity = samples[SERVER].requests_per_s
    return rows


def _take(turns: Mapping[str, Callable[[], Sample]], is_reversed: bool) -> dict[str, Sample]:
    names = list(turns)
    return {name: turns[name]() for name in (reversed(names) if is_reversed else names)}


def ratio(level: Level, server: Sample, reference: Sample) -> float:
    """Compare a pair: 1 is as good as the reference, less is worse.

    In a closed loop, requests per second over the reference's. In an open loop, where both answer
    all that comes, the reference's median latency over the server's.
    """
    if level.share is None:
        return server.requests_per_s / reference.requests_per_s
    return percentiles(reference.latencies)["p50_ms"] / percentiles(server.latencies)["p50_ms"]
