"""One keep-alive connection of the load generator, and the record of what comes back on all."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Callable
from typing import cast

import click

_LENGTH = b"\r\ncontent-length:"
_SHOWN_BYTES = 300


class LoadFailed(click.ClickException):
    """The load cannot be put on the server; says why."""


class Record:
    """When each answer came and how long it took, in the order of the answers."""

    def __init__(self) -> None:
        self.done = array("d")
        self.latencies = array("d")
        self.failed = 0
        self.first_failure = ""

    def add(self, now: float, since: float) -> None:
        self.done.append(now)
        self.latencies.append(now - since)

    def add_failure(self, answer: bytes) -> None:
        self.first_failure = self.first_failure or answer[:_SHOWN_BYTES].decode(errors="replace")
        self.failed += 1


class Connection(asyncio.Protocol):
    """A connection with one request on its way at most.

    Args:
        request: The bytes of every request.
        record: Where answers go.
        on_answer: Called after each of them, with the time.
        broken: Failed when the server closes the connection or answers without a length.
    """

    def __init__(
        self,
        request: bytes,
        record: Record,
        on_answer: Callable[[Connection, float], None],
        broken: asyncio.Future[None],
    ) -> None:
        self._request = request
        self._record = record
        self._on_answer = on_answer
        self._broken = broken
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._since = 0.0

    def send(self, since: float) -> None:
        """Send the request; its latency counts from `since`."""
        self._since = since
        if self._transport is not None:
            self._transport.write(self._request)

    def close(self) -> None:
        """Close the connection, whatever is on its way."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is there."""
        # uvloop's transports derive from none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: an answer, or part of one."""
        answer = self._received + data if self._received else data
        head_end = answer.find(b"\r\n\r\n")
        if head_end < 0 or len(answer) < head_end + 4 + self._body_length(answer[:head_end]):
            self._received = answer
            return
        self._received = b""
        if not answer.startswith(b"HTTP/1.1 200 "):
            self._record.add_failure(answer)
        now = time.monotonic()
        self._record.add(now, self._since)
        self._on_answer(self, now)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection is closed, by whomever."""
        self._break(f"the server closed a connection{f': {error}' if error else ''}")

    def _body_length(self, head: bytes) -> int:
        at = head.lower().find(_LENGTH)
        if at < 0:
            self._break(f"an answer without a Content-Length: {head[:_SHOWN_BYTES]!r}")
            return 0
        return int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])

    def _break(self, reason: str) -> None:
        if not self._broken.done():
            self._broken.set_exception(LoadFailed(reason))
