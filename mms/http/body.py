"""Read a request's body as the chunks that arrive, within limits of size, time and budget."""

from __future__ import annotations

import asyncio

from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from mms.errors import InvalidRequest, PayloadTooLarge, SlowClient, UnsupportedMedia
from mms.http.connection import hold_of
from mms.serving.budget import CHUNK_OVERHEAD_BYTES, Hold
from mms.wire.frames import Buffer

#: Content encodings that workers decode.
_ENCODINGS = ("gzip", "deflate", "identity")
#: Shorter chunks are copied together, up to a length, so that a body sent byte by byte does not
#: become an object per byte.
_SHORT_CHUNK_BYTES, _JOINED_BYTES = 4 << 10, 64 << 10
_MAX_QUOTED_CHARS = 50


def content_encoding(request: web.Request) -> str:
    """Return the Content-Encoding of a body that a worker is to decode, "" if it has none.

    Raises:
        UnsupportedMedia: It is not supported, or there are several.
    """
    sent = request.headers.get(hdrs.CONTENT_ENCODING)
    if sent is None:
        return ""
    encoding = ", ".join(request.headers.getall(hdrs.CONTENT_ENCODING)).strip().lower()
    if encoding not in _ENCODINGS:
        raise UnsupportedMedia(
            f"unsupported Content-Encoding {encoding[:_MAX_QUOTED_CHARS]!r}; send the body with "
            "one of gzip, deflate and identity"
        )
    return encoding


async def read_body(
    request: web.Request, max_bytes: int, timeout_s: float, is_packed: bool = False
) -> tuple[list[Buffer], int]:
    """Return the body's chunks, never joined, and their total length.

    They count towards the request's hold of the budget, which its connection releases.

    Args:
        request: The request.
        max_bytes: Maximum length of the body.
        timeout_s: Time the client has to send it.
        is_packed: Whether it may have a Content-Encoding, checked before and decoded elsewhere.

    Raises:
        PayloadTooLarge: It is longer than `max_bytes`; known from Content-Length if there is one.
        BufferFull: The server holds as many bytes as it may.
        SlowClient: The client took longer than `timeout_s` to send it.
        UnsupportedMedia: It has a Content-Encoding, and must not.
        InvalidRequest: Its transfer encoding is malformed.
        asyncio.CancelledError: The client disconnected before the whole body had arrived.
    """
    content = request.content
    hold = hold_of(request)
    try:
        _check_encodings(request, is_packed)
        if content.is_eof():
            # The whole body came with the head, as small bodies do; no timer is needed.
            data = content.read_nowait()
            if len(data) > max_bytes:
                raise _too_large(max_bytes)
            hold.grow(len(data))
            if hdrs.EXPECT in request.headers:
                await _send_continue(request)
            return [data], len(data)
        length = request.content_length or 0
        if length > max_bytes:
            raise _too_large(max_bytes)
        hold.check(length)
        if hdrs.EXPECT in request.headers:
            await _send_continue(request)
        return await asyncio.wait_for(_read_chunks(content, max_bytes, hold), timeout_s)
    except asyncio.TimeoutError:
        raise SlowClient(f"the body did not arrive within body_timeout ({timeout_s:g} s)") from None
    except ConnectionResetError:
        # aiohttp noticed the disconnect before it cancelled the handler; it means the same.
        raise asyncio.CancelledError from None
    except (HttpProcessingError, web.RequestPayloadError, ValueError) as error:
        reason = str(error).strip().split("\n", 1)[0][:_MAX_QUOTED_CHARS]
        raise InvalidRequest(f"the body cannot be read: {reason}") from None


async def _read_chunks(
    content: StreamReader, max_bytes: int, hold: Hold
) -> tuple[list[Buffer], int]:
    chunks: list[Buffer] = []
    chunk, joined = b"", bytearray()
    size = 0
    try:
        while not content.at_eof():
            chunk = await content.readany()
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            if len(chunk) > _SHORT_CHUNK_BYTES:
                hold.grow(len(chunk) + CHUNK_OVERHEAD_BYTES)
                chunks.append(chunk)
                joined = bytearray()
                continue
            hold.grow(len(chunk))
            if not joined or len(joined) > _JOINED_BYTES:
                hold.grow(CHUNK_OVERHEAD_BYTES)
                joined = bytearray()
                chunks.append(joined)
            joined += chunk
    except BaseException:
        # aiohttp keeps the error, which keeps this frame: the chunks must not wait for the garbage
        # collector.
        chunks.clear()
        chunk, joined = b"", bytearray()
        raise
    return chunks, size


def _check_encodings(request: web.Request, is_packed: bool) -> None:
    headers = request.headers
    if not is_packed and headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise UnsupportedMedia("this route accepts no Content-Encoding")
    if headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower() != "chunked":
        # aiohttp decodes the last one only.
        raise InvalidRequest("the only supported Transfer-Encoding is chunked")


async def _send_continue(request: web.Request) -> None:
    """Send "100 Continue" to a client that waits for it."""
    if request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # As aiohttp does: the response has not been started.
        request.writer.output_size = 0


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is longer than max_request_bytes ({max_bytes} bytes); start the server with "
        "--max-request-bytes to allow more"
    )
