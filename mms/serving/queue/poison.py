"""Requests known to kill workers, so that the same request is refused instead of run again. Pure.

A service may crash on certain inputs, and clients repeat what failed. Each run of such a request
costs a worker and the requests beside it a second run, so once it is sure who the culprit is, the
same request is answered at once for a while.

Nothing here costs anything before a worker has died: bodies are hashed when one is recorded and,
while any is known, when a new request has the same length and the same first bytes.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

from mms.errors import WorkerDied

#: How long a request is remembered, seconds.
REMEMBERED_S = 60.0
#: Most requests remembered; beyond that the oldest is forgotten. A flood of distinct ones gains
#: nothing from a longer table, since none of them comes a second time.
MAX_REMEMBERED = 256
#: Deaths under one request that make it the culprit. One may be chance: the system's memory ran
#: out, or somebody killed the worker.
CULPRIT_DEATHS = 2
#: Longer bodies are not remembered: hashing one takes 1.5 ms per MB, during which the event loop
#: serves nobody else.
MAX_HASHED_BYTES = 4 << 20


class Suspect(Protocol):
    """What must be known of a request to know it again."""

    size: int
    deaths: int

    def head(self) -> bytes:
        """Return the first bytes of the body."""

    def digest(self) -> bytes:
        """Return a digest of the body and of all that decides how it is run."""


@dataclass(slots=True)
class _Entry:
    key: tuple[int, bytes]
    deaths: int
    at: float


class PoisonTable:
    """The requests of one servable that have killed its workers lately.

    Attributes:
        newest_at: When the last one was recorded, monotonic seconds; minus infinity if never.
        is_in_use: Whether any is remembered. Asked for each request, so an attribute.
    """

    def __init__(self) -> None:
        self.newest_at = -math.inf
        self.is_in_use = False
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        # Entries by length and head of the body: what tells most other requests apart unhashed.
        self._keys: dict[tuple[int, bytes], int] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def record(self, job: Suspect, now: float) -> None:
        """Note the deaths under a request whose last worker died with nothing else in it."""
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
        """Return the error to answer a request with that must not be run; None if it may be."""
        if now - self.newest_at >= REMEMBERED_S:
            self._forget_old(now)
            return None
        if job.size > MAX_HASHED_BYTES or (job.size, job.head()) not in self._keys:
            return None
        entry = self._entries.get(job.digest())
        if entry is None or entry.deaths < CULPRIT_DEATHS or now - entry.at >= REMEMBERED_S:
            return None
        return WorkerDied(
            f"this request killed a worker {now - entry.at:.0f} s ago; the same request is not "
            f"run again within {REMEMBERED_S:.0f} s of that"
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
