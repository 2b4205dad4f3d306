"""One request inside the server process, from its arrival to its answer."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

import orjson

from mms.errors import MMSError
from mms.wire.frames import Buffer
from mms.wire.messages import Answer, RequestMeta

#: Length of the prefix that distinguishes most bodies without hashing them.
_HEAD_BYTES = 64
_DIGEST_BYTES = 16
#: Headers that differ when a client sends the same request again.
_PER_REQUEST_HEADERS = frozenset({"x-request-id", "traceparent", "x-amzn-trace-id"})


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
        """Return whether no client waits: it has left, or has got an error."""
        return self.future.done()

    def fail(self, error: MMSError) -> None:
        """Fail the request with an error."""
        # The client may have left: its future is then cancelled, and setting it would raise here
        # and leave the rest of the batch waiting for ever.
        if not self.future.done():
            self.future.set_exception(error)

    def succeed(self, answer: Answer) -> None:
        """Complete the request with an answer."""
        if not self.future.done():
            self.future.set_result(answer)

    def head(self) -> bytes:
        """Return the first bytes of the body, across chunks."""
        head = b""
        for chunk in self.chunks:
            head += bytes(chunk[: _HEAD_BYTES - len(head)])
            if len(head) == _HEAD_BYTES:
                break
        return head

    def digest(self) -> bytes:
        """Return a digest of the body and of everything that affects how the worker reads it.

        Repetitions of a request have the same digest, whatever their ids.
        """
        hash_ = hashlib.blake2b(_what_matters(self.meta), digest_size=_DIGEST_BYTES)
        for chunk in self.chunks:
            hash_.update(chunk)
        return hash_.digest()


def _what_matters(encoded: bytes) -> bytes:
    meta = RequestMeta.decode(encoded)
    headers = {
        name: value
        for name, value in meta.headers.items()
        if name.lower() not in _PER_REQUEST_HEADERS
    }
    # As a JSON document, so that different requests never concatenate to the same bytes.
    return orjson.dumps(
        [meta.dialect, meta.content_type, meta.accept, meta.content_encoding, headers, meta.query],
        option=orjson.OPT_SORT_KEYS,
    )
