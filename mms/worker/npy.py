"""Arrays in NumPy's file format (``.npy``), read without NumPy's own reader.

That one evaluates the header as a Python literal and unpickles objects. Here the header is matched
against the form that the format prescribes, and type and shape are checked against the length of
the body before anything is allocated.
The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import io
import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from mms.archive.signature import MAX_DIMENSIONS, MAX_SIZE
from mms.errors import InvalidRequest
from mms.quoting import quoted
from mms.wire.frames import Buffer

MAGIC = b"\x93NUMPY"
#: Length of the field with the header's length, by version of the format.
_LENGTH_BYTES = {1: 2, 2: 4, 3: 4}
#: NumPy pads the header to a multiple of 64; with 32 axes it takes 500 bytes.
_MAX_HEADER_BYTES = 4096
_DESCR = re.compile(r"""['"]descr['"]\s*:\s*['"]([<>=|]?)([a-zA-Z])([0-9]{0,3})['"]""")
_STRUCTURE = re.compile(r"""['"]descr['"]\s*:\s*\[""")
_ORDER = re.compile(r"""['"]fortran_order['"]\s*:\s*(True|False)""")
_SHAPE = re.compile(r"""['"]shape['"]\s*:\s*\(([0-9L,\s]*)\)""")
#: Sizes in bytes of the element types that are numbers, by NumPy's character for their kind.
_SIZES = {"b": (1,), "i": (1, 2, 4, 8), "u": (1, 2, 4, 8), "f": (2, 4, 8)}


def read_npy(data: Buffer, what: str) -> npt.NDArray[Any]:
    """Return the array in an ``.npy`` file: a copy, writable and in native byte order.

    Args:
        data: The file's content.
        what: Its name, for messages.

    Raises:
        InvalidRequest: It is not such a file, its elements are no numbers, or it is cut short.
    """
    view = memoryview(data)
    header, start = _header(view, what)
    dtype = _dtype(header, what)
    order, sizes = _ORDER.search(header), _SHAPE.search(header)
    if order is None or sizes is None:
        raise InvalidRequest(f"{what} is not an npy file: its header is {quoted(header, 80)}")
    shape = _shape(sizes[1], what)
    expected = math.prod(shape) * dtype.itemsize
    if len(view) - start != expected:
        raise InvalidRequest(
            f"{what} has {len(view) - start} bytes after its npy header, but {dtype} of shape "
            f"{quoted(shape, 80)} takes {expected}"
        )
    if dtype.kind == "b" and (np.frombuffer(view, np.uint8, offset=start) > 1).any():
        raise InvalidRequest(f"{what}: the bytes of booleans must be 0 or 1")
    # A copy: aligned, and writable by the model.
    flat = np.frombuffer(view, dtype, offset=start).astype(dtype.newbyteorder("="))
    try:
        return flat.reshape(shape, order="F" if order[1] == "True" else "C")
    except ValueError:
        # No elements, but sizes whose product exceeds the limit of arrays.
        raise InvalidRequest(f"{what}: no array has the shape {quoted(shape, 80)}") from None


def write_npy(array: npt.NDArray[Any]) -> bytes:
    """Return an array of numbers as an ``.npy`` file."""
    output = io.BytesIO()
    np.save(output, array, allow_pickle=False)
    return output.getvalue()


def _header(view: memoryview, what: str) -> tuple[str, int]:
    """Return the header's text and the position of the first element."""
    if bytes(view[: len(MAGIC)]) != MAGIC:
        raise InvalidRequest(
            f"{what} is not an npy file, which begins with {MAGIC!r}; save the array with "
            "numpy.save"
        )
    version = view[len(MAGIC)] if len(view) > len(MAGIC) else 0
    size = _LENGTH_BYTES.get(version)
    if size is None:
        raise InvalidRequest(f"{what} is an npy file of the unknown version {version}")
    begin = len(MAGIC) + 2 + size
    length = int.from_bytes(view[len(MAGIC) + 2 : begin], "little")
    if length > _MAX_HEADER_BYTES:
        raise InvalidRequest(
            f"{what} has an npy header of {length} bytes, at most {_MAX_HEADER_BYTES} are read"
        )
    if begin + length > len(view):
        raise InvalidRequest(f"{what} is cut short: it ends within its npy header")
    return bytes(view[begin : begin + length]).decode("latin-1"), begin + length


def _dtype(header: str, what: str) -> np.dtype[Any]:
    found = _DESCR.search(header)
    order, kind, size = found.groups() if found else ("", "", "")
    if found is None and not _STRUCTURE.search(header):
        raise InvalidRequest(f"{what} is not an npy file: its header is {quoted(header, 80)}")
    if kind not in _SIZES or not size or int(size) not in _SIZES[kind]:
        name = f"{order}{kind}{size}" if found else "a structure"
        raise InvalidRequest(
            f"{what} holds elements of type {name}; send integers, booleans or floats of 2, 4 or 8 "
            "bytes, or JSON"
        )
    return np.dtype(f"{order}{kind}{size}")


def _shape(text: str, what: str) -> tuple[int, ...]:
    # Python 2 wrote (1L, 3L).
    parts = [part.strip().removesuffix("L") for part in text.split(",") if part.strip()]
    if len(parts) > MAX_DIMENSIONS:
        raise InvalidRequest(f"{what} has {len(parts)} axes, at most {MAX_DIMENSIONS} are allowed")
    if not all(part.isdecimal() and len(part) <= len(str(MAX_SIZE)) for part in parts):
        raise InvalidRequest(f"{what} has the shape ({text[:80]}), whose sizes are no integers")
    return tuple(map(int, parts))
