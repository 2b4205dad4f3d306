"""What the server is compared with: the same work with nothing around it, in the same run."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from benchmarks.client import Demand, Request, Sample, clock_of, measure
from benchmarks.processes import read_line, start, stopping
from benchmarks.shared_queue import make_queue
from mms.config.resources import usable_cores

_START_LIMIT_S = 120.0
_TASK_LIMIT_S = 300.0
#: From handing out a task until all processes begin with it together.
_LEAD_S = 0.02


class Reference(Protocol):
    """Something to compare with.

    Attributes:
        name: What it is.
        start_s: From its start until it had answered once.
        pids: Its processes.
    """

    name: str
    start_s: float
    pids: list[int]

    def measure(self, demand: Demand) -> Sample:
        """Have it work for a while, and return what came of it."""


class BareHttp:
    """A process that speaks HTTP, asked by the same client as the server."""

    def __init__(self, name: str, pid: int, url: str, request: Request, start_s: float) -> None:
        self.name = name
        self.start_s = start_s
        self.pids = [pid]
        self._url = url
        self._request = request

    def measure(self, demand: Demand) -> Sample:
        """Ask it."""
        return measure(self._url, self._request, demand, {"reference": clock_of(self.pids)})


@contextlib.contextmanager
def bare_http(name: str, module: str, request: Request) -> Iterator[BareHttp]:
    """Start a module that prints its port."""
    started = time.monotonic()
    with stopping(start(module)) as process:
        port = read_line(process, _START_LIMIT_S)
        start_s = time.monotonic() - started
        yield BareHttp(name, process.pid, f"http://127.0.0.1:{port}/", request, start_s)


class BareModel:
    """Processes that run an archive's service in a loop, one for each core.

    Args:
        name: What it is.
        processes: The processes; they are warm.
        batch_size: Most requests of a batch.
        start_s: What the first of them took to answer once.
    """

    def __init__(
        self,
        name: str,
        processes: list[subprocess.Popen[bytes]],
        batch_size: int,
        start_s: float,
    ) -> None:
        self.name = name
        self.start_s = start_s
        self.pids = [process.pid for process in processes]
        self._processes = processes
        self._batch_size = batch_size

    def measure(self, demand: Demand) -> Sample:
        """Run what the server would.

        In a closed loop, with as many processes as it has clients to keep busy, and with the
        batches that come of sharing these clients out. In an open loop, all processes share the
        same arrivals.
        """
        processes, batch_size = self._processes, self._batch_size
        if demand.rate is None:
            connections = demand.level.connections
            processes = processes[:connections]
            batch_size = min(batch_size, connections // len(processes))
        with tempfile.TemporaryDirectory(prefix="mms-bench-") as name:
            folder = Path(name)
            make_queue(folder / "queue")
            task = {
                "batch_size": batch_size,
                "start_at": time.monotonic() + _LEAD_S,
                "warm_up_s": demand.warm_up_s,
                "seconds": demand.seconds,
                "rate": demand.rate,
                "seed": demand.seed,
                "queue": str(folder / "queue"),
                "processes": len(processes),
            }
            return _sum_up(_run(processes, task, folder))


def _run(
    processes: list[subprocess.Popen[bytes]], task: dict[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """Set all processes the task, and return what each came to, with its latencies."""
    files = [folder / str(process.pid) for process in processes]
    for process, file in zip(processes, files, strict=True):
        assert process.stdin is not None  # noqa: S101 - it was started with a pipe
        process.stdin.write(json.dumps({**task, "latencies": str(file)}).encode() + b"\n")
        process.stdin.flush()
    results = [json.loads(read_line(process, _TASK_LIMIT_S)) for process in processes]
    return [
        {**result, "latencies": array("d", file.read_bytes())}
        for result, file in zip(results, files, strict=True)
    ]


def _sum_up(results: list[dict[str, Any]]) -> Sample:
    latencies = array("d")
    for result in results:
        latencies.extend(result["latencies"])
    answered = sum(result["answered"] for result in results)
    return Sample(
        requests_per_s=sum(result["requests_per_s"] for result in results),
        latencies=latencies,
        cpu_us={"reference": sum(result["cpu_s"] for result in results) / answered * 1e6},
    )


@contextlib.contextmanager
def bare_model(name: str, folder: Path, batch_size: int) -> Iterator[BareModel]:
    """Start processes for the service of an unpacked archive, with one compute thread each."""
    with contextlib.ExitStack() as stack:
        processes, starts = [], []
        for _ in range(usable_cores()):
            started = time.monotonic()
            process = start(
                "benchmarks.bare_model",
                *(str(folder), str(batch_size)),
                stdin=subprocess.PIPE,
                environment={"OMP_NUM_THREADS": "1"},
            )
            stack.enter_context(stopping(process))
            read_line(process, _START_LIMIT_S)
            starts.append(time.monotonic() - started)
            read_line(process, _START_LIMIT_S)
            processes.append(process)
        yield BareModel(name, processes, batch_size, starts[0])
