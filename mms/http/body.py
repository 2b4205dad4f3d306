"""Read a request's body as the chunks it arrives in, within limits of size and time."""

from __future__ import annotations

import asyncio

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from mms.errors import InvalidRequest, PayloadTooLarge, SlowClient
from mms.protocol import Buffer


async def read_body(
    request: web.Request, max_bytes: int, timeout_s: float
) -> tuple[list[Buffer], int]:
    """Give the body's chunks and their total length; they are never joined here.

    Raises:
        PayloadTooLarge: It is longer than `max_bytes`; found from the header where there is one.
        SlowClient: The client took longer than `timeout_s` to send it.
        InvalidRequest: Its transfer or content encoding is broken.
        asyncio.CancelledError: The client left before all of it had come.
    """
    content = request.content
    try:
        if content.is_eof():
            # All of it came with the head, as small bodies do; no timer needed.
            data = content.read_nowait()
            if len(data) > max_bytes:
                raise _too_large(max_bytes)
            return [data], len(data)
        if (request.content_length or 0) > max_bytes:
            raise _too_large(max_bytes)
        return await asyncio.wait_for(_read_chunks(request, max_bytes), timeout_s)
    except asyncio.TimeoutError:
        raise SlowClient(f"the body did not arrive within body_timeout ({timeout_s:g} s)") from None
    except ConnectionResetError:
        # Comes where aiohttp notices before it cancels us, which means the same.
        raise asyncio.CancelledError from None
    except (HttpProcessingError, web.RequestPayloadError, ValueError) as error:
        raise InvalidRequest(f"the body cannot be read: {error}") from None


async def _read_chunks(request: web.Request, max_bytes: int) -> tuple[list[Buffer], int]:
    chunks: list[Buffer] = []
    size = 0
    content = request.content
    try:
        while not content.at_eof():
            chunk = await content.readany()
            size += len(chunk)
            if size > max_bytes:
                raise _too_large(max_bytes)
            if chunk:
                chunks.append(chunk)
    except BaseException:
        # aiohttp keeps the error, which keeps this frame: what has come must not wait for the
        # garbage collector.
        chunks.clear()
        chunk = b""
        raise
    return chunks, size


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the body is longer than max_request_bytes ({max_bytes} bytes); start the server with "
        "--max-request-bytes to allow more"
    )
