"""Metrics under v0.4's names: what an interval has added to the counters that Prometheus scrapes.

Sums for counts, means for times. As in v0.4, a metric that nothing happened to is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mms.telemetry.counters import Histogram, ServableMetrics, ServerMetrics
from mms.wire.messages import Stage

Source = Callable[[], Iterable[ServableMetrics]]


@dataclass(slots=True)
class Samples:
    """What a quantity was found to be during an interval."""

    count: int = 0
    total: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    def add(self, value: float) -> None:
        """Note a value."""
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric of one interval.

    Attributes:
        name: v0.4's name.
        unit: CloudWatch's word for the unit.
        value: Sum or mean over the interval.
        model: Name of the model, "" for what belongs to none.
        samples: What the mean was made of, where single values are known.
    """

    name: str
    unit: str
    value: float
    model: str = ""
    samples: Samples | None = None


@dataclass(slots=True)
class _Totals:
    """Counts of one servable, or the differences of two of them; times in seconds."""

    all: int = 0
    client_errors: int = 0
    server_errors: int = 0
    times: tuple[tuple[int, float], ...] = ((0, 0.0),) * 4

    def minus(self, other: _Totals) -> _Totals:
        return self._with(other, -1)

    def plus(self, other: _Totals) -> _Totals:
        return self._with(other, 1)

    def _with(self, other: _Totals, sign: int) -> _Totals:
        times = tuple(
            (count + sign * theirs, total + sign * their_total)
            for (count, total), (theirs, their_total) in zip(self.times, other.times, strict=True)
        )
        return _Totals(
            self.all + sign * other.all,
            self.client_errors + sign * other.client_errors,
            self.server_errors + sign * other.server_errors,
            times,
        )


#: v0.4's names for the four entries of `_Totals.times`.
_TIMES = ("LatencyOverall", "LatencyPreprocess", "LatencyInference", "LatencyPostprocess")


def _totals(metrics: ServableMetrics) -> _Totals:
    stages = metrics.stages
    histograms = (
        metrics.duration,
        stages[Stage.PREPROCESS],
        stages[Stage.INFERENCE],
        stages[Stage.POSTPROCESS],
    )
    return _Totals(
        sum(metrics.requests.values()),
        sum(n for (_, status), n in metrics.requests.items() if 400 <= status < 500),
        sum(n for (_, status), n in metrics.requests.items() if status >= 500),
        tuple(_count_and_sum(histogram) for histogram in histograms),
    )


def _count_and_sum(histogram: Histogram) -> tuple[int, float]:
    return sum(histogram.counts), histogram.total


class Counts:
    """What was added to the counters since the last time.

    Keeps the counters that it has seen: of a model unregistered meanwhile, the last requests
    count too.
    """

    def __init__(self, source: Source, server: ServerMetrics) -> None:
        self._source = source
        self._server = server
        self._seen: dict[ServableMetrics, _Totals] = {}
        self._routes = self._route_totals()
        self.look()

    def look(self) -> None:
        """Note which models there are."""
        for metrics in self._source():
            self._seen.setdefault(metrics, _Totals())

    def take(self) -> list[Reading]:
        """Return what was added, by model, and begin again."""
        self.look()
        known = set(self._source())
        models: dict[str, _Totals] = {}
        for metrics, before in list(self._seen.items()):
            now = _totals(metrics)
            added = now.minus(before)
            models[metrics.model] = models.get(metrics.model, _Totals()).plus(added)
            self._seen[metrics] = now
            if metrics not in known and not added.all:
                # Unregistered, and drained since.
                del self._seen[metrics]
        readings = [r for model, added in sorted(models.items()) for r in _readings(model, added)]
        routes, self._routes = self._routes, self._route_totals()
        return readings + [
            Reading(name, "Count", now - routes[name])
            for name, now in self._routes.items()
            if now > routes[name]
        ]

    def _route_totals(self) -> dict[str, int]:
        requests = self._server.requests
        return {
            name: sum(n for (route, _), n in requests.items() if route == asked)
            for name, asked in (("PingTotal", "ping"), ("APIDescriptionTotal", "api_description"))
        }


def _readings(model: str, added: _Totals) -> list[Reading]:
    counts = (
        ("PredictionTotal", added.all),
        ("Prediction4XX", added.client_errors),
        ("Prediction5XX", added.server_errors),
    )
    return [Reading(name, "Count", value, model) for name, value in counts if value] + [
        Reading(name, "Milliseconds", 1000 * total / count, model)
        for name, (count, total) in zip(_TIMES, added.times, strict=True)
        if count
    ]
