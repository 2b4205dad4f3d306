"""Unpack a zip file into a folder of ours: all of it or nothing."""

from __future__ import annotations

import contextlib
import errno
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from mms.archive.manifest import MANIFEST_NAME, MAR_MANIFEST_NAME
from mms.archive.members import UnpackLimits, check_members, check_space, open_zip
from mms.archive.tar import unpack_tar
from mms.errors import ArchiveError, StorageFull

_CHUNK_BYTES = 1 << 20
#: Error numbers for a full disk or an exceeded quota.
_FULL = (errno.ENOSPC, errno.EDQUOT)


def unpack_zip(path: Path, workspace: Path, limits: UnpackLimits) -> Path:
    """Unpack a file into a new folder, and return that.

    Raises:
        ArchiveError: It is damaged, or a member is not allowed. Nothing is left then.
    """
    with unpacking(path, workspace) as (staging, target):
        with open_zip(path, limits) as archive:
            members = _flattened(check_members(path, archive.infolist(), limits))
            check_space(path, [info for info, _ in members], workspace)
            for info, name in members:
                _extract(archive, info, staging / name, path)
        return target


def unpack_tar_file(path: Path, workspace: Path, limits: UnpackLimits) -> Path:
    """Unpack a tar file into a new folder, and return that.

    Raises:
        ArchiveError: As for `unpack_tar`. Nothing is left then.
    """
    with unpacking(path, workspace) as (staging, target):
        unpack_tar(path, staging, limits)
        return target


@contextlib.contextmanager
def unpacking(path: Path, workspace: Path) -> Iterator[tuple[Path, Path]]:
    """Return an empty folder to unpack into, and the one that it becomes afterwards.

    Raises:
        ArchiveError: Whatever goes wrong in reading the file. Nothing is left then.
    """
    with reading(path):
        target = Path(tempfile.mkdtemp(prefix=f"{path.stem[:40]}-", dir=workspace))
        staging = target.with_name(f".unpacking-{target.name}")
        try:
            staging.mkdir(mode=0o700)
            yield staging, target
            staging.rename(target)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            shutil.rmtree(target, ignore_errors=True)
            raise


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn exceptions on damaged or unreadable files into ArchiveError."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull(
                f"{path}: cannot be unpacked: {error.strerror}; free some space, or set work_dir "
                "to another folder"
            ) from error
        raise ArchiveError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,
        struct.error,
    ) as error:
        raise ArchiveError(f"{path}: the archive is damaged: {error}") from error


def _flattened(
    members: list[tuple[zipfile.ZipInfo, PurePosixPath]],
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Drop the folders of an archive whose manifest lies in one, as 0.4 did for all archives.

    Of several files with one name the last wins.
    """
    names = {str(name) for _, name in members}
    is_nested = any(n.name == MANIFEST_NAME and "MAR-INF" not in n.parts for _, n in members)
    if names & {MANIFEST_NAME, MAR_MANIFEST_NAME} or not is_nested:
        return members
    last = {name.name: (info, PurePosixPath(name.name)) for info, name in members}
    return list(last.values())


def _extract(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, path: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with archive.open(info) as member, target.open("xb") as file:
        _copy_exactly(member, file, info, path)


def _copy_exactly(member: IO[bytes], file: IO[bytes], info: zipfile.ZipInfo, path: Path) -> None:
    """Copy exactly as many bytes as the directory claims, whatever the stream holds."""
    left = info.file_size
    while chunk := member.read(min(_CHUNK_BYTES, left + 1)):
        left -= len(chunk)
        if left < 0:
            raise ArchiveError(f"{path}: {info.filename!r} is longer than it claims")
        file.write(chunk)
    if left > 0:
        raise ArchiveError(f"{path}: {info.filename!r} is shorter than it claims")
