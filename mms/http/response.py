"""Answers of models, written to the connection in one call where aiohttp allows it.

`web.Response` spends a third of a small request's time on headers that are always the same.
`FastResponse` has them ready. aiohttp needs of a response only what is defined here; that is not
documented, so tests pin it, and everything out of the ordinary (HTTP/1.0, large bodies, headers
set by a service) goes through `web.Response`.
"""

from __future__ import annotations

from collections.abc import Mapping

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from mms.protocol import Answer

#: Larger bodies are drained by aiohttp, which heeds a slow client.
_MAX_FAST_BYTES = 64 << 10


class FastResponse(web.StreamResponse):
    """A complete 200 application/json answer in one write."""

    def __init__(self, body: bytes, request_id: str) -> None:
        # The base class would build a header map that is never read.
        self._fast_body = body
        self._fast_id = request_id
        self._fast_keep_alive: bool | None = True
        self._eof_sent = False

    @property
    def status(self) -> int:
        """Always 200."""
        return 200

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection goes on, as the request wants."""
        return self._fast_keep_alive

    @property
    def body_length(self) -> int:
        """Bytes of the body, for the access log."""
        return len(self._fast_body)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """aiohttp: write everything."""
        self._fast_keep_alive = request.keep_alive
        transport = request.transport
        if transport is None:
            # The client has left.
            return None
        connection = "" if self._fast_keep_alive else "Connection: close\r\n"
        head = (
            "HTTP/1.1 200 OK\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(self._fast_body)}\r\n"
            f"X-Request-Id: {self._fast_id}\r\n"
            f"Date: {rfc822_formatted_time()}\r\n{connection}\r\n"
        )
        transport.write(head.encode("latin-1") + self._fast_body)
        if transport.get_write_buffer_size():
            # A client that sends requests without reading answers must not fill our memory.
            await request.writer.drain()
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """aiohttp: nothing is left to write."""


def answer_response(request: web.Request, answer: Answer, request_id: str) -> web.StreamResponse:
    """Give the response for a model's answer."""
    if (
        answer.is_plain
        and len(answer.body) <= _MAX_FAST_BYTES
        and request.version == HttpVersion11
        and request.method == "POST"
    ):
        return FastResponse(bytes(answer.body), request_id)
    headers = {"Content-Type": answer.content_type, **answer.headers, "X-Request-Id": request_id}
    return web.Response(
        status=answer.status, reason=answer.reason or None, body=bytes(answer.body), headers=headers
    )


def json_response(
    document: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Give a response for an encoded JSON document."""
    return web.Response(
        status=status, body=document, content_type="application/json", headers=headers
    )
