"""Renders the counters for Prometheus at scrape, as families of its client library."""

from __future__ import annotations

import asyncio
import platform
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from mms.telemetry.counters import Histogram, ServableMetrics, ServerGauges, ServerMetrics
from mms.telemetry.service_metrics import families
from mms.version import __version__

#: Rendering takes 4 ms of the event loop with 2 models and 0.6 s with 500, and anybody may ask.
#: Prometheus asks every 15 s or more.
METRICS_AGE_S = 1.0
#: Times that rendering took for which its text is good: so it has a twentieth of the event loop.
_AGE_PER_COST = 20


@dataclass(frozen=True, slots=True)
class ServableSnapshot:
    """The gauges of one servable at this moment.

    Attributes:
        metrics: Its counters.
        state: Name of its state.
        states: Names of all states there are.
        queue_depth: Requests waiting.
        queue_limit: Most that may wait.
        in_flight: Requests in workers.
        workers: Number of workers by name of their state.
        worker_memory: Resident bytes of each worker.
    """

    metrics: ServableMetrics
    state: str
    states: Sequence[str]
    queue_depth: int
    queue_limit: int
    in_flight: int
    workers: dict[str, int]
    worker_memory: Sequence[int]


class Source(Protocol):
    """Where the exporter gets its numbers."""

    def snapshots(self) -> Iterable[ServableSnapshot]:
        """Return the state of each servable."""


