"""Read names and shapes of the arrays in an MXNet ``.params`` file, without MXNet.

The data of the arrays is skipped, so that a file of gigabytes costs as much as a small one. The
layout is that of ``NDArray::Save`` in MXNet's src/ndarray/ndarray.cc, of all versions since 0.5.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

from mms.errors import ArchiveError

#: The first bytes of a list of arrays, and of an array by the version that wrote it. Before these,
#: an array began with its number of axes.
_LIST = 0x112
_V1, _V2, _V3 = 0xF993FAC8, 0xF993FAC9, 0xF993FACA
#: Number of auxiliary arrays by storage type: dense, row_sparse, csr.
_AUXILIARY = {-1: 0, 0: 0, 1: 1, 2: 2}
#: Bytes of an element by its type code.
_SIZES = {0: 4, 1: 8, 2: 2, 3: 1, 4: 4, 5: 1, 6: 8, 7: 1, 8: 2, 9: 2, 10: 4, 11: 8, 12: 2}
_MAX_AXES = 32
_MAX_ARRAYS = 1 << 20
_MAX_NAME_BYTES = 1 << 16


class _Malformed(Exception):
    pass


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each array by its name, without the ``arg:`` or ``aux:`` before it.

    Raises:
        ArchiveError: It is not a parameter file, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return _Reader(file).read()
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from None
    except (_Malformed, struct.error, UnicodeDecodeError):
        raise ArchiveError(
            f"{path}: not a parameter file of MXNet, or cut short; save it again with "
            "save_checkpoint, export or mx.nd.save"
        ) from None


def is_parameters(head: bytes) -> bool:
    """Whether a file with these first bytes is a parameter file."""
    return head[:8] == struct.pack("<Q", _LIST)


def bare_name(name: str) -> str:
    """Remove the ``arg:`` or ``aux:`` that save_checkpoint puts before a parameter's name."""
    return name.split(":", 1)[1] if name.startswith(("arg:", "aux:")) else name


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._end = os.fstat(file.fileno()).st_size

    def read(self) -> dict[str, tuple[int, ...]]:
        magic, _, count = self._numbers("<QQQ")
        if magic != _LIST or count > _MAX_ARRAYS:
            raise _Malformed
        shapes = [self._array() for _ in range(count)]
        (named,) = self._numbers("<Q")
        if named not in (0, count):
            raise _Malformed
        names = [self._name() for _ in range(named)]
        return {bare_name(name): shape for name, shape in zip(names, shapes, strict=False)}

    def _array(self) -> tuple[int, ...]:
        (magic,) = self._numbers("<I")
        auxiliary = 0
        if magic in (_V2, _V3):
            (storage,) = self._numbers("<i")
            if storage not in _AUXILIARY:
                raise _Malformed
            auxiliary = _AUXILIARY[storage]
            stored = self._shape() if auxiliary else ()
            shape = self._shape()
        elif magic == _V1:
            stored, shape = (), self._shape()
        else:
            stored, shape = (), self._sizes("I", magic)
        is_none = not shape and magic != _V3
        if is_none:
            return shape
        _, _, code = self._numbers("<iii")
        parts = []
        for _ in range(auxiliary):
            (kind,) = self._numbers("<i")
            parts.append((kind, self._shape()))
        if auxiliary:
            # Its own size may have been written before the array was computed: the last of the
            # auxiliary arrays has an entry for each stored row, or element.
            _, places = parts[-1]
            stored = (*places, *stored[1:])
        for kind, sizes in [(code, stored if auxiliary else shape), *parts]:
            if kind not in _SIZES:
                raise _Malformed
            self._skip(_SIZES[kind] * math.prod(sizes))
        return shape

    def _shape(self) -> tuple[int, ...]:
        (axes,) = self._numbers("<i")
        return self._sizes("q", max(axes, 0))

    def _sizes(self, code: str, axes: int) -> tuple[int, ...]:
        if axes > _MAX_AXES:
            raise _Malformed
        sizes = self._numbers(f"<{axes}{code}")
        if any(size < 0 for size in sizes):
            raise _Malformed
        return tuple(sizes)

    def _name(self) -> str:
        (length,) = self._numbers("<Q")
        if length > _MAX_NAME_BYTES:
            raise _Malformed
        return self._file.read(length).decode()

    def _numbers(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self._file.read(struct.calcsize(layout)))

    def _skip(self, count: int) -> None:
        if self._file.tell() + count > self._end:
            raise _Malformed
        self._file.seek(count, os.SEEK_CUR)
