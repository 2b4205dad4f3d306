"""What a run has found, as JSON for programs and as Markdown for people."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from benchmarks.client import Sample
from benchmarks.peers.rounds import CPU, Account, Comparison, Outcome, Plan
from tests.kit.load.schedule import percentiles

_NOTHING = "–"


def to_document(outcome: Outcome, plan: Plan, machine: dict[str, Any]) -> dict[str, Any]:
    """Return everything as what JSON holds; rates per second, times and memory as keys say."""
    return {
        "machine": machine,
        "plan": {
            "rounds": plan.rounds,
            "seconds": plan.seconds,
            "warm_up_s": plan.warm_up_s,
            "workers": plan.workers,
        },
        "ours": _account(outcome.ours),
        "peers": [_account(account) for account in outcome.peers],
        "comparisons": [_comparison(comparison) for comparison in outcome.comparisons],
    }


def _account(account: Account) -> dict[str, Any]:
    return {
        "name": account.peer.name,
        "title": account.peer.title,
        "packages": list(account.peer.packages),
        "failure": account.failure,
        "settings": {workload.title: text for workload, text in account.settings.items()},
        "start_s": {workload.title: value for workload, value in account.start_s.items()},
        "memory_bytes": {workload.title: value for workload, value in account.memory_bytes.items()},
    }


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "peer": comparison.peer.name,
        "workload": comparison.workload.title,
        "connections": comparison.connections,
        "ratio": comparison.ratio,
        "rounds": [
            {"ours": _sample(ours), "peer": _sample(peer)} for ours, peer in comparison.rounds
        ],
    }


def _sample(sample: Sample) -> dict[str, Any]:
    load = {
        "requests_per_s": sample.requests_per_s,
        "p50_ms": _latency_ms(sample, "p50_ms"),
        "p99_ms": _latency_ms(sample, "p99_ms"),
        "failed": sample.failed,
        "total": sample.answered,
    }
    return {"load": load, "cpu_us": sample.cpu_us[CPU]}


def _latency_ms(sample: Sample, name: str) -> float:
    return percentiles(sample.latencies)[name]


def to_markdown(outcome: Outcome, plan: Plan, machine: dict[str, Any]) -> str:
    """Return the tables, what we lose, and all settings."""
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    parts = [
        f"One run ({facts}): {plan.workers} workers with one thread each, {plan.rounds} rounds of "
        f"{plan.seconds:g} s, ours and the peer in turn.",
        _overview(outcome),
        _losses(outcome.comparisons),
        _failures(outcome.peers),
        "### Latency and CPU time",
        _details(outcome.comparisons),
        "### Settings",
        _settings([outcome.ours, *outcome.peers]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _overview(outcome: Outcome) -> str:
    """Return a row per server: requests/s, and in brackets how many times as many ours answered.

    Our own row is the median of its rounds against all peers, in which the machine's speed drifts;
    the ratios are of rounds next to each other.
    """
    columns = sorted(
        {(not each.workload.is_noop, each.connections) for each in outcome.comparisons}
    )
    names = [f"{'crepe' if is_crepe else 'noop'}, {count}" for is_crepe, count in columns]
    lines = [
        _row(["requests/s at connections", *names, "memory, MB", "start, s"]),
        _rule(len(names) + 3, 1),
    ]
    by_column: dict[tuple[bool, int], list[Comparison]] = {column: [] for column in columns}
    for each in outcome.comparisons:
        by_column[not each.workload.is_noop, each.connections].append(each)
    ours = [f"{statistics.median(_rates(found, 0)):.0f}" for found in by_column.values()]
    lines.append(_row([f"**{outcome.ours.peer.title}**", *ours, *_footprint(outcome.ours)]))
    for account in outcome.peers:
        cells = [_cell(account, found) for found in by_column.values()]
        if any(cell != _NOTHING for cell in cells):
            lines.append(_row([account.peer.title, *cells, *_footprint(account)]))
    return "\n".join(lines)


def _cell(account: Account, found: Sequence[Comparison]) -> str:
    for each in found:
        if each.peer is account.peer:
            text = f"{statistics.median(_rates([each], 1)):.0f} (× {each.ratio:.2f})"
            return f"**{text}**" if each.ratio < 1 else text
    return _NOTHING


def _rates(comparisons: Sequence[Comparison], side: int) -> Iterator[float]:
    for comparison in comparisons:
        for pair in comparison.rounds:
            yield pair[side].requests_per_s


def _footprint(account: Account) -> list[str]:
    """Return memory and start of the last workload that ran, which is the network's."""
    memory = list(account.memory_bytes.values())[-1:]
    start = list(account.start_s.values())[-1:]
    return [
        f"{memory[0] / 1e6:.0f}" if memory else _NOTHING,
        f"{start[0]:.1f}" if start else _NOTHING,
    ]


def _losses(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return "Nothing was measured."
    lost = [_name(each) for each in comparisons if each.is_lost]
    level = [_name(each) for each in comparisons if each.is_level]
    parts = [
        f"Faster than ours in every round: {', '.join(lost) or 'none'}.",
        f"Faster in some rounds, slower in others: {', '.join(level)}." if level else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _name(comparison: Comparison) -> str:
    return (
        f"{comparison.peer.title} at {comparison.workload.model}, {comparison.connections} "
        f"(× {comparison.ratio:.2f})"
    )


def _failures(peers: Sequence[Account]) -> str:
    return "\n".join(
        f"- {each.peer.title} was not measured, or not to the end: {each.failure}"
        for each in peers
        if each.failure
    )


def _details(comparisons: Sequence[Comparison]) -> str:
    lines = [
        _row(
            [
                *("peer", "workload", "connections", "requests/s, ours", "peer", "ratio"),
                *("lowest to highest", "p50 ms, ours", "peer", "p99 ms, ours", "peer"),
                *("CPU µs/request, ours", "peer", "failed, ours", "peer"),
            ]
        ),
        _rule(15, 2),
    ]
    lines += [_row(_detail(comparison)) for comparison in comparisons]
    return "\n".join(lines)


def _detail(comparison: Comparison) -> list[str]:
    columns: list[tuple[Callable[[Sample], float], str]] = [
        (lambda sample: _latency_ms(sample, "p50_ms"), ".2f"),
        (lambda sample: _latency_ms(sample, "p99_ms"), ".2f"),
        (lambda sample: sample.cpu_us[CPU], ".0f"),
        (lambda sample: sample.failed, ".0f"),
    ]
    return [
        comparison.peer.title,
        comparison.workload.title,
        str(comparison.connections),
        *_both(comparison, lambda sample: sample.requests_per_s, ".0f"),
        f"{comparison.ratio:.2f}",
        f"{min(comparison.ratios):.2f} to {max(comparison.ratios):.2f}",
        *(text for value, form in columns for text in _both(comparison, value, form)),
    ]


def _both(comparison: Comparison, value: Callable[[Sample], float], form: str) -> list[str]:
    """Return the median of a figure over the rounds, for ours and for the peer."""
    return [
        format(statistics.median(value(pair[side]) for pair in comparison.rounds), form)
        for side in (0, 1)
    ]


def _settings(accounts: Sequence[Account]) -> str:
    lines = []
    for account in accounts:
        packages = f" ({', '.join(account.peer.packages)})" if account.peer.packages else ""
        lines.append(f"- {account.peer.title}{packages}")
        lines += [f"  - {workload.title}: {text}" for workload, text in account.settings.items()]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int, texts: int) -> str:
    """Return the line below a table's head; columns after the first `texts` hold numbers."""
    return _row(["---"] * texts + ["---:"] * (columns - texts))
