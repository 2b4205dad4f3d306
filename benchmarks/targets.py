"""What we hold ourselves to, and what a run says of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Target:
    """A bound for one figure of a result.

    Attributes:
        name: Of the figure, with its unit.
        bound: Its value at worst.
        is_least: Whether it must be at least that, rather than at most.
        value: What was measured.
    """

    name: str
    bound: float
    is_least: bool
    value: float

    @property
    def is_met(self) -> bool:
        return self.value >= self.bound if self.is_least else self.value <= self.bound


def targets(document: Document) -> Iterator[Target]:
    """Return the targets for what was measured."""
    for row in document["rows"]:
        yield from _of_row(row)
    for name, life in document["lives"].items():
        yield from _of_life(name, life)


def _of_row(row: dict[str, Any]) -> Iterator[Target]:
    workload, connections = row["workload"], row["connections"]
    where = f"{workload}, {row['load']}"
    if row["share"] is not None:
        return
    ratios = {side["name"]: statistics.median(side["ratios"]) for side in row["references"]}
    if workload == "noop" and connections == 64:
        rate = statistics.median(row["server"]["requests_per_s"])
        yield Target(f"{where}: requests/s", 30_000, True, rate)
        yield Target(f"{where}: ratio to bare handler", 0.8, True, ratios["bare handler"])
    if workload == "large":
        yield Target(f"{where}: ratio to bare socket", 0.5, True, ratios["bare socket"])
    if workload == "crepe" and connections == 1:
        yield Target(f"{where}: ms over bare fp32", 0.5, False, _added_ms(row))
    if workload == "crepe" and connections > 1:
        yield Target(f"{where}: ratio to bare fp32", 0.95, True, ratios["bare fp32"])
    if workload == "crepe-int8" and connections > 1:
        yield Target(f"{where}: ratio to bare fp32", 2.5, True, ratios["bare fp32"])


def _added_ms(row: dict[str, Any]) -> float:
    """Return what the server adds to the first reference's median latency, in pairs."""
    pairs = zip(row["server"]["medians_ms"], row["references"][0]["medians_ms"], strict=True)
    return float(statistics.median(ours - bare for ours, bare in pairs))


def _of_life(name: str, life: dict[str, Any]) -> Iterator[Target]:
    if name != "crepe":
        return
    median = statistics.median
    server_mb = max(each["resident_mb"] for each in life["memory"]["server"])
    yield Target(f"{name}: server, MB resident", 60, False, server_mb)
    worker_mb = max(life["fresh_worker_mb"])
    yield Target(f"{name}: each worker before load, MB private", 20, False, worker_mb)
    yield Target(
        f"{name}: start to first prediction, s", 1.5, False, median(life["first_answer_s"])
    )
    yield Target(f"{name}: worker replaced, ms", 100, False, median(life["replaced_ms"]))
