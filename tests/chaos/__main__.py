"""``python -m tests.chaos --minutes 10``: faults in random order, under load, for so long."""

from __future__ import annotations

import random
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import click
import psutil
import uvloop

from tests.chaos.arena import Arena, open_files
from tests.chaos.faults import FAULTS, Fault, Skipped
from tests.chaos.memory import measure_memory
from tests.chaos.session import Record, run_fault
from tests.kit.waiting import until

#: More descriptors than an idle server with one model has.
_MANY_FILES = 60
_COLUMNS = ("fault", "times", "sent", "answered", "refused", "failed", "wrong", "gap ms", "note")


@click.command()
@click.option("--minutes", type=float, default=10.0, show_default=True, help="How long to go on.")
@click.option("--seed", type=int, help="Of the order and of everything random.")
@click.option("--only", multiple=True, help="Faults to inject, by name; all by default.")
@click.option("--memory", is_flag=True, help="Measure the memory of 1, 2 and 8 workers instead.")
def main(minutes: float, seed: int | None, only: tuple[str, ...], memory: bool) -> None:
    """Break a server under load, and count what became of each request."""
    with tempfile.TemporaryDirectory(prefix="mms-chaos-") as folder:
        if memory:
            uvloop.run(measure_memory(Path(folder)))
            return
        seed = secrets.randbits(32) if seed is None else seed
        click.echo(f"seed {seed}")
        chosen = [fault for fault in FAULTS if not only or fault.name in only]
        sys.exit(
            uvloop.run(_soak(Arena(Path(folder), seed, is_short=False), chosen, minutes, seed))
        )


async def _soak(arena: Arena, faults: list[Fault], minutes: float, seed: int) -> int:
    records = {fault.name: Record() for fault in faults}
    order = _endless(faults, seed)
    found: list[str] = []
    try:
        await arena.start()
        first = _size(arena)
        end = time.monotonic() + minutes * 60
        while time.monotonic() < end:
            await _once(arena, next(order), records)
        # The server closes what its clients have closed a moment later.
        await until(lambda: open_files(arena.server.pid) < _MANY_FILES, what="connections close")
        found.append(f"server process: {first} at the beginning, {_size(arena)} at the end")
        await arena.stop()
    except (AssertionError, OSError) as error:
        found.append(f"the run ended early: {error}")
        records[faults[0].name].problems.append(str(error))
    finally:
        arena.clean_up()
    _print_table(records)
    bugs = arena.server.bugs()
    for line in [*found, *(f"in the log: {bug}" for bug in bugs)]:
        click.echo(line)
    if any(record.problems for record in records.values()) or bugs:
        click.echo(arena.server.log()[-20_000:], err=True)
        return 1
    click.echo("nothing was lost")
    return 0


def _endless(faults: list[Fault], seed: int) -> Iterator[Fault]:
    """Return all faults in random order, again and again."""
    source = random.Random(seed)
    while True:
        yield from source.sample(faults, len(faults))


async def _once(arena: Arena, fault: Fault, records: dict[str, Record]) -> None:
    """Have one fault happen, and see that the server is fit for another.

    Raises:
        AssertionError: It is not.
    """
    record = records[fault.name]
    known = len(record.problems)
    try:
        await run_fault(arena, fault, record)
    except Skipped as reason:
        record.notes.append(f"skipped: {reason}")
    for problem in record.problems[known:]:
        click.echo(f"{fault.name}: {problem}")
    if len(record.problems) > known:
        await arena.mend()


def _size(arena: Arena) -> str:
    process = psutil.Process(arena.server.pid)
    resident = process.memory_info().rss >> 20
    return f"{resident} MB, {open_files(process.pid)} open files"


def _print_table(records: dict[str, Record]) -> None:
    rows = [_COLUMNS, *(_row(name, record) for name, record in records.items())]
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    for row in rows:
        cells = [
            cell.ljust(width) if i in (0, len(widths) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def _row(name: str, record: Record) -> tuple[str, ...]:
    tally = record.tally
    counts = (
        record.times,
        tally.sent,
        tally.answered,
        tally.refused,
        tally.failed,
        tally.wrong,
        round(tally.longest_gap_s * 1000),
    )
    note = record.notes[-1] if record.notes else ""
    return (name, *map(str, counts), f"{record.seconds:.0f} s; {note}")


if __name__ == "__main__":
    main()
