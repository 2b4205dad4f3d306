"""What this machine offers, a container's limits included."""

from __future__ import annotations

import os
from pathlib import Path


def usable_cores() -> int:
    """Return the CPU cores this process may use, a container's quota included."""
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
