"""Rows of numbers as text: CSV (RFC 4180), and JSON lines. Pure except for numpy."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from mms.archive.signature import TensorSpec
from mms.errors import InvalidRequest
from mms.quoting import quoted
from mms.wire.frames import Buffer
from mms.worker.json_text import (
    check_elements,
    has_long_integer,
    load_json,
    too_many_elements,
    unmarked,
)

#: Characters of CSV without fractions, exponents, NaN and infinity.
_WHOLE = b'0123456789,+- \t\r\n"'
_SHOWN_CHARS = 40


def read_csv(data: Buffer, what: str, max_elements: int, has_header: bool) -> npt.NDArray[Any]:
    """Return the numbers of a CSV document: int64 if none has a fraction, else float64.

    Shapes: (rows, columns); empty lines are left out.

    Args:
        data: The document, in UTF-8, or UTF-16 with a byte order mark.
        what: Its name, for messages.
        max_elements: Maximum number of values.
        has_header: Whether the first line names the columns.

    Raises:
        InvalidRequest: It is not in that encoding, a value is not a number, or the rows differ in
            length.
        PayloadTooLarge: It has more values.
    """
    text = _bounded(data, what, max_elements)
    if has_header:
        text = text.partition(b"\n")[2]
    if not text.strip():
        raise InvalidRequest(f"{what} has no rows; send a line of numbers for each")
    # NumPy wraps integers beyond 64 bits.
    are_whole = not text.translate(None, _WHOLE) and not has_long_integer(text)
    try:
        return _numbers(text, np.int64 if are_whole else np.float64)
    except ValueError as error:
        raise InvalidRequest(f"{what}: {_fault(text, str(error), has_header)}") from None


def write_csv(array: npt.NDArray[Any]) -> bytes:
    """Return an array as CSV, a line per entry of axis 0 with everything in it."""
    rows = array.reshape(len(array), -1) if array.ndim else array.reshape(1, 1)
    return b"".join(f"{','.join(map(repr, row))}\n".encode() for row in rows.tolist())


def read_json_lines(data: Buffer, what: str, max_elements: int) -> list[Any]:
    """Return the value of each line; empty lines are left out.

    Args:
        data: The document, in UTF-8, or UTF-16 with a byte order mark.
        what: Its name, for messages.
        max_elements: Maximum number of elements in all lines.

    Raises:
        InvalidRequest: A line is not JSON.
        PayloadTooLarge: It has more elements.
    """
    text = _bounded(data, what, max_elements)
    rows = []
    for number, line in enumerate(text.split(b"\n"), 1):
        if line := line.strip():
            try:
                rows.append(load_json(line))
            except ValueError as error:
                raise InvalidRequest(f"{what}: line {number} is not valid JSON: {error}") from None
    if not rows:
        raise InvalidRequest(f"{what} has no lines; send a JSON value on a line for each row")
    return rows


def shaped(rows: npt.NDArray[Any], spec: TensorSpec) -> npt.NDArray[Any]:
    """Return rows of a table with each row in the shape that the signature states.

    Shapes: (N, K) -> (N, *axes), if K is the product of the axes; one of them may be free. For a
    signature of one axis, a single row or column is (K,). All else stays as it is.
    """
    axes = spec.shape[1:]
    if not axes:
        return rows.ravel() if 1 in rows.shape else rows
    if len(axes) == 1 or axes.count(0) > 1:
        return rows
    known = math.prod(size for size in axes if size)
    free = rows.shape[1] // known
    sizes = [size or free for size in axes]
    return rows.reshape(len(rows), *sizes) if math.prod(sizes) == rows.shape[1] else rows


def _bounded(data: Buffer, what: str, max_elements: int) -> bytes:
    """Return the text in UTF-8, once it is known how many values it has at most."""
    try:
        text = bytes(unmarked(data))
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{what} is not text in {error.encoding} (byte {error.start}); send UTF-8"
        ) from None
    if text.count(b"\n") > max_elements:
        raise too_many_elements(what, max_elements)
    check_elements(text, what, max_elements)
    # Lines may also end in a carriage return alone.
    return text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _numbers(text: bytes, dtype: Any) -> npt.NDArray[Any]:
    return np.loadtxt(_lines(text), dtype, None, ",", ndmin=2, quotechar='"')


def _lines(text: bytes) -> Iterator[str]:
    """Yield the lines; all of them at once, as strings, would take several times the memory."""
    return (line.decode(errors="replace") for line in io.BytesIO(text))


def _fault(text: bytes, reason: str, has_header: bool) -> str:
    """Return where a table is malformed."""
    width = 0
    for number, line in enumerate(_lines(text), 2 if has_header else 1):
        if not line.strip():
            continue
        cells = line.split(",")
        for column, cell in enumerate(cells, 1):
            if not _is_number(cell):
                said = quoted(cell.strip()[: _SHOWN_CHARS + 1], _SHOWN_CHARS)
                advice = (
                    "; a first line with the columns' names needs Content-Type: text/csv; "
                    "header=present"
                    if number == 1 and any(map(str.isalpha, cell))
                    else ""
                )
                return f"line {number}, column {column} is not a number but {said}{advice}"
        if width and len(cells) != width:
            return f"line {number} has {len(cells)} values instead of {width}"
        width = len(cells)
    return reason[:200]


def _is_number(cell: str) -> bool:
    try:
        float(cell.strip().strip('"'))
    except ValueError:
        return False
    return True
