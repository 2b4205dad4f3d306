"""Requests known to kill workers, which are refused instead of run again. Pure.

A service may crash on certain inputs, and clients retry failed requests. Each run of such a request
costs a worker, and a second run of the requests in the same batch. So once the culprit is certain,
repetitions of it are refused immediately for a while.

There is no cost until a worker has died: bodies are only hashed when one is recorded and, while any
is known, when a new request has the same length and the same first bytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from mms.errors import WorkerDied

#: How long a request is remembered, seconds.
REMEMBERED_S = 60.0
#: Maximum number of requests remembered; beyond it, the oldest is evicted. A larger table would not
#: help against a flood of distinct requests, since none of them is repeated.
MAX_REMEMBERED = 256
#: Number of deaths that make a request the culprit. One may be chance: the system ran out of
#: memory, or an operator killed the worker.
CULPRIT_DEATHS = 2
#: Longer bodies are not remembered: hashing takes 1.5 ms per MB, which blocks the event loop.
MAX_HASHED_BYTES = 4 << 20


class Suspect(Protocol):
    """The interface by which a request is recognized."""

    size: int
    deaths: int

    def head(self) -> bytes:
        """Return the first bytes of the body."""

    def digest(self) -> bytes:
        """Return a digest of the body and of everything that affects how it is run."""


@dataclass(slots=True)
class _Entry:
    key: tuple[int, bytes]
    deaths: int
    at: float


class PoisonTable:
    """The requests of one servable that have recently killed its workers.

    Attributes:
        newest_at: Monotonic time of the last recording; minus infinity if there is none.
        is_in_use: Whether any is remembered. An attribute, since it is read for each request.
    """

    def __init__(self) -> None:
        self.newest_at = -math.inf
        self.is_in_use = False
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        # Entries by length and head of the body, which distinguish most requests without hashing.
        self._keys: dict[tuple[int, bytes], int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, job: Suspect, now: float) -> None:
        """Record the deaths caused by a request that was alone in the last worker that died."""
        if job.size > MAX_HASHED_BYTES:
            return
        self._forget_old(now)
        digest = job.digest()
        known = self._entries.get(digest)
        deaths = job.deaths + (known.deaths if known else 0)
        if known:
            self._forget(digest)
        elif len(self._entries) >= MAX_REMEMBERED:
            self._forget(next(iter(self._entries)))
        key = (job.size, job.head())
        self._entries[digest] = _Entry(key, deaths, now)
        self._keys[key] = self._keys.get(key, 0) + 1
        self.newest_at = now
        self.is_in_use = True

    def refusal(self, job: Suspect, now: float) -> WorkerDied | None:
        """Return the error for a request that must not be run; None if it may run."""
        if now - self.newest_at >= REMEMBERED_S:
            self._forget_old(now)
            return None
        if job.size > MAX_HASHED_BYTES or (job.size, job.head()) not in self._keys:
            return None
        entry = self._entries.get(job.digest())
        if entry is None or entry.deaths < CULPRIT_DEATHS or now - entry.at >= REMEMBERED_S:
            return None
        return WorkerDied(
            f"this request killed a worker {now - entry.at:.0f} s ago; it is not run again within "
            f"{REMEMBERED_S:.0f} s of that"
        )

    def _forget_old(self, now: float) -> None:
        while self._entries:
            digest, entry = next(iter(self._entries.items()))
            if now - entry.at < REMEMBERED_S:
                return
            self._forget(digest)
        self.is_in_use = False

    def _forget(self, digest: bytes) -> None:
        key = self._entries.pop(digest).key
        self._keys[key] -= 1
        if not self._keys[key]:
            del self._keys[key]
