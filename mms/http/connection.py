"""A client's connection, and its limits before, between and after requests.

The only module that relies on undocumented parts of aiohttp: `Connection` derives from its
protocol. Request handlers use `hold_of` only. Tests pin the internals relied on.

Slow clients are detected by the single timer of `mms.http.edge`, which checks all connections.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import struct
import termios
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, cast

from aiohttp import hdrs, web
from aiohttp.http import SERVER_SOFTWARE
from aiohttp.http_exceptions import HttpProcessingError, LineTooLong
from aiohttp.web_protocol import _ErrInfo

from mms.errors import OutOfMemory, SlowClient
from mms.http.edge import Edge
from mms.http.errors import status_of
from mms.http.response import ClosingResponse
from mms.serving.budget import Hold

logger = logging.getLogger("mms.http")

#: Maximum length of the request line and of a header; slightly different, since the parser's error
#: is the same for both and only the limit in it tells which of them was too long.
MAX_LINE_BYTES, MAX_FIELD_BYTES = 16 << 10, (16 << 10) + 64
#: Time a refused connection has to read the reason. If it were closed at once, its unread request
#: would make the kernel reset the connection and discard the response.
_TURNED_AWAY_S = 1.0
#: Time to read and drop the rest of a body after a response that did not need it, so that the
#: client can read that response, seconds.
_LINGER_S = 10.0
#: Data that is costly to parse is parsed in pieces of this size, one per iteration of the loop:
#: 3,000 chunks of a byte take 5 ms, all that uvloop reads at once (256 KiB) would take 100. Data
#: is costly if it has at least one line end per `_BYTES_PER_LINE`.
_PIECE_BYTES, _BYTES_PER_LINE = 16 << 10, 64
_MAX_REASON_CHARS = 100
#: The status after which the connection is closed at once: the client would keep sending.
_TOO_LARGE = 413

#: Errors caused by clients that send garbage or disconnect.
_CLIENT_ERRORS = (HttpProcessingError, web.RequestPayloadError, OSError)

#: Called several times per request; `super()` would cost more than the calls themselves.
_data_received = web.RequestHandler.data_received
_resume_transport_reading = web.RequestHandler._resume_transport_reading

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


def hold_of(request: web.BaseRequest) -> Hold:
    """Return a request's hold of the budget; its connection releases it at the end."""
    # The protocol of every request is a Connection; called several times per request.
    hold: Hold = request.protocol.hold  # type: ignore[attr-defined]
    return hold


