"""PUBLIC: 0.4's metrics, which services create and update.

Values reach the server with the answers of the next requests. They appear at ``/metrics`` as
``mms_service_<name>``, and where ``--metrics-write-to`` says.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

MetricUnit = {
    "ms": "Milliseconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
}
#: Values kept until the next requests are answered; a service that updates without requests (a
#: timer of its own) must not fill the memory.
MAX_VALUES = 1000
_SUMS = ("interval_sum", "total_sum")
_METHODS = (*_SUMS, "interval_average", "total_average")
_lock = threading.Lock()
# A worker is forked from a process in which a thread of the service may hold it at that moment.
os.register_at_fork(
    before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
)
_sums: dict[tuple[str, str], float] = {}
_values: deque[tuple[str, str, float]] = deque(maxlen=MAX_VALUES)


class Metric:
    """A metric of a service; `update` reports a value.

    Args:
        name: Such as ``"TokensPerRequest"``.
        mutex: Ignored: the server writes metrics by itself.
        model_name: Name of the model.
        unit: A value of `MetricUnit`, or any other string.
        is_model_metric: Ignored: the metric belongs to the model whose service updates it.
        interval_sec: Ignored, see ``--metrics-interval``.
        update_func: Called with the new metric.
        aggregate_method: ``interval_sum`` and ``total_sum`` make a counter; ``interval_average``
            and ``total_average`` a mean of times, and the last value of anything else.
        write_to: Ignored, see ``--metrics-write-to``.

    Raises:
        RuntimeError: `aggregate_method` has another value.
    """

    def __init__(
        self,
        name: str,
        mutex: Any,
        model_name: str | None,
        unit: str,
        is_model_metric: bool = True,
        interval_sec: float = 60,
        update_func: Callable[[Metric], Any] | None = None,
        aggregate_method: str = "interval_average",
        write_to: str = "log",
    ) -> None:
        if aggregate_method not in _METHODS:
            raise RuntimeError(
                f"{aggregate_method} for metric: {name} cannot be recognized; use one of "
                f"{', '.join(_METHODS)}"
            )
        self.name = name
        self.mutex = mutex
        self.model_name = model_name
        self.unit = unit
        self.is_model_metric = is_model_metric
        self.interval_sec = interval_sec
        self.aggregate_method = aggregate_method
        self.write_to = write_to
        if update_func is not None:
            update_func(self)

    def update(self, metric: float) -> None:
        """Report a value; of a sum, an amount to add."""
        value = float(metric)
        with _lock:
            if self.aggregate_method not in _SUMS:
                _values.append((self.name, self.unit, value))
                return
            key = (self.name, self.unit)
            if key in _sums or len(_sums) < MAX_VALUES:
                _sums[key] = _sums.get(key, 0.0) + value


def take_report() -> list[Any]:
    """Return what was reported since the last call, as `mms.telemetry.service_metrics` reads it."""
    with _lock:
        report = [[name, value, unit, True, []] for (name, unit), value in _sums.items()]
        report += [[name, value, unit, False, []] for name, unit, value in _values]
        _sums.clear()
        _values.clear()
    return report
