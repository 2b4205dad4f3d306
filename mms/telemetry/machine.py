"""Usage of the host's CPUs, memory and disk, under v0.4's names."""

from __future__ import annotations

import psutil

from mms.telemetry.readings import Reading, Samples

_DISK = "/"
_MB, _GB = 1 << 20, 1 << 30


class Machine:
    """Usage of the host's CPUs, memory and disk since the last `take`."""

    def __init__(self) -> None:
        # The first call only sets the starting point of the next one.
        psutil.cpu_percent()
        self._samples: dict[tuple[str, str], Samples] = {}

    def sample(self) -> None:
        """Record the current usage."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(_DISK)
        for name, unit, value in (
            ("CPUUtilization", "Percent", psutil.cpu_percent()),
            ("MemoryUsed", "Megabytes", memory.used / _MB),
            ("MemoryAvailable", "Megabytes", memory.available / _MB),
            ("MemoryUtilization", "Percent", memory.percent),
            ("DiskUsed", "Gigabytes", disk.used / _GB),
            ("DiskAvailable", "Gigabytes", disk.free / _GB),
            ("DiskUtilization", "Percent", disk.percent),
        ):
            self._samples.setdefault((name, unit), Samples()).add(value)

    def take(self) -> list[Reading]:
        """Return the means since the last call, and reset."""
        samples, self._samples = self._samples, {}
        return [
            Reading(name, unit, found.total / found.count, samples=found)
            for (name, unit), found in samples.items()
        ]
