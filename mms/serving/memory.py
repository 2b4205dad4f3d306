"""Memory usage of processes, as accounted by Linux."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory usage of one process.

    Attributes:
        resident: Resident bytes.
        private: Resident bytes that are not backed by a file.
    """

    resident: int = 0
    private: int = 0


#: Memory of a process that has ended, or has not been measured.
UNKNOWN = Memory()


def read_memory(pids: Iterable[int]) -> dict[int, Memory]:
    """Return the memory of processes by id; blocks, so call it in a thread."""
    return {pid: Memory(resident_bytes(pid), private_bytes(pid)) for pid in pids}


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process in bytes, 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def private_bytes(pid: int) -> int:
    """Return the resident bytes of a process not backed by a file, 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            _, resident, shared, *_ = file.read().split()
            return (int(resident) - int(shared)) * _PAGE_BYTES
    except (OSError, ValueError):
        return 0


def shared_bytes(pids: Iterable[int]) -> int:
    """Return the total memory of processes in bytes, with shared pages counted once.

    The proportional set sizes (proc(5), smaps_rollup) add up to exactly that.
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
