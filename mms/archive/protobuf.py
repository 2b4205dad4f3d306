"""Walk through the fields of a protobuf message, without its schema. Pure."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Buffer = bytes | mmap.mmap

# Wire types: https://protobuf.dev/programming-guides/encoding/#structure
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_VARINT_BYTES = 10


def fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Return (number, start, end) of each length-delimited field of a message.

    Raises:
        ValueError: The bytes are not a message.
    """
    for number, start_, end_, is_bytes in all_fields(data, start, end):
        if is_bytes:
            yield number, start_, end_


def all_fields(data: Buffer, start: int, end: int) -> Iterator[tuple[int, int, int, bool]]:
    """Return (number, start, end, whether it is length-delimited) of each field of a message.

    The start of a number is its value: read it from there on with `varint`.

    Raises:
        ValueError: The bytes are not a message.
    """
    at = start
    while at < end:
        tag, at = varint(data, at, end)
        wire_type = tag & 7
        if wire_type == _BYTES:
            length, at = varint(data, at, end)
            if at + length > end:
                raise ValueError("a field is longer than its message")
            yield tag >> 3, at, at + length, True
            at += length
        elif wire_type == _VARINT:
            begin = at
            _, at = varint(data, at, end)
            yield tag >> 3, begin, at, False
        elif wire_type in (_FIXED64, _FIXED32):
            at += 8 if wire_type == _FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {wire_type}")


def varint(data: Buffer, at: int, end: int) -> tuple[int, int]:
    """Return the number at an offset, and the offset after it.

    Raises:
        ValueError: It does not end.
    """
    value = 0
    for shift in range(_MAX_VARINT_BYTES):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at
    raise ValueError("a number does not end")
