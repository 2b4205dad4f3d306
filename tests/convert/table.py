"""Convert every network of the list and compare: ``python -m tests.convert.table OUTPUT``.

Writes a table in Markdown to OUTPUT.md and the same as JSON to OUTPUT.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mms.archive.candidates import Agreement
from mms.convert.agreement import compare, reason_against, task_of
from mms.convert.convert import convert
from mms.errors import MMSError
from tests.convert.case import Case
from tests.convert.engines import ENGINES, open_network
from tests.convert.networks import NETWORKS


class Row(msgspec.Struct):
    """What became of one network.

    Attributes:
        name: Its name.
        reason: Why it was not converted; "" if it was.
        tail: The operators because of which it was cut.
        agreements: By engine.
        refused: Why the engine's answers are refused, by engine.
        seconds: Time that making, converting and comparing took.
    """

    name: str
    reason: str = ""
    tail: list[str] = []
    agreements: dict[str, Agreement] = {}
    refused: dict[str, str] = {}
    seconds: float = 0.0


def measure(case: Case) -> Row:
    """Convert one network and run it on both engines."""
    row, start = Row(case.name), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            _compare(case, Path(folder), row)
        except MMSError as error:
            row.reason = str(error)
    row.seconds = round(time.monotonic() - start, 1)
    return row


def _compare(case: Case, folder: Path, row: Row) -> None:
    made = case.make()
    expected = [made.run(batch) for batch in made.batches]
    converted = convert(made.traced, folder, "net")
    row.tail = list(converted.tail.operators) if converted.tail else []
    task = task_of(expected[0])
    for engine in ENGINES:
        try:
            network = open_network(engine, converted)
            got = [network.run(batch) for batch in made.batches]
            agreement = compare(expected, got, task, "f32")
        except Exception as error:  # noqa: BLE001 - engines raise what they like
            row.refused[engine] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            continue
        row.agreements[engine] = agreement
        if reason := reason_against(agreement, "f32", 1.0):
            row.refused[engine] = reason


def markdown(rows: list[Row]) -> Iterator[str]:
    """Return the lines of the table."""
    yield "| network | compared | onnxruntime: rows, largest error | openvino | on MXNet |"
    yield "| --- | --- | --- | --- | --- |"
    for row in rows:
        if row.reason:
            yield f"| {row.name} | | not converted: {row.reason} | | all |"
            continue
        cells = [_cell(row, engine) for engine in ENGINES]
        task = next((a.task for a in row.agreements.values()), "")
        yield f"| {row.name} | {task} | {' | '.join(cells)} | {', '.join(row.tail)} |"


def _cell(row: Row, engine: str) -> str:
    if reason := row.refused.get(engine):
        return f"refused: {reason.partition('. ')[0][:120]}"
    agreement = row.agreements[engine]
    return f"{agreement.score:.0%} of {agreement.rows}, {agreement.max_error:.1e}"


def main(output: str, *names: str) -> None:
    """Measure the networks of these names, or all, and write the table."""
    warnings.simplefilter("ignore")
    rows = []
    for name in names or NETWORKS:
        rows.append(measure(NETWORKS[name]))
        sys.stderr.write(f"{name}: {rows[-1].seconds} s\n")
    document: Any = msgspec.to_builtins(rows)
    Path(f"{output}.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    text = "\n".join(["# Networks that are converted", "", *markdown(rows), ""])
    Path(f"{output}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
