"""PUBLIC: where handlers report metrics (``context.metrics``), under MMS 1.x's name.

Metrics reported here appear at ``/metrics`` as ``mms_service_<name>``, in base units.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mms.metrics.dimension import Dimension
from mms.metrics.metric import Metric

_TIME_UNITS = ("ms", "s")
_SIZE_UNITS = ("B", "kB", "MB", "GB")


class MetricsStore:
    """The metrics reported while one batch is run.

    Args:
        request_ids: Id of each request, by its index in the batch; while the model is loaded, one
            id for all that is reported then.
        model_name: Name of the model.

    Attributes:
        store: The metrics, in the order of their first report.
        cache: The same metrics by name, unit, request and dimensions, joined with ``-``.
    """

    def __init__(self, request_ids: Mapping[int, str] | object | None, model_name: str) -> None:
        self.store: list[Metric] = []
        self.request_ids = request_ids
        self.model_name = model_name
        self.cache: dict[str, Metric] = {}

    def add_counter(
        self, name: str, value: int, idx: int | None = None, dimensions: Any = None
    ) -> None:
        """Add to a counter.

        Args:
            name: Name of the metric.
            value: Amount to add.
            idx: Index in the batch of the request it belongs to; all requests by default.
            dimensions: List of `Dimension`.
        """
        self._add(name, value, self._request_id(idx), "count", "counter", dimensions)

    def add_time(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "ms",
        dimensions: Any = None,
    ) -> None:
        """Report a duration in ``ms`` or ``s``."""
        if unit not in _TIME_UNITS:
            raise ValueError(f"the unit of a time must be one of {_TIME_UNITS}, got {unit!r}")
        self._add(name, value, self._request_id(idx), unit, None, dimensions)

    def add_size(
        self,
        name: str,
        value: float,
        idx: int | None = None,
        unit: str = "MB",
        dimensions: Any = None,
    ) -> None:
        """Report a size in ``B``, ``kB``, ``MB`` or ``GB``."""
        if unit not in _SIZE_UNITS:
            raise ValueError(f"the unit of a size must be one of {_SIZE_UNITS}, got {unit!r}")
        self._add(name, value, self._request_id(idx), unit, None, dimensions)

    def add_percent(
        self, name: str, value: float, idx: int | None = None, dimensions: Any = None
    ) -> None:
        """Report a percentage."""
        self._add(name, value, self._request_id(idx), "percent", None, dimensions)

    def add_error(self, name: str, value: Any, dimensions: Any = None) -> None:
        """Report an error; `value` is usually a string."""
        self._add(name, value, None, "", None, dimensions)

    def add_metric(
        self,
        name: str,
        value: Any,
        idx: int | None = None,
        unit: str | None = None,
        dimensions: Any = None,
    ) -> None:
        """Report a metric of any other kind."""
        self._add(name, value, self._request_id(idx), unit, None, dimensions)

    def report(self) -> list[Any]:
        """Return all metrics in the form that `mms.telemetry.service_metrics` reads."""
        return [
            [
                str(metric.name),
                metric.value if isinstance(metric.value, (int, float)) else str(metric.value),
                str(metric.unit),
                metric.metric_method == "counter",
                [[str(d.name), str(d.value)] for d in metric.dimensions],
            ]
            for metric in self.store
        ]

    def _add(
        self,
        name: str,
        value: Any,
        request_id: str | None,
        unit: str | None,
        method: str | None,
        dimensions: Any,
    ) -> None:
        if dimensions is not None and not isinstance(dimensions, list):
            raise ValueError("dimensions must be a list of Dimension")
        # A copy: 1.x added its own dimensions to the caller's list, again with each report.
        all_dimensions = list(dimensions or [])
        if request_id is not None:
            all_dimensions.append(Dimension("ModelName", self.model_name))
        level = "Error" if request_id is None else "Model"
        all_dimensions.append(Dimension("Level", level))
        key = "-".join([name, str(unit), str(request_id), *map(str, all_dimensions)])
        if key in self.cache:
            self.cache[key].update(value)
            return
        metric = Metric(name, value, unit, all_dimensions, request_id, method)
        self.cache[key] = metric
        self.store.append(metric)

    def _request_id(self, idx: int | None) -> str | None:
        if not isinstance(self.request_ids, Mapping):
            return None if self.request_ids is None else str(self.request_ids)
        if idx is not None and idx in self.request_ids:
            return self.request_ids[idx]
        return ",".join(self.request_ids.values())
