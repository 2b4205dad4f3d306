"""The arrivals of an open loop, shared by bare model processes without any server.

Each process takes what has arrived, as the server's workers do: what waits is split evenly between
the idle ones. All that it takes is a lock and two numbers in a file.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import struct
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path

#: Requests taken so far, and processes with a batch in hand.
_STATE = struct.Struct("<qq")


class SharedQueue:
    """One process's end of the queue.

    Args:
        path: The file that `make_queue` has made.
        arrivals: When requests come, by `time.monotonic`; the same in every process.
        processes: How many share the queue.
        batch_size: Most requests of one batch.
    """

    def __init__(
        self, path: Path, arrivals: Sequence[float], processes: int, batch_size: int
    ) -> None:
        self._file = path.open("r+b")
        self._memory = mmap.mmap(self._file.fileno(), _STATE.size)
        self._arrivals = arrivals
        self._processes = processes
        self._batch_size = batch_size

    def take(self, now: float) -> range:
        """Return the indices of the requests of the next batch; empty if none waits.

        Until `finish`, this process counts as busy, unless the batch is empty.
        """
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            taken, busy = _STATE.unpack_from(self._memory)
            waiting = bisect_right(self._arrivals, now, lo=taken) - taken
            count = min(self._batch_size, math.ceil(waiting / (self._processes - busy)))
            if count:
                _STATE.pack_into(self._memory, 0, taken + count, busy + 1)
            return range(taken, taken + count)
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def finish(self) -> None:
        """Count this process as idle again."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        taken, busy = _STATE.unpack_from(self._memory)
        _STATE.pack_into(self._memory, 0, taken, busy - 1)
        fcntl.flock(self._file, fcntl.LOCK_UN)

    def next_arrival(self) -> float | None:
        """Return when the next request comes that nobody has taken; None after the last."""
        taken, _ = _STATE.unpack_from(self._memory)
        return self._arrivals[taken] if taken < len(self._arrivals) else None

    def close(self) -> None:
        """Let go of the file."""
        self._memory.close()
        self._file.close()


def make_queue(path: Path) -> None:
    """Make the file of a queue from which nothing has been taken."""
    path.write_bytes(_STATE.pack(0, 0))
