"""Decode a body's Content-Encoding within limits; the server passes bodies on encoded. Pure."""

from __future__ import annotations

import zlib

from mms.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from mms.wire.frames import Buffer
from mms.wire.messages import Request, RequestLimits

ACCEPTED = "gzip, deflate and identity"
#: Maximum number of stacked codings. One is usual; each may multiply the output of the previous.
MAX_CODINGS = 2
#: Members of a gzip body. Parallel compressors write one per 64 KiB or more; each costs some
#: microseconds, however short it is.
MAX_MEMBERS = 4096
#: Up to this size the compression ratio is not limited.
FREE_BYTES = 1 << 20
#: Output size of one step, and so the most that is decompressed beyond the limit.
_STEP_BYTES = 1 << 20
#: Input size of one step: the decompressor copies unconsumed input.
_FEED_BYTES = 1 << 16
_ZLIB, _GZIP, _RAW = zlib.MAX_WBITS, zlib.MAX_WBITS + 16, -zlib.MAX_WBITS


def unpacked(request: Request, limits: RequestLimits) -> memoryview:
    """Return a request's body with its Content-Encoding decoded.

    Raises:
        UnsupportedMedia: The encoding is not supported.
        InvalidRequest: The body is truncated or does not match its encoding.
        PayloadTooLarge: It unpacks to more than the limits allow.
    """
    body = request.body
    if not request.meta.content_encoding:
        return body
    for coding in reversed(_codings(request.meta.content_encoding)):
        body = memoryview(_unpacked(body, coding, limits))
    return body


def _codings(header: str) -> list[str]:
    """Return the codings in a header, in the order in which they were applied."""
    names = [name.strip().lower() for name in header.split(",")]
    codings = [name.removeprefix("x-") for name in names if name not in ("", "identity")]
    for coding in codings:
        if coding not in ("gzip", "deflate"):
            raise UnsupportedMedia(
                f"the content encoding {coding[:60]!r} is not supported; send {ACCEPTED}"
            )
    if len(codings) > MAX_CODINGS:
        raise UnsupportedMedia(
            f"the body has {len(codings)} content encodings, at most {MAX_CODINGS} are allowed; "
            f"send {ACCEPTED}"
        )
    return codings


def _unpacked(body: memoryview, coding: str, limits: RequestLimits) -> bytearray:
    result = bytearray()
    members = 1
    engine = zlib.decompressobj(_GZIP if coding == "gzip" else _deflate_format(body))
    try:
        for start in range(0, len(body), _FEED_BYTES):
            data: Buffer = body[start : start + _FEED_BYTES]
            while data:
                if engine.eof:
                    members += 1
                    _check_members(members, coding)
                    engine = zlib.decompressobj(_GZIP)
                result += engine.decompress(data, _STEP_BYTES)
                _check_size(len(result), len(body), limits)
                data = engine.unused_data if engine.eof else engine.unconsumed_tail
        while not engine.eof:
            # The decompressor may still hold output, though it has consumed all bytes.
            rest = engine.decompress(b"", _STEP_BYTES)
            if not rest:
                raise InvalidRequest(f"the body is truncated: its {coding} data does not end")
            result += rest
            _check_size(len(result), len(body), limits)
    except zlib.error as error:
        raise InvalidRequest(f"the body is not valid {coding} data: {error}") from None
    return result


def _deflate_format(body: memoryview) -> int:
    """Distinguish zlib data, which the standard calls deflate, from raw deflate data."""
    head = bytes(body[:2])
    is_zlib = len(head) == 2 and head[0] & 15 == 8 and int.from_bytes(head, "big") % 31 == 0
    return _ZLIB if is_zlib else _RAW


def _check_members(members: int, coding: str) -> None:
    if coding != "gzip":
        raise InvalidRequest(f"the body has bytes after the end of its {coding} data")
    if members > MAX_MEMBERS:
        raise InvalidRequest(f"the body has more than {MAX_MEMBERS} gzip members")


def _check_size(size: int, packed_bytes: int, limits: RequestLimits) -> None:
    if size > limits.max_decompressed_bytes:
        raise PayloadTooLarge(
            "the body unpacks to more than max_decompressed_bytes "
            f"({limits.max_decompressed_bytes}); start the server with --max-decompressed-bytes "
            "to allow more"
        )
    if size > FREE_BYTES and size > packed_bytes * limits.max_decompression_ratio:
        raise PayloadTooLarge(
            "the body unpacks to more than max_decompression_ratio "
            f"({limits.max_decompression_ratio}) times its {packed_bytes} bytes; start the server "
            "with --max-decompression-ratio to allow more, or send it uncompressed"
        )
