"""Metrics reported by services (``context.metrics``, ``mms.metric``), kept in the server.

A worker's report has the name, value, unit and dimensions of each metric. For Prometheus, values
are converted to base units, as it recommends; ``--metrics-write-to`` writes them as reported.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.metrics_core import Metric

#: Maximum number of series per version of a model; a dimension with a value per request would
#: otherwise fill the server's memory.
MAX_SERIES = 200
_MAX_DIMENSIONS = 10
_MAX_TEXT = 100
#: Dimensions that 1.x added to every metric; redundant with the model and version labels.
_REDUNDANT = {"ModelName", "Level"}
#: Suffix and factor to the base unit.
_UNITS = {
    "Milliseconds": ("_seconds", 1e-3),
    "Seconds": ("_seconds", 1.0),
    "Bytes": ("_bytes", 1.0),
    "Kilobytes": ("_bytes", 1e3),
    "Megabytes": ("_bytes", 1e6),
    "Gigabytes": ("_bytes", 1e9),
    "Percent": ("_ratio", 1e-2),
}
#: What CloudWatch accepts among those that handlers may use; it refuses all data for one other.
_WRITTEN_UNITS = {*_UNITS, "Count"}
_Series = tuple[str, str, tuple[tuple[str, str], ...]]
#: Name and unit as reported, and whether values are summed rather than averaged.
Written = tuple[str, str, bool]


class ReportedMetrics:
    """The series reported by one version of a model.

    Attributes:
        dropped: Number of malformed entries, and of those beyond `MAX_SERIES`.
        written: Number and sum of all values under each name as reported, whatever the dimensions.
    """

    def __init__(self) -> None:
        self._values: dict[_Series, float] = {}
        self._counts: dict[_Series, int] = {}
        self.dropped = 0
        self.written: dict[Written, tuple[int, float]] = {}

    def take(self, report: Any) -> None:
        """Record a worker's report; malformed entries are counted in `dropped`.

        Args:
            report: ``[[name, value, unit, is counter, [[dimension, value], ...]], ...]``.
        """
        for entry in report if isinstance(report, list) else [report]:
            series, value = _read(entry)
            if series is None or (series not in self._values and len(self._values) >= MAX_SERIES):
                self.dropped += 1
                continue
            # Times are summed, so that a mean can be computed; of sizes and ratios the last counts.
            adds_up = series[0] in ("counter", "summary")
            self._values[series] = value + (self._values.get(series, 0.0) if adds_up else 0.0)
            self._counts[series] = self._counts.get(series, 0) + 1
            name, raw_value, unit, is_counter, _ = entry
            # A name becomes a file's.
            name = re.sub(r"[^\w.-]", "_", str(name)[:_MAX_TEXT], flags=re.ASCII)
            key = (name, str(unit) if str(unit) in _WRITTEN_UNITS else "None", bool(is_counter))
            count, total = self.written.get(key, (0, 0.0))
            self.written[key] = (count + 1, total + float(raw_value))

    def samples(self) -> Iterator[tuple[str, str, dict[str, str], float, int]]:
        """Return (type, name, labels, value, number of reports) of each series."""
        for series, value in self._values.items():
            type_, name, labels = series
            yield type_, name, dict(labels), value, self._counts[series]


def families(reported: Iterable[tuple[str, str, ReportedMetrics]]) -> Iterator[Metric]:
    """Yield a family for each name that any (model, version) has reported."""
    found: dict[tuple[str, str], Metric] = {}
    for model, version, metrics in reported:
        for type_, name, dimensions, value, count in metrics.samples():
            family = found.get((type_, name))
            if family is None:
                family = found[type_, name] = Metric(name, "Reported by the service.", type_)
            labels = {**dimensions, "model": model, "version": version}
            if type_ == "counter":
                family.add_sample(f"{name}_total", labels, value)
            elif type_ == "summary":
                family.add_sample(f"{name}_count", labels, count)
                family.add_sample(f"{name}_sum", labels, value)
            else:
                family.add_sample(name, labels, value)
    yield from found.values()


def _read(entry: Any) -> tuple[_Series | None, float]:
    try:
        name, value, unit, is_counter, dimensions = entry
        number = float(value)
        labels = tuple(
            sorted(
                (_name(str(key)), str(label)[:_MAX_TEXT])
                for key, label in dimensions[:_MAX_DIMENSIONS]
                if key not in _REDUNDANT
            )
        )
    except (TypeError, ValueError, OverflowError):
        return None, 0.0
    base = f"mms_service_{_name(str(name))}"
    if number != number or abs(number) == float("inf") or (is_counter and number < 0):
        return None, 0.0
    if is_counter:
        return ("counter", base.removesuffix("_total"), labels), number
    suffix, factor = _UNITS.get(str(unit), ("", 1.0))
    type_ = "summary" if suffix == "_seconds" else "gauge"
    return (type_, base.removesuffix(suffix) + suffix, labels), number * factor


def _name(text: str) -> str:
    """Return a name in Prometheus' style: ``TokensPerRequest`` is ``tokens_per_request``."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text[:_MAX_TEXT])
    return re.sub(r"\W+", "_", snake, flags=re.ASCII).strip("_").lower() or "metric"
