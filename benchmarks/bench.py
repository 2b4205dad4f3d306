"""`make bench`: what serving costs over the same work with nothing around it, in one run."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from benchmarks.life import (
    Life,
    kill_workers,
    look_at_fresh_workers,
    look_at_memory,
    started,
)
from benchmarks.processes import ROOT
from benchmarks.report import report
from benchmarks.result import describe_machine, describe_row, make_document, write_document
from benchmarks.rounds import Plan, take_turns
from benchmarks.together import measure_together
from benchmarks.workloads import WORKLOADS, Archives, Workload

_FULL = Plan(rounds=4, seconds=1.5, warm_up_s=0.5, starts=3, kills=5)
_QUICK = Plan(rounds=1, seconds=0.5, warm_up_s=0.1, starts=1, kills=1)
#: Asked at once, too: a model that needs all cores, and one that needs next to nothing.
_TOGETHER = ("crepe", "noop")
_INTERRUPTED_STATUS = 130
_BUILD = ROOT / "build"
_archive = click.Path(dir_okay=False, resolve_path=True, path_type=Path)


@click.command(context_settings={"show_default": True, "max_content_width": 100})
@click.option(
    "--workload", "names", multiple=True, type=click.Choice(list(WORKLOADS)), help="[default: all]"
)
@click.option(
    "--quick", is_flag=True, help="One short round: does it work? The figures mean little."
)
@click.option("--rounds", type=click.IntRange(min=1), help=f"[default: {_FULL.rounds}]")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    help=f"Of load that counts, each time.  [default: {_FULL.seconds:g}]",
)
@click.option("--output", type=click.Path(path_type=Path), default=_BUILD / "bench.json")
@click.option("--crepe", type=_archive, default=_BUILD / "character_cnn.model")
@click.option("--int8", type=_archive, default=_BUILD / "int8" / "character_cnn.model")
@click.option("--image", type=_archive, default=_BUILD / "image_net.model")
def main(
    names: tuple[str, ...],
    quick: bool,
    rounds: int | None,
    seconds: float | None,
    output: Path,
    crepe: Path,
    int8: Path,
    image: Path,
) -> None:
    """Measure the server against its references, and write the result as JSON."""
    plan = _QUICK if quick else _FULL
    plan = dataclasses.replace(plan, rounds=rounds or plan.rounds, seconds=seconds or plan.seconds)
    # As Ctrl-C does: every process is stopped on the way out.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="mms-bench-") as folder:
            archives = Archives(crepe, int8, image)
            chosen = [WORKLOADS[name](archives, Path(folder)) for name in names or list(WORKLOADS)]
            document = run(chosen, plan, _say)
    except KeyboardInterrupt:
        click.echo(f"interrupted; {output} is as it was", err=True)
        sys.exit(_INTERRUPTED_STATUS)
    write_document(document, output)
    click.echo(f"{report(document)}\n\nwritten to {output}")


def run(workloads: Sequence[Workload], plan: Plan, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure workloads, and return the result."""
    machine = describe_machine()
    rows: list[dict[str, Any]] = []
    lives: dict[str, Any] = {}
    for workload in workloads:
        life = Life()
        say(f"{workload.name}: starting")
        with contextlib.ExitStack() as stack:
            references = [
                (stack.enter_context(comparison.start()), comparison.levels)
                for comparison in workload.comparisons
            ]
            server = stack.enter_context(started(workload, plan.starts, life))
            look_at_fresh_workers(life, server, workload)
            measured = take_turns(workload, server, references, plan, say)
            look_at_memory(life, server, [reference for reference, _ in references])
            say(f"{workload.name}: killing workers")
            kill_workers(life, server, workload, plan.kills)
        rows += [describe_row(workload, row) for row in measured]
        lives[workload.name] = asdict(life)
    both = [workload for workload in workloads if workload.name in _TOGETHER]
    together = measure_together(both, plan, say) if len(both) == len(_TOGETHER) else None
    return make_document(machine, plan, rows, lives, together)


def _say(what: str) -> None:
    click.echo(what, err=True)


if __name__ == "__main__":
    main()
