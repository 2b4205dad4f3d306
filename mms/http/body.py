"""Read a request's body as the chunks it arrives in, within limits of size, time and budget."""

from __future__ import annotations

import asyncio

from aiohttp import StreamReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from mms.errors import InvalidRequest, PayloadTooLarge, SlowClient, UnsupportedMedia
from mms.http.connection import hold_of
from mms.serving.budget import CHUNK_OVERHEAD_BYTES, Hold
from mms.wire.frames import Buffer

#: Encodings that workers undo.
_ENCODINGS = ("gzip", "deflate", "identity")
#: Shorter chunks are copied together, up to a length, so that a body sent byte by byte does not
#: become an object per byte.
_SHORT_CHUNK_BYTES, _JOINED_BYTES = 4 << 10, 64 << 10
_MAX_QUOTED_CHARS = 50


def content_encoding(request: web.Request) -> str:
    """Return the Content-Encoding of a body that a worker is to unpack, "" if it has none.

    Raises:
        UnsupportedMedia: It is none that workers undo, or several.
    """
    sent = request.headers.get(hdrs.CONTENT_ENCODING)
    if sent is None:
        return ""
    encoding = ", ".join(request.headers.getall(hdrs.CONTENT_ENCODING)).strip().lower()
    if encoding not in _ENCODINGS:
        raise UnsupportedMedia(
            f"the body's Content-Encoding is {encoding[:_MAX_QUOTED_CHARS]!r}; what can be undone "
            "is one of gzip, deflate and identity"
        )
    return encoding


async def read_body(
    request: web.Request, max_bytes: int, timeout_s: float, is_packed: bool = False
) -> tuple[list[Buffer], int]:
    """Return the body's chunks and their total length; they are never joined here.

    They count in the request's hold of the budget, which its connection releases.

    Args:
        request: The request.
        max_bytes: The longest body to take.
        timeout_s: What the client gets to send it.
        is_packed: Whether it may have a Content-Encoding, checked before and undone elsewhere.

    Raises:
        PayloadTooLarge: It is longer than `max_bytes`; found from the header where there is one.
        BufferFull: The server holds as many bytes as it may.
        SlowClient: The client took longer than `timeout_s` to send it.
        UnsupportedMedia: It is encoded, and must not be.
        InvalidRequest: Its transfer encoding is broken.
        asyncio.CancelledError: The client left before all of it had come.
    """
    content = request.content
    hold = hold_of(request)
    try:
        _check_encodings(request, is_packed)
        if content.is_eof():
            # All of it came with the head, as small bodies do; no timer needed.
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
        # Comes where aiohttp notices before it cancels us, which means the same.
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
        # aiohttp keeps the error, which keeps this frame: what has come must not wait for the
        # garbage collector.
        chunks.clear()
        chunk, joined = b"", bytearray()
        raise
    return chunks, size


def _check_encodings(request: web.Request, is_packed: bool) -> None:
    headers = request.headers
    if not is_packed and headers.get(hdrs.CONTENT_ENCODING, "identity").lower() != "identity":
        raise UnsupportedMedia("this route takes no Content-Encoding")
    if headers.get(hdrs.TRANSFER_ENCODING, "chunked").lower() != "chunked":
        # aiohttp undoes the last one only.
        raise InvalidRequest("the only Transfer-Encoding taken is chunked")


async def _send_continue(request: web.Request) -> None:
    """Tell a client that asked first that its body is wanted."""
    if request.version >= (1, 1):
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        # As aiohttp does: the answer has not been begun.
        request.writer.output_size = 0


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is longer than max_request_bytes ({max_bytes} bytes); start the server with "
        "--max-request-bytes to allow more"
    )
