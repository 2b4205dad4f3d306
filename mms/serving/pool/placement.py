"""Which GPU a worker gets. Pure but for `read_gpu_memory`, which asks the driver's own tool."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence

from mms.errors import OutOfMemory

_QUERY = ("nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits")
_QUERY_TIMEOUT_S = 10.0


class Placement:
    """The GPUs of this machine and what was promised of each to workers of all models.

    Args:
        read_capacity: Gives the total bytes of each GPU by number; asked once, when it matters.
    """

    def __init__(self, read_capacity: Callable[[], Mapping[int, int]] | None = None) -> None:
        self._read_capacity = read_capacity or read_gpu_memory
        self._capacity: Mapping[int, int] | None = None
        self._workers: dict[int, list[int]] = {}

    def acquire(self, gpus: Sequence[int], need_bytes: int) -> int:
        """Return the GPU for one more worker, and book it.

        With a stated need, the one where it leaves the least room (best fit); otherwise the one
        with the fewest workers, the first of several.

        Args:
            gpus: Numbers to choose from, at least one.
            need_bytes: What the worker needs; 0 is not stated.

        Raises:
            OutOfMemory: It fits nowhere.
        """
        if not need_bytes:
            gpu = min(gpus, key=lambda number: len(self._workers.get(number, ())))
        else:
            room = {number: self._room_bytes(number) for number in gpus}
            fitting = [number for number in gpus if room[number] >= need_bytes]
            if not fitting:
                shown = ", ".join(f"GPU {number}: {room[number]}" for number in gpus)
                raise OutOfMemory(
                    f"a worker needs gpu_memory {need_bytes} bytes, which are free on none of its "
                    f"GPUs ({shown})"
                )
            gpu = min(fitting, key=lambda number: room[number])
        self._workers.setdefault(gpu, []).append(need_bytes)
        return gpu

    def release(self, gpu: int, need_bytes: int) -> None:
        """Take back what `acquire` booked."""
        self._workers[gpu].remove(need_bytes)

    def _room_bytes(self, gpu: int) -> int:
        if self._capacity is None:
            self._capacity = self._read_capacity()
        return self._capacity.get(gpu, 0) - sum(self._workers.get(gpu, ()))


def read_gpu_memory() -> dict[int, int]:
    """Return the total bytes of each GPU by number; none if the driver's tool is not there."""
    try:
        output = subprocess.run(
            _QUERY, check=True, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S
        ).stdout
        rows = (line.split(",") for line in output.splitlines())
        return {int(number): int(mebibytes) << 20 for number, mebibytes in rows}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
