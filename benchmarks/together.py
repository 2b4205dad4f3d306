"""Two models in one server, asked at once: do their workers and threads get in each other's way?

Each model has a worker per core, so that together they have more than there are cores. If sharing
costs nothing, the shares that each keeps of the rate it has alone add up to 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.client import Demand, Level, putting_load
from benchmarks.rounds import Plan
from benchmarks.server import Server, serving
from benchmarks.workloads import Workload

_LEVEL = Level(16)


def measure_together(
    workloads: Sequence[Workload], plan: Plan, say: Callable[[str], None]
) -> dict[str, Any]:
    """Ask each model alone and all of them at once, round by round, in changing order.

    Returns:
        ``alone`` and ``together``, requests per second of each round by model, and ``shares``, the
        sum of together ÷ alone for each round.
    """
    names = " + ".join(workload.name for workload in workloads)
    models = [f"{workload.name}={workload.archive}" for workload in workloads]
    batch_size = max(workload.batch_size for workload in workloads)
    demand = Demand(_LEVEL, plan.warm_up_s, plan.seconds)
    alone: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    together: dict[str, list[float]] = {workload.name: [] for workload in workloads}
    with serving("--models", *models, "--batch-size", str(batch_size)) as server:
        for number in range(plan.rounds):
            say(f"{names}: round {number + 1} of {plan.rounds}, {_LEVEL} each")
            turns = [(alone, [workload]) for workload in workloads] + [(together, workloads)]
            for rates, asked in turns if number % 2 == 0 else reversed(turns):
                for name, rate in _rates(server, asked, demand).items():
                    rates[name].append(rate)
    shares = [
        sum(together[name][number] / alone[name][number] for name in alone)
        for number in range(plan.rounds)
    ]
    return {"models": names, "alone": alone, "together": together, "shares": shares}


def _rates(server: Server, workloads: Sequence[Workload], demand: Demand) -> dict[str, float]:
    """Ask these models at the same time; return their requests per second."""
    with contextlib.ExitStack() as stack:
        loads = {
            workload.name: stack.enter_context(
                putting_load(server.url_of(workload.name), workload.request, demand)
            )
            for workload in workloads
        }
        return {name: load.result()["requests_per_s"] for name, load in loads.items()}
