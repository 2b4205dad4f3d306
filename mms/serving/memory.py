"""What processes hold in memory, by Linux's own books."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Memory:
    """What one process holds.

    Attributes:
        resident: Resident bytes.
        private: Those of them that belong to no file.
    """

    resident: int = 0
    private: int = 0


#: Of a process that is gone, or has not been looked at.
UNKNOWN = Memory()


def read_memory(pids: Iterable[int]) -> dict[int, Memory]:
    """Return what processes hold, by their ids; blocks, so call it in a thread."""
    return {pid: Memory(resident_bytes(pid), private_bytes(pid)) for pid in pids}


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def private_bytes(pid: int) -> int:
    """Return the resident memory of a process that belongs to no file, 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = file.read().split()
            return (int(resident) - int(shared)) * _PAGE_BYTES
    except (OSError, ValueError):
        return 0


def shared_bytes(pids: Iterable[int]) -> int:
    """Return the memory of processes together; what they share counts once.

    The proportional set size (proc(5), smaps_rollup) sums to just that.
    """
    return sum(_proportional_bytes(pid) for pid in pids)


def _proportional_bytes(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return resident_bytes(pid)
