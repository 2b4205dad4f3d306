"""A request for the tests of the queue, without a server around it."""

from __future__ import annotations

import itertools
import math

from mms.errors import MMSError

_numbers = itertools.count()


class FakeJob:
    """A request whose endings are kept, so that a second one shows."""

    def __init__(
        self,
        now: float = 0.0,
        deadline: float = math.inf,
        size: int = 1,
        is_urgent: bool = False,
        body: bytes | None = None,
    ) -> None:
        self.body = b"%d" % next(_numbers) if body is None else body
        self.enqueued_at = now
        self.is_urgent = is_urgent
        self.deadline = deadline
        self.size = size
        self.deaths = 0
        self.runs = 0
        self.has_left = False
        self.endings: list[MMSError | None] = []

    def is_abandoned(self) -> bool:
        return self.has_left or bool(self.endings)

    def fail(self, error: MMSError) -> None:
        if not self.is_abandoned():
            self.endings.append(error)

    def head(self) -> bytes:
        return self.body[:2]

    def digest(self) -> bytes:
        return self.body

    def succeed(self) -> None:
        if not self.is_abandoned():
            self.endings.append(None)