class Connection(web.RequestHandler):
    """aiohttp's protocol, with limits.

    Attributes:
        hold: The current request's hold of the budget.
    """

    __slots__ = (
        "_accepted_at", "_backlog", "_edge", "_head_began_at", "_heads_seen", "_is_reserved",
        "_mark", "_mark_at", "_resumes", "_turned_away_at", "_wire", "hold",
    )  # fmt: skip

    def __init__(self, manager: web.Server, edge: Edge, is_reserved: bool, **options: Any) -> None:
        super().__init__(manager, **options)
        self.hold = Hold(edge.budget)
        self._edge = edge
        self._is_reserved = is_reserved
        # Kept to the very end, unlike `transport`: data may still be sent after closing.
        self._wire: asyncio.Transport | None = None
        # Read but not parsed yet; reading is paused until it is empty.
        self._backlog: deque[bytes] = deque()
        self._accepted_at = self._head_began_at = self._turned_away_at = 0.0
        self._heads_seen = self._resumes = 0
        self._mark: tuple[int, ...] = ()
        self._mark_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio: a client has connected."""
        # uvloop's transports do not derive from asyncio's.
        wire = self._wire = cast(asyncio.Transport, transport)
        self._accepted_at = time.monotonic()
        if self._edge.enter(self, self._is_reserved):
            super().connection_made(transport)
            return
        self._turned_away_at = self._accepted_at
        self._force_close = True
        answer = self._edge.turn_away(self._is_reserved)
        if not answer:
            wire.abort()
            return
        wire.write(answer)
        wire.write_eof()

    def connection_lost(self, exc: BaseException | None) -> None:
        """asyncio: the connection is closed."""
        self._edge.leave(self)
        self._wire = None
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio: data has arrived; if empty, the parser continues with what it has."""
        if data and self._backlog:
            self._backlog.append(data)
            return
        if len(data) > _PIECE_BYTES and self._is_fragmented(data):
            pieces = range(0, len(data), _PIECE_BYTES)
            self._backlog.extend(data[at : at + _PIECE_BYTES] for at in pieces)
            self._pause_transport_reading()
            self._loop.call_soon(self._parse_next)
            return
        self._parse(data)

    def _is_fragmented(self, data: bytes) -> bool:
        """Return whether data may hold many tiny chunks or requests, costly to parse per byte."""
        request = self._current_request
        if request is not None and request.content_length is not None:
            return False
        return data.count(b"\r\n") > len(data) // _BYTES_PER_LINE

    def _parse_next(self) -> None:
        """Parse one piece, and yield to the event loop before the next."""
        if not self._backlog or self._force_close:
            self._backlog.clear()
            return
        self._parse(self._backlog.popleft())
        if self._backlog:
            self._loop.call_soon(self._parse_next)
        elif not (self._reading_paused or self._buffer_paused):
            self._resume_transport_reading()

    def _resume_transport_reading(self) -> None:
        """aiohttp: resume reading, but not before the backlog is parsed."""
        if not self._backlog:
            _resume_transport_reading(self)

    def _parse(self, data: bytes) -> None:
        try:
            _data_received(self, data)
        except MemoryError:
            self._out_of_memory()
            return
        if self._request_count != self._heads_seen:
            self._heads_seen = self._request_count
            self._head_began_at = 0.0
            if self._messages and isinstance(self._messages[-1][0], _ErrInfo):
                self._fail_body(self._messages[-1][0].message)
        elif self._head_began_at == 0.0 and self._waiter is not None:
            self._head_began_at = time.monotonic()

    def _fail_body(self, why: str) -> None:
        """Fail the handler that waits for more of a body, since what came is not part of one.

        aiohttp only queues an error behind the request, so the handler would wait until its
        timeout.
        """
        request = self._current_request
        if request is not None and not request.content.is_eof():
            request.content.set_exception(web.RequestPayloadError(_printable(why)))

    def resume_writing(self) -> None:
        """asyncio: most of what was written has been sent."""
        self._resumes += 1
        super().resume_writing()

    def check(self, now: float) -> None:
        """Close the connection if it has been slow for too long."""
        wire = self._wire
        if wire is None:
            return
        if self._turned_away_at:
            if now - self._turned_away_at > _TURNED_AWAY_S:
                wire.abort()
        elif wire.get_write_buffer_size():
            self._check_reader(wire, now)
        else:
            self._mark = ()
            self._check_head(wire, now)

    def _check_reader(self, wire: asyncio.Transport, now: float) -> None:
        """Disconnect a client that has made no progress in reading its response."""
        unsent = wire.get_write_buffer_size()
        mark = (unsent, _unacknowledged(wire), self._resumes, self._request_count)
        if mark != self._mark:
            self._mark, self._mark_at = mark, now
        elif now - self._mark_at > self._edge.write_timeout_s:
            self._edge.cut_off()
            wire.abort()

    def _check_head(self, wire: asyncio.Transport, now: float) -> None:
        """Close a connection on which a request's head is not completed in time."""
        if self._waiter is None or self._waiter.done() or self._force_close:
            return
        began_at = self._head_began_at or (0.0 if self._request_count else self._accepted_at)
        limit_s = self._edge.header_timeout_s
        if not began_at or now - began_at <= limit_s:
            return
        if self._head_began_at:
            error = SlowClient(f"the headers did not arrive within header_timeout ({limit_s:g} s)")
            wire.write(self._edge.refusal(error, self._is_reserved))
        self.force_close()

    async def start(self) -> None:
        """aiohttp: handle this connection's requests, one after the other."""
        try:
            await super().start()
        except MemoryError:
            self._out_of_memory()

    async def _handle_request(
        self, request: web.BaseRequest, start_time: float | None, request_handler: Handler
    ) -> tuple[web.StreamResponse, bool]:
        """Handle one request; on return, its response has been written or the client has left."""
        try:
            if not self._keepalive_timeout:
                request_handler = _closing(request_handler)
            if hdrs.EXPECT in request.headers:
                request_handler = self._heed_expectation(request_handler)
            answer, is_broken = await super()._handle_request(request, start_time, request_handler)
            if not (is_broken or request.content.is_eof()):
                self.hold.release()
                await self._drop_rest(request, answer)
            return answer, is_broken
        finally:
            self.hold.release()

    def _heed_expectation(self, handler: Handler) -> Handler:
        """Report an unknown expectation in the format of all other errors."""

        async def handle(request: web.BaseRequest) -> web.StreamResponse:
            try:
                return await handler(request)
            except web.HTTPExpectationFailed:
                return self._malformed(request, 417, "only Expect: 100-continue is supported")

        return handle

    async def _drop_rest(self, request: web.BaseRequest, answer: web.StreamResponse) -> None:
        """Read and discard the rest of an unused body, up to the maximum length of a body.

        Otherwise the connection would be reset while the client is still sending, before it has
        read the response. Only clients that send too much are reset.
        """
        content = request.content
        if answer.status == _TOO_LARGE or content.exception() or hdrs.EXPECT in request.headers:
            return
        if (request.content_length or 0) > self._edge.max_linger_bytes:
            return
        with contextlib.suppress(asyncio.TimeoutError, *_CLIENT_ERRORS):
            await asyncio.wait_for(self._read_rest(request), _LINGER_S)

    async def _read_rest(self, request: web.BaseRequest) -> None:
        left = self._edge.max_linger_bytes
        while left > 0 and not request.content.at_eof() and not self._force_close:
            left -= len(await request.content.readany())

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp: return the response to a request that could not be parsed or handled."""
        if request.writer.output_size > 0:
            raise ConnectionError("the response has been started already")
        if isinstance(exc, MemoryError):
            self._edge.log("out of memory while a request was handled")
            error = OutOfMemory("the server is out of memory; try again later")
            return ClosingResponse(self._edge.refusal(error, self._is_reserved), status_of(error))
        if not isinstance(exc, HttpProcessingError):
            logger.error("a bug: a request was not handled", exc_info=exc)
            return self._malformed(request, 500, "an internal error; see the server's log")
        return self._malformed(request, *_status_and_reason(exc))

    def _malformed(self, request: web.BaseRequest, status: int, why: str) -> web.StreamResponse:
        return self._edge.malformed(request, self._is_reserved, status, why)

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp: log an error that ended the connection; in one line if the client caused it."""
        error = kw.get("exc_info")
        if isinstance(error, MemoryError):
            self._edge.log("out of memory on a connection, which was closed")
        elif isinstance(error, _CLIENT_ERRORS):
            self._edge.log(f"a connection was closed: {_printable(str(error))}")
        else:
            logger.error("a bug: %s", args[0] if args else "", exc_info=error)

    def _out_of_memory(self) -> None:
        self._edge.log("out of memory on a connection, which was closed")
        if self._wire is not None:
            self._wire.abort()


