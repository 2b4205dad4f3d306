"""Metrics under v0.4's names: the increments, per interval, of the counters for Prometheus.

Counts are summed, times averaged. As in v0.4, a metric without samples is omitted, and what a
service reports under one of these names is part of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mms.telemetry.counters import Histogram, ServableMetrics, ServerMetrics
from mms.telemetry.service_metrics import Written
from mms.wire.messages import Stage

Source = Callable[[], Iterable[ServableMetrics]]


@dataclass(slots=True)
class Samples:
    """The samples of a quantity during an interval."""

    count: int = 0
    total: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    def add(self, value: float) -> None:
        """Record a value."""
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric of one interval.

    Attributes:
        name: v0.4's name.
        unit: CloudWatch's name of the unit.
        value: Sum or mean over the interval.
        model: Name of the model, "" if it belongs to none.
        samples: The samples behind the mean, where single values are known.
    """

    name: str
    unit: str
    value: float
    model: str = ""
    samples: Samples | None = None


#: A number of values, and their sum.
_Sum = tuple[int, float]
_NONE: _Sum = (0, 0.0)


def _sum(one: _Sum, other: _Sum, sign: int) -> _Sum:
    return one[0] + sign * other[0], one[1] + sign * other[1]


@dataclass(slots=True)
class _Totals:
    """Counts of one servable, or the differences of two of them; times in seconds."""

    all: int = 0
    client_errors: int = 0
    server_errors: int = 0
    times: tuple[_Sum, ...] = (_NONE,) * 4
    reported: dict[Written, _Sum] = field(default_factory=dict)

    def minus(self, other: _Totals) -> _Totals:
        return self._with(other, -1)

    def plus(self, other: _Totals) -> _Totals:
        return self._with(other, 1)

    def _with(self, other: _Totals, sign: int) -> _Totals:
        times = tuple(
            _sum(ours, theirs, sign) for ours, theirs in zip(self.times, other.times, strict=True)
        )
        return _Totals(
            self.all + sign * other.all,
            self.client_errors + sign * other.client_errors,
            self.server_errors + sign * other.server_errors,
            times,
            {
                key: _sum(self.reported.get(key, _NONE), other.reported.get(key, _NONE), sign)
                for key in {**self.reported, **other.reported}
            },
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
        dict(metrics.reported.written),
    )


def _count_and_sum(histogram: Histogram) -> tuple[int, float]:
    return sum(histogram.counts), histogram.total


class Counts:
    """Increments of the counters since the last `take`.

    Keeps the counters that it has seen, so that the last requests of a model that has been
    unregistered meanwhile count too.
    """

    def __init__(self, source: Source, server: ServerMetrics) -> None:
        self._source = source
        self._server = server
        self._seen: dict[ServableMetrics, _Totals] = {}
        self._routes = self._route_totals()
        self.look()

    def look(self) -> None:
        """Record which models exist."""
        for metrics in self._source():
            self._seen.setdefault(metrics, _Totals())

    def take(self) -> list[Reading]:
        """Return the increments by model since the last call."""
        self.look()
        known = set(self._source())
        models: dict[str, _Totals] = {}
        for metrics, before in list(self._seen.items()):
            now = _totals(metrics)
            added = now.minus(before)
            models[metrics.model] = models.get(metrics.model, _Totals()).plus(added)
            self._seen[metrics] = now
            if metrics not in known and not added.all:
                # Unregistered, and drained by now.
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
    found = {name: Reading(name, "Count", value, model) for name, value in counts if value}
    for name, (count, total) in zip(_TIMES, added.times, strict=True):
        if count:
            found[name] = Reading(name, "Milliseconds", 1000 * total / count, model)
    for (name, unit, is_sum), (count, total) in added.reported.items():
        if not count:
            continue
        # A service that measures its stages itself knows better than the server does.
        value = total if is_sum else total / count
        if is_sum and name in found:
            value += found[name].value
        found[name] = Reading(name, unit, value, model)
    return list(found.values())
