"""Parse JSON with the semantics of Python's own parser, at orjson's speed, within limits.

orjson differs in four relevant ways: it turns integers beyond 64 bits into floats, and refuses NaN
and Infinity, lone surrogates, and byte order marks. Bodies with any of these are parsed again by
Python's parser. Pure except for numpy.
"""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson

from mms.errors import InvalidRequest, PayloadTooLarge
from mms.wire.frames import Buffer

#: Maximum digits of an integer: conversion takes quadratic time. Python's own default.
MAX_INTEGER_DIGITS = 4300
#: The shortest integer that may not fit 64 bits has 19 digits.
_LONG_DIGITS = 19
_LONG_INTEGER = re.compile(rb"(?<![.0-9])[0-9]{19}")
#: Below this size, translating a body is cheaper than scanning it with NumPy.
_SMALL_BYTES = 4096
_ONE_DIGIT = bytes.maketrans(b"0123456789", b"0" * 10)
_LONG_ZEROS = b"0" * _LONG_DIGITS
#: Scanned in steps that stay in a core's cache.
_STEP_BYTES = 1 << 18
#: The high halves of four ASCII digits; ``:;<=>?`` share them, which costs a second check.
_HIGH_HALVES = np.uint32(0xF0F0F0F0)
_DIGITS_HIGH = np.uint32(0x30303030)


def read_json(data: Buffer, what: str, max_elements: int, is_strict: bool = False) -> Any:
    """Return a JSON document's value.

    Args:
        data: The document.
        what: Its name, for messages: "the body", "input 'x'".
        max_elements: Maximum number of elements.
        is_strict: Whether NaN, infinity and lone surrogates are refused.

    Raises:
        InvalidRequest: It is not valid JSON.
        PayloadTooLarge: It has more elements.
    """
    check_elements(data, what, max_elements)
    try:
        return load_json(data, is_strict)
    except ValueError as error:
        raise InvalidRequest(f"{what} is not valid JSON: {_reason(data, error)}") from None


def load_json(data: Buffer, is_strict: bool = False, may_be_marked: bool = True) -> Any:
    """Return a JSON document's value, without a limit on its size.

    Args:
        data: The document.
        is_strict: As for `read_json`.
        may_be_marked: Whether it may begin with a byte order mark, or be in UTF-16 or UTF-32.

    Raises:
        ValueError: It is not valid JSON.
        InvalidRequest: An integer has too many digits.
    """
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        text = unmarked(data) if may_be_marked else data
        if text is not data:
            return load_json(text, is_strict, may_be_marked=False)
        if is_strict:
            raise
        return _load_slowly(data, error)
    if has_long_integer(data):
        return _load_exactly(data, is_strict)
    return document


def unmarked(data: Buffer) -> Buffer:
    """Return a text in UTF-8 without its byte order mark; it may be in UTF-16 or UTF-32.

    Without a mark, those are recognised by the zeros in the first two characters of JSON.

    Raises:
        ValueError: It is not in the encoding that its first bytes are of.
    """
    encoding = json.detect_encoding(bytes(data[:4]))
    if encoding == "utf-8":
        return data
    if encoding == "utf-8-sig":
        return memoryview(data)[3:]
    return (
        str(data, encoding, "surrogatepass").removeprefix("\ufeff").encode(errors="surrogatepass")
    )


def check_elements(data: Buffer, what: str, max_elements: int) -> None:
    """Refuse a document with too many elements before any is created.

    Raises:
        PayloadTooLarge: It has more than `max_elements` values, lists and objects.
    """
    # Each element takes a byte.
    if len(data) <= max_elements:
        return
    text = bytes(data)
    if _separators(text) > max_elements and _elements_outside_texts(text) > max_elements:
        raise too_many_elements(what, max_elements)


def too_many_elements(what: str, max_elements: int) -> PayloadTooLarge:
    """Return the error for a document with too many elements."""
    return PayloadTooLarge(
        f"{what} has more than max_json_elements ({max_elements}) values, lists and objects; "
        "start the server with --max-json-elements to allow more"
    )


