"""One keep-alive connection: bytes out, whole answers in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from tests.kit.load.wire import NoLength, answer_length

_SHOWN_BYTES = 300


class Connection(asyncio.Protocol):
    """A connection with one request on its way at most.

    Args:
        on_answer: Called with each answer, whole.
        on_lost: Called with the reason, once, when the connection ends in any way but `close`:
            the server has closed it, or has sent what is no answer to the last request.
    """

    def __init__(self, on_answer: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None:
        self._on_answer = on_answer
        self._on_lost = on_lost
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._is_waiting = False
        self._is_over = False

    def send(self, request: bytes) -> None:
        """Send a request; nothing is sent when the connection is over, which `on_lost` has told."""
        assert self._transport is not None, "not connected"
        if not self._is_over:
            self._is_waiting = True
            self._transport.write(request)

    def stop_reading(self) -> None:
        """Leave what the server sends where it is."""
        assert self._transport is not None, "not connected"
        self._transport.pause_reading()

    def close(self) -> None:
        """Close the connection, whatever is on its way."""
        self._is_over = True
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: the connection is there."""
        # uvloop's transports derive from none of asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """asyncio: an answer, or part of one."""
        answer = self._received + data if self._received else data
        try:
            length = answer_length(answer)
        except NoLength as error:
            self._lose(f"{error}: {answer[:_SHOWN_BYTES]!r}")
            return
        # Taken for the next request's answer, what is too much would be anybody's.
        if not self._is_waiting or len(answer) > length > 0:
            self._lose(f"an answer that nobody asked for: {answer[length:][:_SHOWN_BYTES]!r}")
            return
        if not length:
            self._received = answer
            return
        self._received = b""
        self._is_waiting = False
        self._on_answer(answer)

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio: the connection is closed, by whomever."""
        after = f" after {len(self._received)} bytes of an answer" if self._received else ""
        self._lose(f"the server closed a connection{after}{f': {error}' if error else ''}")

    def _lose(self, reason: str) -> None:
        if not self._is_over:
            self.close()
            self._on_lost(reason)


async def connect(
    host: str, port: int, on_answer: Callable[[bytes], None], on_lost: Callable[[str], None]
) -> Connection:
    """Open a connection; see there for the functions.

    Raises:
        OSError: There is no server.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(on_answer, on_lost), host, port)
    return connection
