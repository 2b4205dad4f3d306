"""Put load on something that speaks HTTP, and see what it costs whom."""

from __future__ import annotations

import contextlib
import json
import subprocess
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import BenchmarkError, cpu_seconds, start, stopping

#: Connections of an open loop. Fewer than a server queues, so that overload shows as latency.
OPEN_LOOP_CONNECTIONS = 64
_LIMIT_S = 300.0


@dataclass(frozen=True, slots=True)
class Level:
    """How hard something is asked.

    Attributes:
        connections: Of a closed loop.
        share: Of the server's capacity, for an open loop; None is a closed one.
    """

    connections: int = OPEN_LOOP_CONNECTIONS
    share: float | None = None

    def __str__(self) -> str:
        if self.share is not None:
            return f"{self.share * 100:g} % of capacity"
        return f"{self.connections} connection{'s' * (self.connections > 1)}"


@dataclass(frozen=True, slots=True)
class Demand:
    """One run: how hard, for how long, and in an open loop when exactly.

    Attributes:
        level: How hard.
        warm_up_s: Seconds of load that do not count.
        seconds: Seconds of load that do.
        rate: Requests per second of an open loop; None in a closed one.
        seed: Of the open loop's random times.
    """

    level: Level
    warm_up_s: float
    seconds: float
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run came to.

    Attributes:
        requests_per_s: Answered right.
        latencies: Seconds, of every request that counts.
        cpu_us: Processor time per request, in microseconds, by who used it.
        offered_per_s: Meant to be sent, in an open loop.
        client_cpu: Share of a core that the client used, where there is one.
        client_lag_ms: 99th percentile of how late the client itself sent, in an open loop.
        batch_size: Mean number of requests that went to a worker together.
        answered: All answers, with those that do not count.
        failed: Wrong answers and lost connections, of all.
    """

    requests_per_s: float
    latencies: array[float]
    cpu_us: Mapping[str, float]
    offered_per_s: float | None = None
    client_cpu: float | None = None
    client_lag_ms: float | None = None
    batch_size: float | None = None
    answered: int = 0
    failed: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent, and a part of every right answer."""

    content_type: str
    body: bytes
    answer: str = ""


class RunningLoad:
    """A load generator that has just been started."""

    def __init__(
        self, url: str, process: subprocess.Popen[bytes], latencies: Path, tolerates: bool
    ) -> None:
        self._url = url
        self._tolerates = tolerates
        self._process = process
        self._latencies = latencies

    def result(self) -> dict[str, Any]:
        """Wait for the end; return what was printed, ``latencies`` as an array of seconds.

        Raises:
            BenchmarkError: The load could not be put on, or was not answered well.
        """
        try:
            output, _ = self._process.communicate(timeout=_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{self._url}: no end after {_LIMIT_S:g} s") from None
        if self._process.returncode:
            raise BenchmarkError(f"{self._url}: the load generator failed; see above")
        result: dict[str, Any] = json.loads(output)
        if result["failed"] and not self._tolerates:
            raise BenchmarkError(
                f"{self._url}: {result['failed']} of {result['answered']} requests failed; "
                f"the first answer: {result['first_failure']}"
            )
        return {**result, "latencies": array("d", self._latencies.read_bytes())}


@contextlib.contextmanager
def putting_load(
    url: str, request: Request, demand: Demand, tolerates: bool = False
) -> Iterator[RunningLoad]:
    """Start the load generator; it has ended afterwards.

    Args:
        url: Where to.
        request: What is sent.
        demand: How hard, and for how long.
        tolerates: Whether failed requests are counted, instead of ending the run.
    """
    with tempfile.TemporaryDirectory(prefix="mms-bench-") as folder:
        body, latencies = Path(folder) / "body", Path(folder) / "latencies"
        body.write_bytes(request.body)
        args = [url, str(demand.level.connections), str(demand.seconds)]
        args += [request.content_type, str(body), "--answer", request.answer]
        args += ["--warm-up", str(demand.warm_up_s), "--latencies", str(latencies)]
        if demand.rate is not None:
            args += ["--rate", str(demand.rate), "--seed", str(demand.seed)]
        if tolerates:
            args.append("--reconnects")
        with stopping(start("tests.kit.load", *args)) as process:
            yield RunningLoad(url, process, latencies, tolerates)


#: Processor time used so far, in seconds, by who used it.
Clocks = Mapping[str, Callable[[], float]]


def clock_of(pids: Sequence[int]) -> Callable[[], float]:
    """Return the clock of processes that are all there during a run."""
    return lambda: cpu_seconds(pids)


def measure(
    url: str, request: Request, demand: Demand, clocks: Clocks, tolerates: bool = False
) -> Sample:
    """Put load on a URL, and sum up.

    Args:
        url: Where to.
        request: What is sent.
        demand: How hard, and for how long.
        clocks: Of those who answer.
        tolerates: Whether failed requests are counted, instead of ending the run.
    """
    before = {name: clock() for name, clock in clocks.items()}
    with putting_load(url, request, demand, tolerates) as load:
        result = load.result()
    used = {name: clock() - before[name] for name, clock in clocks.items()}
    answered = result["answered"]
    return Sample(
        requests_per_s=result["requests_per_s"],
        latencies=result["latencies"],
        cpu_us={name: seconds / answered * 1e6 for name, seconds in used.items()},
        offered_per_s=result.get("offered_per_s"),
        client_cpu=result["client_cpu"],
        client_lag_ms=result.get("client_lag_p99_ms"),
        answered=answered,
        failed=result["failed"],
    )
