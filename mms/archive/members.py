"""Check the members of an archive file by its directory, before a byte of it is unpacked.

The directory at the end of a zip file lists the name, offset and sizes of each member. These are
only claims of the archive, so their cost is added up first, and unpacking later never exceeds the
claimed sizes.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mms.errors import ArchiveError, StorageFull

#: Below this size a high ratio is harmless: an empty table of labels deflates well, too.
_SMALL_BYTES = 1 << 20
#: Longer names only waste time: no current system accepts a path beyond 4096 bytes.
_MAX_NAME_CHARS = 1024
#: 10,000 entries of the longest names take 11 MB.
_MAX_DIRECTORY_BYTES = 16 << 20
#: APPNOTE.TXT, section 4.3.12: a directory entry, up to its name; the offset in it of the lengths
#: of name, extra field and comment. Section 4.3.7: a member's local header, up to its name.
_ENTRY_SIGNATURE, _ENTRY_BYTES = b"PK\x01\x02", 46
_LENGTHS, _LENGTHS_AT = struct.Struct("<HHH"), 28
_HEADER_BYTES = 30


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """Limits above which an archive is refused.

    Attributes:
        entries: Number of files and folders.
        total_bytes: Total unpacked size.
        ratio: Unpacked ÷ packed size of one member, and of all together; above it the archive is a
            zip bomb. Weights are stored and text deflates below 20, while zeros deflate to 1000.
    """

    entries: int = 10_000
    total_bytes: int = 64 << 30
    ratio: int = 200


class _Directory(io.BufferedReader):
    """An archive file whose directory is checked while `zipfile` reads it.

    `zipfile` creates an object per entry before they can be counted: 500 bytes for an entry of 47.
    The count in the file's last record is no help, since nothing enforces it.
    """

    def __init__(self, path: Path, limits: UnpackLimits) -> None:
        super().__init__(io.FileIO(path))
        self._path = path
        self._limits = limits
        self.is_checked = False

    def read(self, size: int | None = -1, /) -> bytes:
        """Read; until `is_checked`, refuse reads longer than the limit of a directory."""
        if self.is_checked:
            return super().read(size)
        if size is not None and size > _MAX_DIRECTORY_BYTES:
            raise ArchiveError(
                f"{self._path}: its directory has {size} bytes, more than the "
                f"{_MAX_DIRECTORY_BYTES} allowed; too many entries"
            )
        data = super().read(size)
        if data.startswith(_ENTRY_SIGNATURE):
            self._count(data)
        return data

    def _count(self, directory: bytes) -> None:
        place = 0
        for _ in range(self._limits.entries):
            if place + _ENTRY_BYTES > len(directory):
                return
            place += _ENTRY_BYTES + sum(_LENGTHS.unpack_from(directory, place + _LENGTHS_AT))
        if place + _ENTRY_BYTES <= len(directory):
            raise ArchiveError(
                f"{self._path}: more than the {self._limits.entries} entries allowed"
            )


@contextlib.contextmanager
def open_zip(path: Path, limits: UnpackLimits) -> Iterator[zipfile.ZipFile]:
    """Open an archive file; too many entries cost no more than the number allowed.

    Raises:
        ArchiveError: It is not a zip file, cannot be read, or has too many entries.
    """
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context(_Directory(path, limits))
            archive = stack.enter_context(zipfile.ZipFile(file))
        except FileNotFoundError:
            raise ArchiveError(f"{path}: no such file or folder") from None
        except zipfile.BadZipFile:
            raise ArchiveError(
                f"{path}: not a model archive (a .model file is a zip file); "
                "was the download cut short?"
            ) from None
        except OSError as error:
            raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from None
        file.is_checked = True
        yield archive


def check_members(
    path: Path, members: list[zipfile.ZipInfo], limits: UnpackLimits
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return each file member with its safe relative path; folders follow from their files.

    Raises:
        ArchiveError: A name, type or size is not allowed, or members overlap.
    """
    seen: set[str] = set()
    files = []
    for info in members:
        name = _safe_name(path, info)
        if info.is_dir():
            continue
        # Names that differ only in case are one file on some systems; so are 'a' and 'a/'.
        key = str(name).lower()
        if key in seen:
            raise ArchiveError(f"{path}: {info.filename!r} is in the archive twice")
        seen.add(key)
        files.append((info, name))
    for _, name in files:
        if any(str(parent).lower() in seen for parent in name.parents):
            raise ArchiveError(f"{path}: {str(name)!r} lies below a file")
    _check_sizes(path, [info for info, _ in files], limits)
    _check_places(path, members)
    return files


def check_space(path: Path, members: list[zipfile.ZipInfo], folder: Path) -> None:
    """Refuse to unpack more than the disk has room for, before it is full.

    Raises:
        StorageFull: The unpacked size exceeds the free space on the file system of `folder`.
    """
    total, free = sum(info.file_size for info in members), shutil.disk_usage(folder).free
    if total > free:
        raise StorageFull(
            f"{path}: unpacks to {total} bytes, but {free} are free in {folder}; free some space "
            "there, or set work_dir to another folder"
        )


def _check_sizes(path: Path, files: list[zipfile.ZipInfo], limits: UnpackLimits) -> None:
    total = packed = 0
    for info in files:
        total += info.file_size
        packed += info.compress_size
        if total > limits.total_bytes:
            raise ArchiveError(
                f"{path}: unpacks to more than the {limits.total_bytes} bytes allowed; start the "
                "server with --max-unpacked-bytes to allow more"
            )
        if _is_bomb(info.file_size, info.compress_size, limits):
            raise ArchiveError(
                f"{path}: {info.filename!r} unpacks to over {limits.ratio} times its packed size"
            )
    if _is_bomb(total, packed, limits):
        raise ArchiveError(f"{path}: unpacks to over {limits.ratio} times its packed size")


def _is_bomb(size: int, packed: int, limits: UnpackLimits) -> bool:
    return size > _SMALL_BYTES and size > limits.ratio * max(packed, 1)


def _check_places(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse members that share bytes, which lets a small file unpack to a huge size."""
    end = 0
    for info in sorted(members, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise ArchiveError(f"{path}: {info.filename!r} overlaps another member")
        end = info.header_offset + _HEADER_BYTES + info.compress_size
    if end > os.path.getsize(path):
        raise ArchiveError(f"{path}: the archive is damaged: a member is longer than the file")


def _safe_name(path: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    # orig_filename: ZipInfo itself cuts filename at a NUL and turns os.sep into '/'.
    raw = info.orig_filename
    name = PurePosixPath(info.filename)
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise ArchiveError(f"{path}: {raw!r} is a link or a device; archives hold plain files only")
    if "\0" in raw or "\\" in raw or not name.parts or len(raw) > _MAX_NAME_CHARS:
        raise ArchiveError(f"{path}: the name {raw[:200]!r} is not allowed in an archive")
    if name.is_absolute() or ".." in name.parts or name.parts[0].endswith(":"):
        raise ArchiveError(f"{path}: {raw!r} leads out of the archive")
    if info.flag_bits & 0x1:
        raise ArchiveError(f"{path}: {raw!r} is encrypted, which is not supported")
    # Other methods decompress a block at once, whatever its size.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(
            f"{path}: {raw!r} is compressed by method {info.compress_type}; only stored and "
            "deflated files are supported"
        )
    return name
