"""A result as tables for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.table import digits_for, number, render
from benchmarks.targets import targets

#: Below so many requests, p99.9 is only the longest of them.
_LEAST_FOR_P99_9 = 1000
#: Share of a core from which on the client itself may be what was measured.
_BUSY_CLIENT = 0.9
_BUSY_MARK = "!"


def report(document: dict[str, Any]) -> str:
    """Return everything that there is to say about a result."""
    parts = [describe_machine(document["machine"]), _rates(document["rows"])]
    parts += [_costs(document["rows"]), _lives(document["lives"])]
    if document["together"]:
        parts.append(_together(document["together"]))
    parts.append(_targets(document))
    return "\n\n".join(parts)


def describe_machine(machine: dict[str, Any]) -> str:
    """Return machine and versions in two lines."""
    on = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']} GB"
    names = ("date", "cpu", "cores", "memory_gb", "system", "load_before")
    versions = ", ".join(f"{key} {value}" for key, value in machine.items() if key not in names)
    return (
        f"{machine['date']}, {on}, {machine['system']}, load before {machine['load_before']:.2f}\n"
        f"{versions}"
    )


def _rates(rows: Sequence[dict[str, Any]]) -> str:
    header = ("workload", "load", "asked/s", "req/s", "p50 ms", "p95", "p99", "p99.9")
    reference = ("reference", "req/s", "p50 ms", "p99", "ratio", "range")
    lines = []
    for row in rows:
        server = row["server"]
        own = [
            row["workload"],
            row["load"],
            number(_median(server["offered_per_s"])),
            number(_median(server["requests_per_s"])) + _client_mark(server),
            *_latencies(server, ("p50_ms", "p95_ms", "p99_ms", "p99_9_ms")),
        ]
        for side in row["references"]:
            lines.append([*own, *_reference_cells(side)])
            own = [""] * len(own)
    text = render((*header, *reference), lines, left=(0, 1, len(header)))
    if any(_BUSY_MARK in cell for line in lines for cell in line):
        text += (
            f"\n{_BUSY_MARK} the client used over {_BUSY_CLIENT:.0%} of a core: it may be the limit"
        )
    return text


def _reference_cells(side: dict[str, Any]) -> list[str]:
    ratios = side["ratios"]
    return [
        side["name"],
        number(_median(side["requests_per_s"])) + _client_mark(side),
        *_latencies(side, ("p50_ms", "p99_ms")),
        number(statistics.median(ratios), 2),
        f"{min(ratios):.2f}–{max(ratios):.2f}",
    ]


def _latencies(side: dict[str, Any], names: Sequence[str]) -> Iterator[str]:
    for name in names:
        if name == "p99_9_ms" and side["requests"] < _LEAST_FOR_P99_9:
            yield "–"
        else:
            yield number(side[name], digits_for(side[name]))


def _client_mark(side: dict[str, Any]) -> str:
    return _BUSY_MARK if max(side["client_cpu"], default=0) > _BUSY_CLIENT else ""


def _costs(rows: Sequence[dict[str, Any]]) -> str:
    header = ("workload", "load", "server µs", "workers µs", "batch", "client", "late ms")
    lines = []
    for row in rows:
        server = row["server"]
        cells = [row["workload"], row["load"]]
        cells += [number(_median(server["cpu_us"][name])) for name in ("server", "workers")]
        cells += [
            number(_median(server["mean_batch"]), 1),
            number(_median(server["client_cpu"]), 2),
            number(_median(server["client_lag_ms"]), 2),
        ]
        first = row["references"][0]
        lines.append([*cells, first["name"], number(_median(first["cpu_us"]["reference"]))])
    text = render((*header, "reference", "µs"), lines, left=(0, 1, len(header)))
    return f"Processor time per request\n{text}"


def _lives(lives: dict[str, Any]) -> str:
    header = (
        *("workload", "ready s", "first answer s", "replaced ms", "server MB", "private"),
        *("loader MB", "private", "worker MB", "fresh", "private", "all MB"),
        *("reference", "first answer s", "private"),
    )
    lines = []
    for name, life in lives.items():
        memory = life["memory"]
        cells = [name, number(_median(life["ready_s"]), 2)]
        cells += [number(_median(life["first_answer_s"]), 2), number(_median(life["replaced_ms"]))]
        for kind in ("server", "loader", "worker"):
            cells.append(_largest(memory[kind], "resident_mb"))
            cells += [number(max(life["fresh_worker_mb"]))] if kind == "worker" else []
            cells.append(_largest(memory[kind], "private_mb"))
        all_mb = sum(each["proportional_mb"] for group in memory.values() for each in group)
        cells.append(number(all_mb))
        for reference, side in life["references"].items():
            last = [reference, number(side["start_s"], 2), _largest(side["memory"], "private_mb")]
            lines.append([*cells, *last])
            cells = [""] * len(cells)
    return f"Start, replacement, memory\n{render(header, lines, left=(0, 12))}"


def _largest(processes: Sequence[dict[str, float]], key: str) -> str:
    return number(max((each[key] for each in processes), default=None))


def _together(together: dict[str, Any]) -> str:
    parts = [
        f"{name} {_median(together['together'][name]):.0f} requests/s "
        f"({_median(together['alone'][name]):.0f} alone)"
        for name in together["alone"]
    ]
    shares = together["shares"]
    return (
        f"{together['models']} at once: {', '.join(parts)}; shares add up to "
        f"{_median(shares):.2f} ({min(shares):.2f}–{max(shares):.2f})"
    )


def _targets(document: dict[str, Any]) -> str:
    lines = [
        [
            target.name,
            number(target.value, digits_for(target.value)),
            f"{'at least' if target.is_least else 'at most'} {target.bound:g}",
            "met" if target.is_met else "missed",
        ]
        for target in targets(document)
    ]
    return render(("target", "measured", "bound", ""), lines, left=(0, 3))


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
