"""Place workers on GPUs. Pure except for `read_gpu_memory`, which runs the driver's own tool."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence

from mms.errors import OutOfMemory

_QUERY = ("nvidia-smi", "--query-gpu=index,memory.total", "--format=csv,noheader,nounits")
_QUERY_TIMEOUT_S = 10.0


class Placement:
    """The GPUs of this machine, and the reservations on each by workers of all models.

    Args:
        read_capacity: Returns the total bytes of each GPU by number; called once, when needed.
    """

    def __init__(self, read_capacity: Callable[[], Mapping[int, int]] | None = None) -> None:
        self._read_capacity = read_capacity or read_gpu_memory
        self._capacity: Mapping[int, int] | None = None
        self._workers: dict[int, list[int]] = {}

    def acquire(self, gpus: Sequence[int], need_bytes: int) -> int:
        """Choose a GPU for another worker, and reserve its memory.

        If the need is known, the GPU on which it leaves the least memory free (best fit); otherwise
        the one with the fewest workers, the first of several.

        Args:
            gpus: GPU numbers to choose from, at least one.
            need_bytes: Memory that the worker needs; 0 means unknown.

        Raises:
            OutOfMemory: It fits on none of them.
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
        """Release a reservation made by `acquire`."""
        self._workers[gpu].remove(need_bytes)

    def _room_bytes(self, gpu: int) -> int:
        if self._capacity is None:
            self._capacity = self._read_capacity()
        return self._capacity.get(gpu, 0) - sum(self._workers.get(gpu, ()))


def read_gpu_memory() -> dict[int, int]:
    """Return the total bytes of each GPU by number; empty if the driver's tool is not installed."""
    try:
        output = subprocess.run(
            _QUERY, check=True, capture_output=True, text=True, timeout=_QUERY_TIMEOUT_S
        ).stdout
        rows = (line.split(",") for line in output.splitlines())
        return {int(number): int(mebibytes) << 20 for number, mebibytes in rows}
    except (OSError, ValueError, subprocess.SubprocessError):
        return {}
