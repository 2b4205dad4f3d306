"""Counters and histograms of the server.

On the hot path a metric is a plain integer or list of integers in this process: about 2 µs per
request against 6 to 12 for the client library's objects, which `mms.telemetry.prometheus` creates
from them at scrape time.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from mms.telemetry.service_metrics import ReportedMetrics
from mms.wire.messages import Stage

#: From a response without a model to a large network on a slow machine (seconds).
DURATION_BUCKETS = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0
)  # fmt: skip
#: Stages are shorter than requests (seconds).
STAGE_BUCKETS = (
    0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 10.0,
)  # fmt: skip
BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128)
#: From an empty response to a large tensor (bytes).
SIZE_BUCKETS = (100, 1_000, 10_000, 100_000, 1_000_000, 10_000_000, 100_000_000)


class Histogram:
    """Counts of values by bucket, and their sum. Upper bounds are inclusive."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Count several values."""
        bounds, counts = self.bounds, self.counts
        for value in values:
            counts[bisect_left(bounds, value)] += 1
            self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, count of values up to it) in Prometheus' cumulative form."""
        rows = []
        count = 0
        for bound, number in zip((*self.bounds, float("inf")), self.counts, strict=True):
            count += number
            rows.append(("+Inf" if bound == float("inf") else str(float(bound)), float(count)))
        return rows


class ServableMetrics:
    """Counters of one version of one model."""

    def __init__(self, model: str, version: str) -> None:
        self.model = model
        self.version = version
        self.requests: Counter[tuple[str, int]] = Counter()
        self.duration = Histogram(DURATION_BUCKETS)
        self.queue_wait = Histogram(DURATION_BUCKETS)
        self.stages = {stage: Histogram(STAGE_BUCKETS) for stage in Stage}
        self.batch_size = Histogram(BATCH_BUCKETS)
        self.releases: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.restarts: Counter[str] = Counter()
        self.request_bytes = Histogram(SIZE_BUCKETS)
        self.response_bytes = Histogram(SIZE_BUCKETS)
        self.reported = ReportedMetrics()
        self.load_seconds = 0.0


@dataclass(frozen=True, slots=True)
class ServerGauges:
    """Current usage and limits of the server as a whole."""

    buffered_bytes: int = 0
    max_buffered_bytes: int = 0
    connections: int = 0
    max_connections: int = 0


@dataclass
class ServerMetrics:
    """Counters of requests that belong to no model, by (route, status)."""

    requests: Counter[tuple[str, int]] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    shadows: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    gauges: Callable[[], ServerGauges] = ServerGauges
