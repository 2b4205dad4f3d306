"""Render the counters for Prometheus at scrape time, as its client library's metric families."""

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

#: Rendering takes 4 ms of the event loop with 2 models and 0.6 s with 500, and any client may
#: request it. Prometheus scrapes every 15 s or more.
METRICS_AGE_S = 1.0
#: A rendered text is reused for this many times its rendering time, which limits rendering to a
#: twentieth of the event loop.
_AGE_PER_COST = 20


@dataclass(frozen=True, slots=True)
class ServableSnapshot:
    """The current gauges of one servable.

    Attributes:
        metrics: Its counters.
        state: Name of its state.
        states: Names of all possible states.
        queue_depth: Queued requests.
        queue_limit: Maximum number of queued requests.
        in_flight: Requests in workers.
        workers: Number of workers by name of state.
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
    """The source of the exporter's gauges."""

    def snapshots(self) -> Iterable[ServableSnapshot]:
        """Return the state of each servable."""


class Exporter:
    """Renders all metrics for a scrape.

    Args:
        source: Source of the gauges.
        server: Counters of the whole server.
        max_age_s: How long a rendered text is reused, in seconds; longer where rendering is slow.
            0 renders it each time.
        clock: Monotonic time in seconds.
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

        Rendering never yields to the event loop, so requests that arrive meanwhile get the new
        text.
        """
        started = self._clock()
        if self._good_until is None or started >= self._good_until:
            self._text = generate_latest(self._registry)
            ended = self._clock()
            cost_s = (ended - started) * _AGE_PER_COST if self._max_age_s else 0.0
            self._good_until = ended + max(self._max_age_s, cost_s)
        return self._text

    async def fresh(self, prepare: Callable[[], Awaitable[None]]) -> bytes:
        """Return the text, rendered again after `prepare` if it is too old.

        Args:
            prepare: Reads values that are slow to obtain, without blocking the event loop; called
                only before the text is rendered.
        """
        if not self._is_due():
            return self._text
        # Concurrent callers wait for the same text.
        async with self._preparing:
            if self._is_due():
                await prepare()
            return self.render()

    def _is_due(self) -> bool:
        return self._good_until is None or self._clock() >= self._good_until

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family (prometheus_client's collector interface)."""
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
            "Requests by status; the model label is empty for requests without a model.",
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
            "Requests copied to a shadow version, by how its response compared.",
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
            "Batches sent to workers, by what released them.",
            "reason",
            lambda m: m.releases,
        )
        yield _counters(
            snapshots,
            "mms_worker_restarts_total",
            "Workers replaced, by reason.",
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
            "Time from a request's head to its response.",
            lambda m: m.duration,
        ),
        (
            "mms_queue_wait_seconds",
            "Time from a request's arrival in the queue to the dispatch of its batch.",
            lambda m: m.queue_wait,
        ),
        ("mms_batch_size", "Requests per frame sent to a worker.", lambda m: m.batch_size),
        ("mms_request_bytes", "Size of request bodies.", lambda m: m.request_bytes),
        ("mms_response_bytes", "Size of response bodies.", lambda m: m.response_bytes),
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
            "Bytes of request and response bodies held by the server.",
            gauges.buffered_bytes,
        ),
        ("mms_buffered_bytes_limit", "Limit of mms_buffered_bytes.", gauges.max_buffered_bytes),
        ("mms_connections", "Open HTTP connections.", gauges.connections),
        ("mms_connections_limit", "Limit of mms_connections.", gauges.max_connections),
    ):
        yield GaugeMetricFamily(name, help_, value=value)


def _gauges(snapshots: Sequence[ServableSnapshot]) -> Iterator[Metric]:
    described: list[tuple[str, str, Callable[[ServableSnapshot], float]]] = [
        ("mms_queue_depth", "Queued requests.", lambda s: s.queue_depth),
        ("mms_queue_limit", "Limit of mms_queue_depth.", lambda s: s.queue_limit),
        ("mms_in_flight", "Requests in workers.", lambda s: s.in_flight),
        (
            "mms_model_load_seconds",
            "Time that loading the model took.",
            lambda s: s.metrics.load_seconds,
        ),
    ]
    for name, help_, get in described:
        family = GaugeMetricFamily(name, help_, labels=["model", "version"])
        for snapshot in snapshots:
            family.add_metric([snapshot.metrics.model, snapshot.metrics.version], get(snapshot))
        yield family
    state = GaugeMetricFamily(
        "mms_model_state", "1 for the model's current state.", labels=["model", "version", "state"]
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
        # Numbered from 0: a pid is private, and would start a new series on each restart.
        for number, resident in enumerate(snapshot.worker_memory):
            memory.add_metric([*labels, str(number)], resident)
    yield state
    yield workers
    yield memory
