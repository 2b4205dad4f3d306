"""One request inside the server process, from its arrival to its answer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from mms.errors import MMSError
from mms.protocol import Answer, Buffer


class Inference:
    """One request from its arrival to its answer; the dispatcher's Job."""

    __slots__ = (
        "chunks", "deadline", "deaths", "enqueued_at", "future", "is_urgent", "meta", "size"
    )  # fmt: skip

    def __init__(
        self,
        meta: bytes,
        chunks: Sequence[Buffer],
        size: int,
        enqueued_at: float,
        deadline: float,
        future: asyncio.Future[Answer],
        is_urgent: bool,
    ) -> None:
        self.meta = meta
        self.chunks = chunks
        self.size = size
        self.enqueued_at = enqueued_at
        self.deadline = deadline
        self.deaths = 0
        self.is_urgent = is_urgent
        self.future = future

    def is_abandoned(self) -> bool:
        """Whether nobody waits: the client left, or an error has been answered."""
        return self.future.done()

    def fail(self, error: MMSError) -> None:
        """End it with an error."""
        # The client may have left: its future is then cancelled, and setting it would raise here
        # and leave the rest of the batch waiting for ever.
        if not self.future.done():
            self.future.set_exception(error)

    def succeed(self, answer: Answer) -> None:
        """End it with an answer."""
        if not self.future.done():
            self.future.set_result(answer)
