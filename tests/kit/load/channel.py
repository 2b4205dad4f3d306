"""A connection that one coroutine asks over: a request, its answer, and the next."""

from __future__ import annotations

import asyncio

from tests.kit.load.connection import Connection, connect
from tests.kit.load.wire import Reply


class Cut(Exception):
    """The connection ended before a whole answer had come."""


class Channel:
    """One keep-alive connection to this machine, opened when it is needed.

    A connection that ends while nothing is asked is not opened anew behind the caller's back: the
    next request is cut, as it would be had the server closed the connection a moment later.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection: Connection | None = None
        self._answer: asyncio.Future[bytes] | None = None
        self._lost = ""

    async def ask(self, request: bytes) -> Reply:
        """Send a request and return the answer.

        Raises:
            OSError, Cut: There was none.
        """
        try:
            reply = Reply.decode(await self._ask(request))
        except BaseException:
            self.close()
            raise
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        return reply

    async def _ask(self, request: bytes) -> bytes:
        if self._connection is None:
            self._connection = await connect("127.0.0.1", self._port, self._take, self._lose)
        if self._lost:
            raise Cut(self._lost)
        self._answer = asyncio.get_running_loop().create_future()
        self._connection.send(request)
        return await self._answer

    def close(self) -> None:
        """Close the connection, if it is open."""
        if self._connection is not None:
            self._connection.close()
        self._connection, self._lost = None, ""

    def _take(self, answer: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answer)

    def _lose(self, reason: str) -> None:
        self._lost = reason
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Cut(reason))
