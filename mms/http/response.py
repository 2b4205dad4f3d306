"""Models' responses, written to the connection in one call where aiohttp allows it.

`web.Response` spends a third of a small request's time on headers that are always the same.
`FastResponse` has them ready. aiohttp requires only what is defined here of a response. That is not
documented, so tests pin it, and unusual cases (HTTP/1.0, large bodies, headers set by a service)
use `web.Response`.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11

from mms.serving.budget import SMALL_BYTES
from mms.wire.frames import Buffer
from mms.wire.messages import Answer

#: Larger bodies are written in pieces, each once the client has read most of the previous one:
#: uvloop buffers whatever it is given at once.
_MAX_FAST_BYTES = SMALL_BYTES
#: Large enough that the loop's overhead is negligible, small compared to what a client may hold.
_PIECE_BYTES = 256 << 10
#: Statuses whose responses have no body, whatever the service returned.
_WITHOUT_BODY = (204, 304)


class FastResponse(web.StreamResponse):
    """A complete 200 application/json response in one write."""

    _fast_may_keep_alive = True
    _fast_lines = ""

    def __init__(self, body: bytes, request_id: str) -> None:
        # The base class would build a header map that is never read.
        self._fast_body = body
        self._fast_id = request_id
        self._fast_keep_alive: bool | None = True
        self._eof_sent = False

    @property
    def status(self) -> int:
        """Status of the response: always 200."""
        return 200

    @property
    def keep_alive(self) -> bool | None:
        """Whether the connection is kept open, as the request asks for."""
        return self._fast_keep_alive

    @property
    def body_length(self) -> int:
        """Length of the body in bytes, for the access log."""
        return len(self._fast_body)

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """aiohttp: write everything."""
        self._fast_keep_alive = request.keep_alive and self._fast_may_keep_alive
        transport = request.transport
        if transport is None:
            # The client has disconnected.
            return None
        connection = "" if self._fast_keep_alive else "Connection: close\r\n"
        head = (
            "HTTP/1.1 200 OK\r\n"
            "Content-Type: application/json\r\n"
            f"Content-Length: {len(self._fast_body)}\r\n"
            f"X-Request-Id: {self._fast_id}\r\n"
            f"Date: {rfc822_formatted_time()}\r\n{self._fast_lines}{connection}\r\n"
        )
        transport.write(head.encode("latin-1") + self._fast_body)
        if transport.get_write_buffer_size():
            # A client that sends requests without reading responses must not fill the memory.
            await request.writer.drain()
        return None

    def force_close(self) -> None:
        """Close the connection after this response."""
        self._fast_may_keep_alive = False

    def add_headers(self, headers: Mapping[str, str]) -> None:
        """Add headers that are not among those of every response."""
        self._fast_lines += _lines(headers)

    async def write_eof(self, data: bytes = b"") -> None:
        """aiohttp: do nothing; everything is written."""


class ClosingResponse(FastResponse):
    """A pre-encoded response after which the connection is closed."""

    def __init__(self, data: bytes, status: int) -> None:
        super().__init__(data, "")
        self._closing_status = status
        self._fast_keep_alive = False

    @property
    def status(self) -> int:
        """Status of the response."""
        return self._closing_status

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """aiohttp: write everything."""
        if request.transport is not None:
            request.transport.write(self._fast_body)
        return None


def closing_response(status: int, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return an encoded JSON response after which the connection is closed."""
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n{_lines(headers)}"
        f"Date: {rfc822_formatted_time()}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("latin-1") + body


def _lines(headers: Mapping[str, str]) -> str:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items())


class LargeResponse(web.StreamResponse):
    """A response written in pieces, as fast as the client reads, and never copied."""

    def __init__(self, body: Buffer, status: int, reason: str, headers: Mapping[str, str]) -> None:
        super().__init__(status=status, reason=reason or None, headers=headers)
        self.content_length = len(body)
        self._large_body = body

    async def write_eof(self, data: bytes = b"") -> None:
        """aiohttp: write the body."""
        view = memoryview(self._large_body)
        for at in range(0, len(view), _PIECE_BYTES):
            await self.write(view[at : at + _PIECE_BYTES])
        await super().write_eof()


def answer_response(request: web.Request, answer: Answer, request_id: str) -> web.StreamResponse:
    """Convert a model's answer to a response."""
    is_small = len(answer.body) <= _MAX_FAST_BYTES
    if (
        is_small
        and answer.is_plain
        and request.version == HttpVersion11
        and request.method == "POST"
    ):
        return FastResponse(bytes(answer.body), request_id)
    headers = {"Content-Type": answer.content_type, **answer.headers, "X-Request-Id": request_id}
    is_sent = answer.status not in _WITHOUT_BODY and request.method != hdrs.METH_HEAD
    if not is_small and is_sent:
        return LargeResponse(own_body(answer.body), answer.status, answer.reason, headers)
    return web.Response(
        status=answer.status, reason=answer.reason or None, body=bytes(answer.body), headers=headers
    )


def own_body(body: Buffer) -> Buffer:
    """Return a body that keeps no more than about twice its length alive.

    Answers are views of the frame of the whole batch. A small part of a large frame is copied; a
    large part stays a view.
    """
    if isinstance(body, memoryview) and 2 * len(body) < memoryview(body.obj).nbytes:
        return bytes(body)
    return body


def json_response(
    document: bytes, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return a response for an encoded JSON document."""
    return web.Response(
        status=status, body=document, content_type="application/json", headers=headers
    )
