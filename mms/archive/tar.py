"""Unpack a tar file, plain or packed with gzip, under the limits for zip files.

A tar file has no directory: what a member costs is known only when its header is reached. So each
header is checked before its member is written, and the bytes are counted as they are unpacked.
`tarfile` reads a single header here and nothing else: it would hold one that claims gigabytes in
memory, and its own filters do not exist before Python 3.11.4.
"""

from __future__ import annotations

import errno
import shutil
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from mms.archive.members import (
    FileNames,
    UnpackLimits,
    is_bomb,
    not_a_file,
    safe_name,
    too_large,
    too_many,
)
from mms.errors import ArchiveError, StorageFull

_BLOCK = tarfile.BLOCKSIZE
_CHUNK_BYTES = 64 << 10
_GZIP = b"\x1f\x8b"
#: Compressions that are not unpacked: nothing on the way to SageMaker writes them.
_OTHERS = {b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
#: A long name, or the extended attributes of a file.
_MAX_EXTENSION_BYTES = 64 << 10
#: A member has at most a long name, a long link and a header of each kind of pax.
_MAX_EXTENSIONS = 4
#: What may follow the end: tar fills up to 1 MiB with zeros.
_MAX_TAIL_BYTES = 1 << 20
_PAX, _PAX_GLOBAL = tarfile.XHDTYPE, tarfile.XGLTYPE
_EXTENSIONS = (
    _PAX,
    _PAX_GLOBAL,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_tar(path: Path) -> bool:
    """Whether a file is a tar file, by its first block; a compressed file counts as one.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        head = file.read(_BLOCK)
    if head.startswith((_GZIP, *_OTHERS)):
        return True
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def unpack_tar(path: Path, folder: Path, limits: UnpackLimits) -> None:
    """Unpack a tar file's files into a folder; other folders than theirs are not created.

    Args:
        path: The tar file.
        folder: An existing, empty folder. It is empty again after an error.
        limits: Limits above which the file is refused.

    Raises:
        ArchiveError: It is damaged, or a member is not allowed; StorageFull if the disk has no
            space.
    """
    try:
        with path.open("rb") as file:
            _unpack(_Stream(file, path, limits), folder, limits)
    except BaseException as error:
        for entry in folder.iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        if not isinstance(error, OSError):
            raise
        if error.errno in _FULL:
            raise StorageFull(
                f"{path}: cannot be unpacked: {error.strerror}; free some space, or set work_dir "
                "to another folder"
            ) from error
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Stream:
    """The bytes of a tar file in order, unpacked as they are read.

    Args:
        file: The file, at its beginning.
        path: Its name, for messages.
        limits: Limits for unpacking.
    """

    def __init__(self, file: IO[bytes], path: Path, limits: UnpackLimits) -> None:
        self.path = path
        self._file = file
        self._limits = limits
        self._packed = file.read(_CHUNK_BYTES)
        for mark, name in _OTHERS.items():
            if self._packed.startswith(mark):
                raise ArchiveError(
                    f"{path}: compressed with {name}; only gzip is supported: pack it again with "
                    "tar -czf"
                )
        self.is_gzip = self._packed.startswith(_GZIP)
        self._inflate = zlib.decompressobj(wbits=31)
        self._taken = self._given = 0
        # Unpacked and not yet read, from a place on: most reads are short.
        self._ready, self._place = b"", 0

    def read(self, size: int) -> bytes:
        """Return as many bytes, or fewer at the end.

        Raises:
            ArchiveError: The file is damaged, or unpacks to too many bytes.
        """
        parts = []
        while size > 0:
            if self._place == len(self._ready):
                self._ready, self._place = self._next_chunk(), 0
                if not self._ready:
                    break
            part = self._ready[self._place : self._place + size]
            self._place += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def read_exactly(self, size: int) -> bytes:
        """Return as many bytes.

        Raises:
            ArchiveError: There are fewer; and as `read`.
        """
        data = self.read(size)
        if len(data) < size:
            raise _cut_short(self.path)
        return data

    def _next_chunk(self) -> bytes:
        """Return the next bytes; none only at the end."""
        if not self.is_gzip:
            self._fill()
            chunk, self._packed = self._packed, b""
            return chunk
        while self._fill():
            if self._inflate.eof:
                if not self._next_part_of_gzip():
                    return b""
                continue
            before = len(self._packed)
            try:
                chunk = self._inflate.decompress(self._packed, _CHUNK_BYTES)
            except zlib.error as error:
                raise ArchiveError(f"{self.path}: the archive is damaged: {error}") from None
            self._packed = self._inflate.unconsumed_tail or self._inflate.unused_data
            self._taken += before - len(self._packed)
            self._given += len(chunk)
            if is_bomb(self._given, self._taken, self._limits):
                raise ArchiveError(
                    f"{self.path}: unpacks to over {self._limits.ratio} times its packed size"
                )
            if chunk:
                return chunk
        if not self._inflate.eof:
            raise _cut_short(self.path)
        return b""

    def _fill(self) -> bool:
        """Read more of the file if nothing is left; return whether something is."""
        if not self._packed:
            self._packed = self._file.read(_CHUNK_BYTES)
        return bool(self._packed)

    def _next_part_of_gzip(self) -> bool:
        """Begin the next of several gzip files in one; return False at the end of all."""
        if len(self._packed) < len(_GZIP):
            self._packed += self._file.read(_CHUNK_BYTES)
        if self._packed.startswith(_GZIP):
            self._inflate = zlib.decompressobj(wbits=31)
            return True
        # Some writers fill the last block of a tape or disk.
        if self._packed.strip(b"\0"):
            raise _goes_on(self.path)
        self._packed = b""
        return self._fill()


@dataclass(slots=True)
class _Extension:
    """What the headers before a member say of it."""

    name: str | None = None
    size: int | None = None


def _unpack(stream: _Stream, folder: Path, limits: UnpackLimits) -> None:
    path, names = stream.path, FileNames(stream.path, limits)
    count = total = 0
    while (info := _next_member(stream)) is not None:
        count += 1
        if count > limits.entries:
            raise too_many(path, limits)
        if info.type == tarfile.DIRTYPE and not info.name.strip("./"):
            continue
        if info.type not in (*_FILES, tarfile.DIRTYPE):
            raise not_a_file(path, info.name)
        name = safe_name(path, info.name)
        if info.type == tarfile.DIRTYPE:
            continue
        names.add(name)
        total += info.size
        if total > limits.total_bytes:
            raise too_large(path, limits)
        free = shutil.disk_usage(folder).free
        if info.size > free:
            raise StorageFull(
                f"{path}: {info.name!r} has {info.size} bytes, but {free} are free in {folder}; "
                "free some space there, or set work_dir to another folder"
            )
        _write(stream, folder / name, info)


def _write(stream: _Stream, target: Path, info: tarfile.TarInfo) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        file = target.open("xb")
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise ArchiveError(
            f"{stream.path}: {info.name!r} lies below a file, or is a folder, too"
        ) from None
    with file:
        left = info.size
        while left:
            chunk = stream.read_exactly(min(left, _CHUNK_BYTES))
            file.write(chunk)
            left -= len(chunk)
    stream.read_exactly(-info.size % _BLOCK)


def _next_member(stream: _Stream) -> tarfile.TarInfo | None:
    """Return the next header of a file, a folder or anything else; None after the last one."""
    extension = _Extension()
    for _ in range(_MAX_EXTENSIONS + 1):
        info = _read_header(stream)
        if info is None:
            return None
        if info.type not in _EXTENSIONS:
            info.name = info.name if extension.name is None else extension.name
            info.size = info.size if extension.size is None else extension.size
            return info
        if info.size > _MAX_EXTENSION_BYTES:
            raise ArchiveError(
                f"{stream.path}: a header of {info.size} bytes, more than the "
                f"{_MAX_EXTENSION_BYTES} allowed"
            )
        data = stream.read_exactly(info.size + -info.size % _BLOCK)[: info.size]
        if info.type == tarfile.GNUTYPE_LONGNAME:
            extension.name = data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
        elif info.type != tarfile.GNUTYPE_LONGLINK:
            _take_pax(stream.path, data, extension, is_global=info.type == _PAX_GLOBAL)
    raise ArchiveError(f"{stream.path}: more than {_MAX_EXTENSIONS} headers for one member")


def _read_header(stream: _Stream) -> tarfile.TarInfo | None:
    block = stream.read(_BLOCK)
    if not block and stream.is_gzip:
        # The checksum of gzip has shown that nothing is missing.
        return None
    if len(block) < _BLOCK:
        raise _cut_short(stream.path)
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        # Read on, since the checksum of gzip comes last.
        tail = stream.read(_MAX_TAIL_BYTES + 1)
        if len(tail) > _MAX_TAIL_BYTES or tail.strip(b"\0"):
            raise _goes_on(stream.path) from None
        return None
    except tarfile.HeaderError as error:
        raise ArchiveError(
            f"{stream.path}: not a tar file, or damaged: {error}; was the download cut short?"
        ) from None
    if info.size < 0:
        raise ArchiveError(f"{stream.path}: {info.name!r} has a size below zero")
    if info.type == tarfile.GNUTYPE_SPARSE:
        raise _sparse(stream.path)
    return info


def _take_pax(path: Path, data: bytes, extension: _Extension, *, is_global: bool) -> None:
    """Read the records ``LENGTH KEY=VALUE`` of a pax header; all but name and size are ignored.

    POSIX.1-2001, pax, "pax Extended Header".
    """
    place = 0
    while place < len(data) and data[place]:
        digits, _, _ = data[place : place + 10].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = data[place : place + length]
        place += length
        key, separator, value = record[len(digits) + 1 : -1].partition(b"=")
        if not separator or len(record) < length or not record.endswith(b"\n"):
            raise ArchiveError(f"{path}: the archive is damaged: a pax header is not valid")
        if key.startswith(b"GNU.sparse."):
            raise _sparse(path)
        if key not in (b"path", b"size"):
            continue
        if is_global:
            raise ArchiveError(f"{path}: it gives all its members one {key.decode()}")
        if key == b"path":
            extension.name = value.decode("utf-8", "surrogateescape")
        elif value.isdigit() and len(value) < 20:
            extension.size = int(value)
        else:
            raise ArchiveError(f"{path}: the archive is damaged: a size is not a number")


def _sparse(path: Path) -> ArchiveError:
    return ArchiveError(
        f"{path}: it holds a sparse file, which is not supported; pack it again without --sparse"
    )


def _cut_short(path: Path) -> ArchiveError:
    return ArchiveError(f"{path}: the archive ends too early; was the download cut short?")


def _goes_on(path: Path) -> ArchiveError:
    return ArchiveError(
        f"{path}: the archive goes on after its end; several tar files in one are not supported"
    )
