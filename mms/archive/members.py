"""Check the members of a zip file by its directory, before a byte of it is unpacked.

The directory at the end of a zip file lists the name, offset and sizes of each member. These are
only claims of the archive, so their cost is added up first, and unpacking later never exceeds the
claimed sizes. The rules for names and sizes are those of `mms.archive.tar`, too.
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
            raise too_many(self._path, self._limits)


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
    names = FileNames(path, limits)
    files = []
    for info in members:
        name = _checked_name(path, info)
        if not info.is_dir():
            names.add(name)
            files.append((info, name))
    _check_sizes(path, [info for info, _ in files], limits)
    _check_places(path, members)
    return files


class FileNames:
    """The names of an archive's files, of which no two may be one place on any system.

    Args:
        path: The archive.
        limits: Limits for unpacking; folders count as entries though none may be listed.
    """

    def __init__(self, path: Path, limits: UnpackLimits) -> None:
        self._path = path
        self._limits = limits
        self._files: set[str] = set()
        self._folders: dict[str, PurePosixPath] = {}

    def add(self, name: PurePosixPath) -> None:
        """Record a file.

        Raises:
            ArchiveError: It is there already, lies below another or is a folder of another, or
                there are too many files and folders.
        """
        # Names that differ only in case are one file on some systems; so are 'a' and 'a/'.
        key = str(name).lower()
        if key in self._files:
            raise ArchiveError(f"{self._path}: {str(name)!r} is in the archive twice")
        if key in self._folders:
            raise self._below_a_file(self._folders[key])
        self._files.add(key)
        for parent in name.parents[:-1]:
            folder = str(parent).lower()
            if folder in self._files:
                raise self._below_a_file(name)
            if folder in self._folders:
                break
            self._folders[folder] = name
        if len(self._files) + len(self._folders) > self._limits.entries:
            raise too_many(self._path, self._limits)

    def _below_a_file(self, name: PurePosixPath) -> ArchiveError:
        return ArchiveError(f"{self._path}: {str(name)!r} lies below a file")


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
            raise too_large(path, limits)
        if is_bomb(info.file_size, info.compress_size, limits):
            raise ArchiveError(
                f"{path}: {info.filename!r} unpacks to over {limits.ratio} times its packed size"
            )
    if is_bomb(total, packed, limits):
        raise ArchiveError(f"{path}: unpacks to over {limits.ratio} times its packed size")


def too_many(path: Path, limits: UnpackLimits) -> ArchiveError:
    """Return the error for an archive with too many entries."""
    return ArchiveError(f"{path}: more than the {limits.entries} entries allowed")


def too_large(path: Path, limits: UnpackLimits) -> ArchiveError:
    """Return the error for an archive that unpacks to too many bytes."""
    return ArchiveError(
        f"{path}: unpacks to more than the {limits.total_bytes} bytes allowed; start the server "
        "with --max-unpacked-bytes to allow more"
    )


def is_bomb(size: int, packed: int, limits: UnpackLimits) -> bool:
    """Whether so many unpacked bytes are too many for so many packed ones."""
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


def safe_name(path: Path, raw: str) -> PurePosixPath:
    """Return a member's name as a path below the folder that the archive is unpacked to.

    Args:
        path: The archive.
        raw: The name as the archive has it.

    Raises:
        ArchiveError: It leads out of that folder, or is none.
    """
    name = PurePosixPath(raw)
    if "\0" in raw or "\\" in raw or not name.parts or len(raw) > _MAX_NAME_CHARS:
        raise ArchiveError(f"{path}: the name {raw[:200]!r} is not allowed in an archive")
    if name.is_absolute() or ".." in name.parts or name.parts[0].endswith(":"):
        raise ArchiveError(f"{path}: {raw!r} leads out of the archive")
    return name


def not_a_file(path: Path, raw: str) -> ArchiveError:
    """Return the error for a member that is neither a file nor a folder."""
    return ArchiveError(f"{path}: {raw!r} is a link or a device; archives hold plain files only")


def _checked_name(path: Path, info: zipfile.ZipInfo) -> PurePosixPath:
    # ZipInfo itself cuts filename at a NUL and turns os.sep into '/'.
    raw = info.orig_filename
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise not_a_file(path, raw)
    name = safe_name(path, raw)
    if info.flag_bits & 0x1:
        raise ArchiveError(f"{path}: {raw!r} is encrypted, which is not supported")
    # Other methods decompress a block at once, whatever its size.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ArchiveError(
            f"{path}: {raw!r} is compressed by method {info.compress_type}; only stored and "
            "deflated files are supported"
        )
    return name
