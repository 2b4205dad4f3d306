"""`make bench-compare A=... B=...`: what is different between two results, and what is noise.

A difference is marked if all rounds of one result lie beyond all rounds of the other. Of two times
four rounds that measure the same, that happens to one figure in 35 by chance.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from benchmarks.report import describe_machine
from benchmarks.result import read_document
from benchmarks.table import digits_for, number, render

#: With fewer rounds on either side, ranges part by chance too often to say anything.
_LEAST_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of a result, once for each round."""

    values: list[float]
    is_better_high: bool = False


def figures(document: dict[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Return the figures by which two results are compared, with their names."""
    for row in document["rows"]:
        where = f"{row['workload']}, {row['load']}"
        for side in row["references"]:
            yield f"{where}: ratio to {side['name']}", Figure(side["ratios"], True)
        for who, values in row["server"]["cpu_us"].items():
            yield f"{where}: CPU of {who}, µs/request", Figure(values)
    for name, life in document["lives"].items():
        yield f"{name}: start to first answer, s", Figure(life["first_answer_s"])
        yield f"{name}: worker replaced, ms", Figure(life["replaced_ms"])
        server, workers = life["memory"]["server"], life["memory"]["worker"]
        yield f"{name}: server, MB resident", Figure([each["resident_mb"] for each in server])
        yield f"{name}: worker, MB private", Figure([each["private_mb"] for each in workers])
    if document["together"]:
        together = document["together"]
        yield f"{together['models']} at once: sum of shares", Figure(together["shares"], True)


def judge(old: Figure, new: Figure) -> str:
    """Say whether the new figure is better, worse, the same within noise (""), or unknown (?)."""
    if min(len(old.values), len(new.values)) < _LEAST_ROUNDS:
        return "?"
    if min(new.values) > max(old.values):
        return "better" if old.is_better_high else "worse"
    if max(new.values) < min(old.values):
        return "worse" if old.is_better_high else "better"
    return ""


def compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return a table of what both results have, and name what only one has."""
    before, after = dict(figures(old)), dict(figures(new))
    lines = [
        [name, _show(before[name]), _show(after[name]), *_change(before[name], after[name])]
        for name in before
        if name in after
    ]
    parts = [f"A: {describe_machine(old['machine'])}", f"B: {describe_machine(new['machine'])}"]
    parts.append(render(("figure", "A", "B", "change", ""), lines, left=(0, 4)))
    for which, only in (("A", set(before) - set(after)), ("B", set(after) - set(before))):
        if only:
            parts.append(f"only in {which}: {', '.join(sorted(only))}")
    if any(line[-1] == "?" for line in lines):
        parts.append(f"? fewer than {_LEAST_ROUNDS} rounds: noise is unknown")
    return "\n\n".join(parts)


def _show(figure: Figure) -> str:
    value = statistics.median(figure.values)
    digits = digits_for(value)
    low, high = min(figure.values), max(figure.values)
    return f"{value:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def _change(old: Figure, new: Figure) -> tuple[str, str]:
    before, after = statistics.median(old.values), statistics.median(new.values)
    share = (after / before - 1) * 100 if before else None
    return (f"{number(share, 1)} %" if share is not None else ""), judge(old, new)


@click.command()
@click.argument("old", metavar="A", type=click.Path(dir_okay=False, path_type=Path))
@click.argument("new", metavar="B", type=click.Path(dir_okay=False, path_type=Path))
def main(old: Path, new: Path) -> None:
    """Compare result B with result A, each written by `make bench`."""
    click.echo(compare(read_document(old), read_document(new)))


if __name__ == "__main__":
    main()
