"""`make bench-settings`: what the settings of workers, threads and batches do.

Servers that differ in nothing but these settings serve the same model and take turns; the first of
each study is what the others are compared with.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from benchmarks.client import Demand, Level, Request
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.report import describe_machine
from benchmarks.result import describe_machine as machine
from benchmarks.server import Server, serving
from benchmarks.table import render
from mms.archive.reader import open_archive
from mms.config.resources import usable_cores
from mms.export.package import export_model
from tests.kit.load.schedule import percentiles

_SERVICES = Path(__file__).parent / "services"
_CREPE = ROOT / "build" / "character_cnn.model"
_WARM_UP_S = 0.5


@dataclass(frozen=True, slots=True)
class Study:
    """One model, served with different settings.

    Attributes:
        title: What is asked.
        archive: The model.
        request: What is sent.
        variants: Arguments of the command, by what they are called.
        connections: Of the closed loops.
    """

    title: str
    archive: Path
    request: Request
    variants: dict[str, tuple[str, ...]]
    connections: tuple[int, ...]


def threads(crepe: Path, folder: Path) -> Study:
    """The character CNN with the same cores as workers, as threads, and taken twice."""
    archive = open_archive(crepe, folder)
    sample = archive.manifest.serving.sample
    if sample is None:
        raise BenchmarkError(f"{crepe} has no sample request")
    cores = usable_cores()
    batching = ("--batch-size", "8")
    variants: dict[str, tuple[str, ...]] = {
        f"{workers} x {each}": ("--workers", str(workers), "--threads", str(each), *batching)
        for workers, each in (
            (cores, 1),
            (1, cores),
            (1, 1),
            (2 * cores, 1),
            (cores, cores),
        )
    }
    request = Request(sample.content_type, (archive.folder / sample.file).read_bytes())
    return Study("Crepe, workers x threads", crepe, request, variants, (1, 16, 64))


def batches(_: Path, folder: Path) -> Study:
    """A model that takes 5 ms for any batch, with each way to gather one."""
    source = folder / "fixed"
    source.mkdir()
    signature = {
        "inputs": [{"data_name": "data", "data_shape": [0]}],
        "input_type": "application/json",
        "outputs": [{"data_name": "ok", "data_shape": [0]}],
        "output_type": "application/json",
    }
    (source / "signature.json").write_text(json.dumps(signature))
    archive = export_model("fixed", source, _SERVICES / "fixed_cost.py", folder).path
    common = ("--workers", "1", "--batch-size", "32")
    variants: dict[str, tuple[str, ...]] = {
        "greedy": common,
        "max_batch_delay 5": (*common, "--max-batch-delay", "5"),
        "linger 2": (*common, "--linger", "2"),
        "linger 5": (*common, "--linger", "5"),
    }
    request = Request("application/json", b"[1, 2]")
    return Study("5 ms for any batch, batch_size 32", archive, request, variants, (1, 8, 16, 32))


@click.command(context_settings={"show_default": True})
@click.option("--crepe", type=click.Path(exists=True, path_type=Path), default=_CREPE)
@click.option("--rounds", type=click.IntRange(min=1), default=4)
@click.option("--seconds", type=click.FloatRange(min=0.1), default=1.5)
def main(crepe: Path, rounds: int, seconds: float) -> None:
    """Compare settings, and print tables."""
    click.echo(describe_machine(machine()))
    with tempfile.TemporaryDirectory(prefix="mms-bench-") as name:
        for make in (threads, batches):
            study = make(crepe, Path(name))
            click.echo(f"\n{study.title}\n\n{render(*_measure(study, rounds, seconds), left=(1,))}")


def _measure(
    study: Study, rounds: int, seconds: float
) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Have the variants take turns; return the headings and rows of a table."""
    measured: dict[tuple[int, str], list[tuple[float, float, float]]] = {}
    with contextlib.ExitStack() as stack:
        servers = [
            (name, stack.enter_context(serving("--models", f"m={study.archive}", *args)))
            for name, args in study.variants.items()
        ]
        for number in range(rounds):
            for connections in study.connections:
                for name, server in servers if number % 2 == 0 else reversed(servers):
                    row = _ask(server, study.request, connections, seconds)
                    measured.setdefault((connections, name), []).append(row)
    first = next(iter(study.variants))
    rows: list[Sequence[str]] = []
    for connections in study.connections:
        base = measured[connections, first]
        for name in study.variants:
            samples = measured[connections, name]
            ratio = statistics.median(
                ours[0] / theirs[0] for ours, theirs in zip(samples, base, strict=True)
            )
            rate, p50, p99 = (statistics.median(column) for column in zip(*samples, strict=True))
            rows.append(
                (str(connections), name, f"{rate:.0f}", f"{ratio:.2f}", f"{p50:.3g}", f"{p99:.3g}")
            )
    return ("connections", "settings", "req/s", "ratio", "p50 ms", "p99 ms"), rows


def _ask(
    server: Server, request: Request, connections: int, seconds: float
) -> tuple[float, float, float]:
    """Return requests per second, and two percentiles of the latency in milliseconds."""
    sample = server.measure("m", request, Demand(Level(connections), _WARM_UP_S, seconds))
    found = percentiles(sample.latencies)
    return sample.requests_per_s, found["p50_ms"], found["p99_ms"]


if __name__ == "__main__":
    main()