def has_long_integer(data: Buffer) -> bool:
    """Return whether a document may have an integer of 19 digits or more, not counting fractions.

    Costs a thirtieth of parsing it; a quarter where most numbers have 17 digits.
    """
    if len(data) < _LONG_DIGITS:
        return False
    if len(data) <= _SMALL_BYTES:
        text = bytes(data)
        return _LONG_ZEROS in text.translate(_ONE_DIGIT) and bool(_LONG_INTEGER.search(text))
    if _LONG_INTEGER.match(bytes(data[:_LONG_DIGITS])):
        return True
    # Each step sees the byte before it, and all digits of numbers that begin in it.
    ends = range(_STEP_BYTES, len(data) + _STEP_BYTES, _STEP_BYTES)
    return any(_has_long_integer(data[max(at - _STEP_BYTES - 4, 0) : at + 20]) for at in ends)


def _has_long_integer(data: Buffer) -> bool:
    """Scan one step for numbers that begin after its first byte."""
    words = np.frombuffer(data, np.uint32, len(data) // 4)
    full = (words & _HIGH_HALVES) == _DIGITS_HIGH
    # 19 digits in a row fill four words of four, wherever they begin.
    runs = full[:-3] & full[1:-2]
    runs &= full[2:-1] & full[3:]
    if not runs.any():
        return False
    text = np.frombuffer(data, np.uint8)
    is_digit = (text - ord("0")) < 10
    length = len(text) - _LONG_DIGITS
    # An integer follows neither a digit nor a point; checking a few digits rules out most places.
    found = (is_digit[2 : length + 2] > is_digit[:length]) & (text[:length] != ord("."))
    for after in (5, 10, _LONG_DIGITS):
        found &= is_digit[after : length + after]
    if not found.any():
        return False
    at = np.flatnonzero(found)
    for after in range(1, _LONG_DIGITS + 1):
        at = at[is_digit[at + after]]
    return len(at) > 0


def _reason(data: Buffer, error: ValueError) -> str:
    """Return why a document is not JSON; the parser names a wrong encoding in its own words."""
    try:
        str(unmarked(data), "utf-8", "surrogatepass")
    except UnicodeDecodeError as fault:
        return f"it is not UTF-8 text (byte {fault.start}); send UTF-8"
    return str(error)


def _load_slowly(data: Buffer, reason: ValueError) -> Any:
    try:
        return json.loads(bytes(data), parse_int=to_integer)
    except (ValueError, RecursionError):
        raise reason from None


def _load_exactly(data: Buffer, is_strict: bool) -> Any:
    constant = _refuse_constant if is_strict else None
    try:
        return json.loads(bytes(data), parse_int=to_integer, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def to_integer(text: str, base: int = 10) -> int:
    """Return a decimal integer of any reasonable length.

    Args:
        text: The digits, with or without a sign.
        base: 0 for Python's source syntax: underscores, and no leading zeros.

    Raises:
        InvalidRequest: It has more than `MAX_INTEGER_DIGITS` digits.
        ValueError: It is not an integer.
    """
    if len(text) > MAX_INTEGER_DIGITS:
        raise InvalidRequest(
            f"an integer has {len(text)} digits; at most {MAX_INTEGER_DIGITS} can be read"
        )
    return int(text, base)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _separators(text: bytes) -> int:
    """Return an upper bound of the elements: each follows a comma or an opening bracket."""
    return 1 + text.count(b",") + text.count(b"[") + text.count(b"{")


def _elements_outside_texts(text: bytes) -> int:
    """Count elements, ignoring strings; only empty containers with a space count twice."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    count = 1
    is_inside = False
    for start in range(0, len(text), _STEP_BYTES):
        step = np.frombuffer(text, np.uint8, min(_STEP_BYTES, len(text) - start), start)
        inside = np.logical_xor.accumulate(step == ord('"')) ^ is_inside
        is_inside = bool(inside[-1])
        outside = step[~inside].tobytes()
        count += _separators(outside) - 1 - outside.count(b"[]") - outside.count(b"{}")
    return count