class _Server(web.Server):
    """aiohttp's protocol factory, creating our connections."""

    def __init__(self, base: web.Server, edge: Edge, is_reserved: bool) -> None:
        super().__init__(
            base.request_handler,
            request_factory=base.request_factory,
            handler_cancellation=base.handler_cancellation,
        )
        self._options = base._kwargs
        self._edge = edge
        self._is_reserved = is_reserved

    def __call__(self) -> web.RequestHandler:
        """asyncio: return the protocol of a new connection."""
        return Connection(self, self._edge, self._is_reserved, loop=self._loop, **self._options)


class Runner(web.AppRunner):
    """Runs an application on `Connection` objects.

    Args:
        app: The application.
        edge: State shared by all connections.
        is_reserved: Whether this is the management port.
        options: aiohttp's own.
    """

    __slots__ = ("_edge", "_is_reserved")

    def __init__(self, app: web.Application, edge: Edge, is_reserved: bool, **options: Any) -> None:
        # "100 Continue" is only sent once a handler reads the body, see `mms.http.body`.
        for route in app.router.routes():
            route._expect_handler = _await_reading
        app.on_response_prepare.append(_drop_server_header)
        super().__init__(
            app,
            access_log=None,
            handler_cancellation=True,
            # Bodies stay compressed; the worker decodes them, within limits.
            auto_decompress=False,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_FIELD_BYTES,
            # Done by `Connection`, with a limit on bytes.
            lingering_time=0.0,
            **options,
        )
        self._edge = edge
        self._is_reserved = is_reserved

    async def _make_server(self) -> web.Server:
        return _Server(await super()._make_server(), self._edge, self._is_reserved)


def _closing(handler: Handler) -> Handler:
    """Wrap a handler so that the connection is closed after its response, with the header."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        answer = await handler(request)
        answer.force_close()
        return answer

    return handle


async def _await_reading(request: web.Request) -> None:
    """aiohttp: handle an Expect header; "100 Continue" is sent once the body is read."""
    if request.version >= (1, 1) and request.headers[hdrs.EXPECT].lower() != "100-continue":
        raise web.HTTPExpectationFailed


async def _drop_server_header(_: web.Request, answer: web.StreamResponse) -> None:
    """aiohttp: drop the Server header, which discloses versions."""
    if answer.headers.get(hdrs.SERVER) == SERVER_SOFTWARE:
        del answer.headers[hdrs.SERVER]


def _status_and_reason(error: HttpProcessingError) -> tuple[int, str]:
    """Return the status for a request that cannot be parsed, and the reason for the client."""
    if isinstance(error, LineTooLong):
        if error.args[1] == MAX_LINE_BYTES:
            return 414, f"the request line is longer than {MAX_LINE_BYTES} bytes"
        return 431, f"a header is longer than {MAX_FIELD_BYTES} bytes"
    reason = _printable(error.message)
    if reason.startswith("Too many headers"):
        return 431, "too many headers"
    return 400, reason


def _printable(text: str) -> str:
    """Return the first line of an error message; the lines below it quote the client."""
    line = text.strip().split("\n", 1)[0].rstrip(": ")[:_MAX_REASON_CHARS]
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in line)


def _unacknowledged(wire: asyncio.Transport) -> int:
    """Return the bytes in the kernel that the client has not acknowledged yet.

    A slow reader's progress shows there long before the kernel accepts more data.
    """
    sock = wire.get_extra_info("socket")
    try:
        return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
    except OSError:
        return 0
