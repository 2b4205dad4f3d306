"""The result of a run as a document: figures of all rounds, machine, versions and commit."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import subprocess
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from benchmarks.client import Sample
from benchmarks.processes import ROOT, BenchmarkError
from benchmarks.rounds import SERVER, Plan, Row, ratio
from benchmarks.workloads import Workload
from mms.config.resources import usable_cores
from mms.version import __version__
from tests.kit.load.schedule import percentiles

#: Raised when the document changes, so that results are only compared with their like.
FORMAT = 1
_PACKAGES = ("aiohttp", "uvloop", "mxnet", "numpy", "orjson")


def describe_machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _processor(),
        "cores": usable_cores(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release()}",
        # Of others: nothing of ours runs yet.
        "load_before": os.getloadavg()[0],
        "python": platform.python_version(),
        "mxnet-model-server": __version__,
        **{package: version(package) for package in _PACKAGES},
        "commit": _commit(),
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "--no-optional-locks", "describe", "--always", "--dirty", "--exclude=*"]
    with contextlib.suppress(OSError):
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip() or "unknown"
    return "unknown"


def describe_row(workload: Workload, row: Row) -> dict[str, Any]:
    """Return a row: the server's figures, and each reference's with its ratios."""
    own = row.samples[SERVER]
    return {
        "workload": workload.name,
        "batch_size": workload.batch_size,
        "load": str(row.level),
        "connections": row.level.connections,
        "share": row.level.share,
        SERVER: _describe_side(own),
        "references": [
            {
                "name": name,
                **_describe_side(samples),
                "ratios": [ratio(row.level, *pair) for pair in zip(own, samples, strict=True)],
            }
            for name, samples in row.samples.items()
            if name != SERVER
        ],
    }


def _describe_side(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return latencies of all rounds together, and everything else as a list of rounds."""
    latencies = array("d")
    for sample in samples:
        latencies.extend(sample.latencies)
    return {
        "requests": len(latencies),
        **percentiles(latencies),
        "medians_ms": [percentiles(sample.latencies)["p50_ms"] for sample in samples],
        "requests_per_s": [sample.requests_per_s for sample in samples],
        "offered_per_s": _known(sample.offered_per_s for sample in samples),
        "cpu_us": {name: [sample.cpu_us[name] for sample in samples] for name in samples[0].cpu_us},
        "client_cpu": _known(sample.client_cpu for sample in samples),
        "client_lag_ms": _known(sample.client_lag_ms for sample in samples),
        "mean_batch": _known(sample.batch_size for sample in samples),
    }


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def make_document(
    machine: dict[str, Any],
    plan: Plan,
    rows: list[dict[str, Any]],
    lives: dict[str, Any],
    together: dict[str, Any] | None,
) -> dict[str, Any]:
    """Put a result together."""
    return {
        "format": FORMAT,
        "machine": machine,
        "plan": asdict(plan),
        "rows": rows,
        "lives": lives,
        "together": together,
    }


def write_document(document: dict[str, Any], path: Path) -> None:
    """Write a result whole, or leave what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        staging.write_text(json.dumps(document, indent=2) + "\n")
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def read_document(path: Path) -> dict[str, Any]:
    """Read a result.

    Raises:
        BenchmarkError: The file is none of this format.
    """
    try:
        document = json.loads(path.read_text())
    except OSError as error:
        raise BenchmarkError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise BenchmarkError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise BenchmarkError(f"{path} is no result of this version of the benchmarks")
    return document