class Exporter:
    """Renders everything for one scrape.

    Args:
        source: Where the gauges are read.
        server: What is counted for the whole server.
        max_age_s: How long a text is given out again before a new one is made, in seconds; longer
            where making one takes long. 0 makes one each time.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        source: Source,
        server: ServerMetrics,
        max_age_s: float = METRICS_AGE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._max_age_s = max_age_s
        self._clock = clock
        self._text = b""
        self._good_until: float | None = None
        self._preparing = asyncio.Lock()
        self._source = source
        self._server = server
        self._registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self._registry)
        self._registry.register(self)

    def render(self) -> bytes:
        """Return the text exposition format.

        Rendering never yields to the event loop, so requests that come meanwhile find the new text.
        """
        started = self._clock()
        if self._good_until is None or started >= self._good_until:
            self._text = generate_latest(self._registry)
            ended = self._clock()
            cost_s = (ended - started) * _AGE_PER_COST if self._max_age_s else 0.0
            self._good_until = ended + max(self._max_age_s, cost_s)
        return self._text

    async def fresh(self, prepare: Callable[[], Awaitable[None]]) -> bytes:
        """Return the text, after what takes time to read has been read.

        Args:
            prepare: Reads it, without holding up the event loop; called only if a new text is due.
        """
        if not self._is_due():
            return self._text
        # Whoever asks meanwhile waits for the same text.
        async with self._preparing:
            if self._is_due():
                await prepare()
            return self.render()

    def _is_due(self) -> bool:
        return self._good_until is None or self._clock() >= self._good_until

    def collect(self) -> Iterator[Metric]:
        """prometheus_client: yield every metric family."""
        snapshots = list(self._source.snapshots())
        yield from self._request_metrics(snapshots)
        yield from _histograms(snapshots)
        yield from _gauges(snapshots)
        yield from _server_gauges(self._server.gauges())
        yield from families(
            (s.metrics.model, s.metrics.version, s.metrics.reported) for s in snapshots
        )
        build = GaugeMetricFamily(
            "mms_build_info", "Always 1.", labels=["version", "python_version"]
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build

    def _request_metrics(self, snapshots: Sequence[ServableSnapshot]) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "mms_requests_total",
            "Requests answered; those for no model have an empty model label.",
            labels=["model", "version", "route", "code"],
        )
        rejected = CounterMetricFamily(
            "mms_requests_rejected_total",
            "Requests refused, each counted once, by the code of the error.",
            labels=["model", "version", "reason"],
        )
        for (route, code), count in self._server.requests.items():
            requests.add_metric(["", "", route, str(code)], count)
        for reason, count in self._server.rejected.items():
            rejected.add_metric(["", "", reason], count)
        for snapshot in snapshots:
            m = snapshot.metrics
            for (route, code), count in m.requests.items():
                requests.add_metric([m.model, m.version, route, str(code)], count)
            for reason, count in m.rejected.items():
                rejected.add_metric([m.model, m.version, reason], count)
        shadows = CounterMetricFamily(
            "mms_shadow_requests_total",
            "Copies of requests sent to a shadow version, by how its answer compared.",
            labels=["model", "version", "outcome"],
        )
        for (name, version, outcome), count in self._server.shadows.items():
            shadows.add_metric([name, version, outcome], count)
        yield requests
        yield rejected
        yield shadows
        yield _counters(
            snapshots,
            "mms_batch_release_total",
            "Batches sent to workers, by why they were sent then.",
            "reason",
            lambda m: m.releases,
        )
        yield _counters(
            snapshots,
            "mms_worker_restarts_total",
            "Workers replaced, by what ended them.",
            "reason",
            lambda m: m.restarts,
        )


def _counters(
    snapshots: Sequence[ServableSnapshot],
    name: str,
    help_: str,
    label: str,
    get: Callable[[ServableMetrics], Counter[str]],
) -> CounterMetricFamily:
    family = CounterMetricFamily(name, help_, labels=["model", "version", label])
    for snapshot in snapshots:
        m = snapshot.metrics
        for value, count in get(m).items():
            family.add_metric([m.model, m.version, value], count)
    return family


def _histograms(snapshots: Sequence[ServableSnapshot]) -> Iterator[Metric]:
    described: list[tuple[str, str, Callable[[ServableMetrics], Histogram]]] = [
        (
            "mms_request_duration_seconds",
            "From the request's head to its answer.",
            lambda m: m.duration,
        ),
        (
            "mms_queue_wait_seconds",
            "From a request's arrival in the queue to its batch's departure.",
            lambda m: m.queue_wait,
        ),
        ("mms_batch_size", "Requests per frame sent to a worker.", lambda m: m.batch_size),
        ("mms_request_bytes", "Length of request bodies.", lambda m: m.request_bytes),
        ("mms_response_bytes", "Length of answers.", lambda m: m.response_bytes),
    ]
    for name, help_, get in described:
        family = HistogramMetricFamily(name, help_, labels=["model", "version"])
        for snapshot in snapshots:
            m = snapshot.metrics
            family.add_metric([m.model, m.version], get(m).cumulative(), get(m).total)
        yield family
    stages = HistogramMetricFamily(
        "mms_stage_duration_seconds",
        "Time a batch spent in each stage of the worker.",
        labels=["model", "version", "stage"],
    )
    for snapshot in snapshots:
        m = snapshot.metrics
        for stage, histogram in m.stages.items():
            stages.add_metric(
                [m.model, m.version, stage.name.lower()], histogram.cumulative(), histogram.total
            )
    yield stages


def _server_gauges(gauges: ServerGauges) -> Iterator[Metric]:
    for name, help_, value in (
        (
            "mms_buffered_bytes",
            "Bytes of request bodies and answers held by the server.",
            gauges.buffered_bytes,
        ),
        ("mms_buffered_bytes_limit", "Most bytes that may be held.", gauges.max_buffered_bytes),
        ("mms_connections", "HTTP connections that are open.", gauges.connections),
        ("mms_connections_limit", "Most connections that may be.", gauges.max_connections),
    ):
        yield GaugeMetricFamily(name, help_, value=value)


def _gauges(snapshots: Sequence[ServableSnapshot]) -> Iterator[Metric]:
    described: list[tuple[str, str, Callable[[ServableSnapshot], float]]] = [
        ("mms_queue_depth", "Requests waiting.", lambda s: s.queue_depth),
        ("mms_queue_limit", "Most requests that may wait.", lambda s: s.queue_limit),
        ("mms_in_flight", "Requests in workers.", lambda s: s.in_flight),
        (
            "mms_model_load_seconds",
            "What loading the model took.",
            lambda s: s.metrics.load_seconds,
        ),
    ]
    for name, help_, get in described:
        family = GaugeMetricFamily(name, help_, labels=["model", "version"])
        for snapshot in snapshots:
            family.add_metric([snapshot.metrics.model, snapshot.metrics.version], get(snapshot))
        yield family
    state = GaugeMetricFamily(
        "mms_model_state", "1 for the state the model is in.", labels=["model", "version", "state"]
    )
    workers = GaugeMetricFamily(
        "mms_workers", "Workers by state.", labels=["model", "version", "state"]
    )
    memory = GaugeMetricFamily(
        "mms_worker_memory_bytes",
        "Resident memory of each worker; pages shared with its loader count in full.",
        labels=["model", "version", "worker"],
    )
    for snapshot in snapshots:
        labels = [snapshot.metrics.model, snapshot.metrics.version]
        for name in snapshot.states:
            state.add_metric([*labels, name], float(name == snapshot.state))
        for name, count in snapshot.workers.items():
            workers.add_metric([*labels, name], count)
        # Numbered from 0: a pid is nobody's business, and would make a new series of each restart.
        for number, resident in enumerate(snapshot.worker_memory):
            memory.add_metric([*labels, str(number)], resident)
    yield state
    yield workers
    yield memory
