"""PUBLIC: the machine's metrics, under MMS 1.x's name. The server's own are at ``/metrics``."""

from __future__ import annotations

import logging
import types

import psutil

from mms.metrics.dimension import Dimension
from mms.metrics.metric import Metric

system_metrics: list[Metric] = []
dimension = [Dimension("Level", "Host")]
_MIB, _GIB = 1 << 20, 1 << 30


def cpu_utilization() -> None:
    """Add the use of the CPUs."""
    _add("CPUUtilization", psutil.cpu_percent(), "percent")


def memory_used() -> None:
    """Add the memory in use."""
    _add("MemoryUsed", psutil.virtual_memory().used / _MIB, "MB")


def memory_available() -> None:
    """Add the memory that processes can still get."""
    _add("MemoryAvailable", psutil.virtual_memory().available / _MIB, "MB")


def memory_utilization() -> None:
    """Add the use of the memory."""
    _add("MemoryUtilization", psutil.virtual_memory().percent, "percent")


def disk_used() -> None:
    """Add what is in use on the disk of ``/``."""
    _add("DiskUsage", psutil.disk_usage("/").used / _GIB, "GB")


def disk_utilization() -> None:
    """Add the use of the disk of ``/``."""
    _add("DiskUtilization", psutil.disk_usage("/").percent, "percent")


def disk_available() -> None:
    """Add what is free on the disk of ``/``."""
    _add("DiskAvailable", psutil.disk_usage("/").free / _GIB, "GB")


def collect_all(mod: types.ModuleType) -> None:
    """Call each public function of a module except this one, then log what they have added."""
    for name in dir(mod):
        function = getattr(mod, name)
        is_other = isinstance(function, types.FunctionType) and name != "collect_all"
        if is_other and not name.startswith("_"):
            function()
    for metric in system_metrics:
        logging.info("%s", metric)
    logging.info("")


def _add(name: str, value: float, unit: str) -> None:
    system_metrics.append(Metric(name, value, unit, dimension))
