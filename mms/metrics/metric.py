"""PUBLIC: one metric that a handler reports, under MMS 1.x's name."""

from __future__ import annotations

import socket
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from mms.metrics.dimension import Dimension
from mms.metrics.unit import UNITS, Units

MetricUnit = Units()


class Metric:
    """A name, a value and a unit.

    Args:
        name: Such as ``"TokensPerRequest"``.
        value: A number; `MetricsStore.add_error` also takes a string.
        unit: ``ms``, ``s``, ``percent``, ``count``, ``B``, ``kB``, ``MB``, ``GB``, or any other
            string.
        dimensions: Labels that distinguish it from metrics of the same name.
        request_id: The request it belongs to, if any.
        metric_method: ``"counter"`` to sum the reported values; otherwise the last value counts.
    """

    def __init__(
        self,
        name: str,
        value: Any,
        unit: str | None,
        dimensions: Sequence[Dimension],
        request_id: str | None = None,
        metric_method: str | None = None,
    ) -> None:
        self.name = name
        self.unit = UNITS.get(unit, unit)
        self.metric_method = metric_method
        self.value = value
        self.dimensions = dimensions
        self.request_id = request_id

    def update(self, value: Any) -> None:
        """Add to a counter, or replace the value of any other metric."""
        self.value = self.value + value if self.metric_method == "counter" else value

    def __str__(self) -> str:
        dimensions = ",".join(str(dimension) for dimension in self.dimensions)
        text = (
            f"{self.name}.{self.unit}:{self.value}|#{dimensions}|#hostname:{socket.gethostname()},"
            f"{int(time.time())}"
        )
        return f"{text},{self.request_id}" if self.request_id else text

    def to_dict(self) -> OrderedDict[str, Any]:
        """Return all fields under the names that MMS 1.x used; the time in seconds."""
        return OrderedDict(
            MetricName=self.name,
            Value=self.value,
            Unit=self.unit,
            Dimensions=self.dimensions,
            Timestamp=int(time.time()),
            HostName=socket.gethostname(),
            RequestId=self.request_id,
        )
