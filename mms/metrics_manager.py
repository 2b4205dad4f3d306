"""PUBLIC: the metrics that services of 0.4 update by name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from mms.metric import Metric, MetricUnit

#: Seconds between two samples of the machine in 0.4.
intervalSec = 5


def _sampling(read: Callable[[Any], float]) -> Callable[[Metric], None]:
    """Return an ``update_func`` that samples the machine once; the server does so all the time."""

    def update(metric_instance: Metric) -> None:
        # Imported here: it takes some milliseconds, and workers import this module.
        metric_instance.update(read(importlib.import_module("psutil")))

    return update


cpu_utilization = _sampling(lambda psutil: psutil.cpu_percent())
memory_used = _sampling(lambda psutil: psutil.virtual_memory().used / 2**20)
memory_available = _sampling(lambda psutil: psutil.virtual_memory().available / 2**20)
memory_utilization = _sampling(lambda psutil: psutil.virtual_memory().percent)
disk_used = _sampling(lambda psutil: psutil.disk_usage("/").used / 2**30)
disk_available = _sampling(lambda psutil: psutil.disk_usage("/").free / 2**30)
disk_utilization = _sampling(lambda psutil: psutil.disk_usage("/").percent)

_COUNTS = ("Prediction5XX", "Prediction4XX", "PredictionTotal")
_TIMES = ("LatencyOverall", "LatencyInference", "LatencyPreprocess", "LatencyPostprocess")
#: Unit and way to aggregate of those that belong to no model.
_OF_THE_SERVER = {
    "PingTotal": ("count", "interval_sum"),
    "APIDescriptionTotal": ("count", "interval_sum"),
    "CPUUtilization": ("percent", "interval_average"),
    "MemoryUsed": ("MB", "interval_average"),
    "MemoryAvailable": ("MB", "interval_average"),
    "MemoryUtilization": ("percent", "interval_average"),
    "DiskUsed": ("GB", "interval_average"),
    "DiskAvailable": ("GB", "interval_average"),
    "DiskUtilization": ("percent", "interval_average"),
}


class MetricsManager:
    """Holds the metrics.

    Attributes:
        metrics: By name: ``MODEL_Prediction5XX`` and the like for each model, ``PingTotal`` and
            the like for the server. A worker knows its own model only, under the name by which
            clients ask it and the one in its manifest.
    """

    metrics: ClassVar[dict[str, Metric]] = {}

    @staticmethod
    def start(metrics_write_to: str, models: Iterable[str], mutex: Any) -> None:
        """Create the metrics of these models and those of the server.

        Args:
            metrics_write_to: Ignored: the server writes by itself.
            models: Their names.
            mutex: Ignored.
        """
        metrics = MetricsManager.metrics
        for model in models:
            for names, unit, method in (
                (_COUNTS, "count", "interval_sum"),
                (_TIMES, "ms", "interval_average"),
            ):
                for name in names:
                    metrics[f"{model}_{name}"] = Metric(
                        name, mutex, model, MetricUnit[unit], aggregate_method=method
                    )
        for name, (unit, method) in _OF_THE_SERVER.items():
            metrics[name] = Metric(
                name, mutex, None, MetricUnit[unit], is_model_metric=False, aggregate_method=method
            )
