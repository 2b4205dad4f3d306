"""The resources of this machine, within the limits of a container."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Return how many CPU cores this process may use, within a container's quota."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            cores = min(cores, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):
        pass
    return max(cores, 1)


def gpus(devices: Path = Path("/dev")) -> int:
    """Return how many NVIDIA GPUs this machine, or container, has.

    Args:
        devices: Folder of the device files.
    """
    return len(list(devices.glob("nvidia[0-9]*")))
