"""What a server costs beside its requests: start-up, memory, and the death of a worker."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.processes import memory
from benchmarks.references import Reference
from benchmarks.server import Server, serving
from benchmarks.workloads import Workload

#: Per worker. They take turns, so that each has planned its memory for a single request.
_FIRST_REQUESTS = 5


@dataclass(slots=True)
class Life:
    """What was seen of one workload's server.

    Attributes:
        ready_s: From the start of the command until it was ready; one for each start.
        first_answer_s: From there until its first prediction; one for each start.
        replaced_ms: From ``kill -9`` of a worker until another served in its place.
        fresh_worker_mb: Private megabytes of each worker before the rounds, some requests old.
        memory: Megabytes by process: of the server, each loader, each worker, after all rounds.
        references: Start-up time and memory of each reference by its name.
    """

    ready_s: list[float] = field(default_factory=list)
    first_answer_s: list[float] = field(default_factory=list)
    replaced_ms: list[float] = field(default_factory=list)
    fresh_worker_mb: list[float] = field(default_factory=list)
    memory: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    references: dict[str, dict[str, Any]] = field(default_factory=dict)


@contextlib.contextmanager
def started(workload: Workload, starts: int, life: Life) -> Iterator[Server]:
    """Start the workload's server so many times; return the last one, which has answered once."""
    for _ in range(starts - 1):
        with _started_once(workload, life):
            pass
    with _started_once(workload, life) as server:
        yield server


@contextlib.contextmanager
def _started_once(workload: Workload, life: Life) -> Iterator[Server]:
    models = f"{workload.name}={workload.archive}"
    with serving("--models", models, "--batch-size", str(workload.batch_size)) as server:
        server.ask(workload.name, workload.request)
        life.ready_s.append(server.ready_s)
        life.first_answer_s.append(server.age_s)
        yield server


def look_at_fresh_workers(life: Life, server: Server, workload: Workload) -> None:
    """Note what a worker has of its own when it has seen single requests only."""
    for _ in range(_FIRST_REQUESTS * len(server.workers())):
        server.ask(workload.name, workload.request)
    life.fresh_worker_mb = [memory(pid).private_mb for pid in server.workers()]


def look_at_memory(life: Life, server: Server, references: list[Reference]) -> None:
    """Note the memory of all processes, as they are now."""
    workers = server.workers()
    loaders = [pid for pid in server.children() if pid not in workers]
    for name, pids in (("server", [server.pid]), ("loader", loaders), ("worker", workers)):
        life.memory[name] = [asdict(memory(pid)) for pid in pids]
    for reference in references:
        life.references[reference.name] = {
            "start_s": reference.start_s,
            "memory": [asdict(memory(pid)) for pid in reference.pids],
        }


def kill_workers(life: Life, server: Server, workload: Workload, kills: int) -> None:
    """Kill workers that have served, one after the other."""
    for _ in range(kills):
        # Idle workers take turns. One that had not served yet would come back with a delay.
        for _ in server.workers():
            server.ask(workload.name, workload.request)
        life.replaced_ms.append(server.replacement_s() * 1000)
