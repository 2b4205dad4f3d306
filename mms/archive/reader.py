"""Read, check and unpack an archive: nothing in it is trusted until it has passed these checks.

`open_archive` takes a ``.model`` or ``.mar`` file or an unpacked folder and returns an `Archive`
whose folder can be served. A file is unpacked beside the target and renamed into place, with
every member checked first and hashed while it is written. So a crash leaves nothing half-done, and
code of an archive that fails a check is never run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import orjson

from mms.archive.manifest import (
    MANIFEST_NAME,
    MAR_MANIFEST_NAME,
    Manifest,
    ModelFormat,
    handler_manifest,
    is_of_torchserve,
    parse_manifest,
    parse_mar_manifest,
)
from mms.archive.members import UnpackLimits, check_members, check_space, open_zip
from mms.archive.signature import Signature, parse_signature
from mms.errors import ArchiveError, SignatureError, StorageFull

#: Suffixes of archive files.
ARCHIVE_SUFFIXES = (".model", ".mar")
#: Manifests and signatures take a few kB; this only stops one crafted to exhaust memory.
MAX_DOCUMENT_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20
#: Error numbers for a full disk or an exceeded quota.
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class Archive:
    """An archive on disk that passed every check.

    Attributes:
        source: The file or folder that the user named.
        folder: The unpacked files.
        manifest: Its table of contents.
        signature: The model's inputs and outputs; None if a 1.x archive does not state them.
        digest: sha256 of the archive file in hex, or "" for a folder.
    """

    source: str
    folder: Path
    manifest: Manifest
    signature: Signature | None
    digest: str


def open_archive(
    source: str | Path, workspace: Path, limits: UnpackLimits | None = None, handler: str = ""
) -> Archive:
    """Return a checked archive from a ``.model`` or ``.mar`` file or an unpacked folder.

    Args:
        source: File or folder.
        workspace: Existing folder; a file is unpacked into a new folder inside it, which the caller
            owns. A folder is served in place.
        limits: Limits for unpacking.
        handler: ``module:function`` to use instead of a 1.x archive's own; with it, a folder
            needs no manifest.

    Raises:
        ArchiveError: The message names the file, what is wrong and what to do; StorageFull if the
            disk has no space. Nothing is left in `workspace`.
    """
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        with _reading(path):
            return _inspect(str(source), path, "", handler)
    if not os.path.exists(path):
        raise ArchiveError(f"{source}: no such file or folder")
    if not os.path.isfile(path):
        raise ArchiveError(f"{source}: neither a file nor a folder")
    folder, digest = _unpack(path, workspace, limits or UnpackLimits())
    try:
        with _reading(path):
            return _inspect(str(source), folder, digest, handler)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def read_manifest(source: str | Path, handler: str = "") -> Manifest:
    """Return the manifest of an archive or folder without unpacking it.

    Args:
        source: File or folder.
        handler: As for `open_archive`.

    Raises:
        ArchiveError: The manifest is missing or not valid.
    """
    path = Path(os.path.expanduser(source))
    if os.path.isdir(path):
        with _reading(path):
            return _manifest_of(str(source), path, handler)
    with _reading(path), open_zip(path, UnpackLimits()) as archive:
        names = archive.namelist()
        name = next((n for n in (MAR_MANIFEST_NAME, MANIFEST_NAME) if n in names), None)
        if name is None:
            if handler:
                return handler_manifest(path.stem, handler)
            raise _no_manifest(path)
        info = archive.getinfo(name)
        if info.file_size > MAX_DOCUMENT_BYTES:
            raise ArchiveError(f"{path}: {name} is larger than {MAX_DOCUMENT_BYTES} bytes")
        label = f"{path}: {name}"
        with archive.open(info) as member:
            document = _parse_json(member.read(MAX_DOCUMENT_BYTES), label)
        return _parse(document, name, label, handler, names)


def find_archives(folder: Path) -> list[Path]:
    """Return the archives in a folder: the folder itself if it is unpacked, else its files."""
    if any((folder / name).is_file() for name in (MANIFEST_NAME, MAR_MANIFEST_NAME)):
        return [folder]
    return sorted(path for path in folder.iterdir() if path.suffix in ARCHIVE_SUFFIXES)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _inspect(source: str, folder: Path, digest: str, handler: str) -> Archive:
    manifest = _manifest_of(source, folder, handler)
    if manifest.model_format is ModelFormat.HANDLER:
        signature = _signature_if_any(folder, manifest)
        return Archive(source, folder, manifest, signature, digest)
    for key, name in (
        ("Service", manifest.service),
        ("Signature", manifest.signature),
        ("Parameters", manifest.parameters),
        ("Symbol", manifest.symbol),
    ):
        if name and not _resolve(folder, name).is_file():
            raise ArchiveError(
                f"{source}: the manifest's Model.{key} names {name!r}, which is not in the archive"
            )
    sample = manifest.serving.sample
    if sample and not _resolve(folder, sample.file).is_file():
        raise ArchiveError(f"{source}: the sample {sample.file!r} is not in the archive")
    _verify_files(source, folder, manifest)
    label = f"{source}: {manifest.signature}"
    document = _load_json(_resolve(folder, manifest.signature), label)
    return Archive(source, folder, manifest, parse_signature(document, label), digest)


def _signature_if_any(folder: Path, manifest: Manifest) -> Signature | None:
    """Return the signature of a 1.x archive, whose signature.json may be the handler's own file."""
    path = folder / manifest.signature
    with contextlib.suppress(ArchiveError, SignatureError):
        if path.is_file():
            return parse_signature(_load_json(path, manifest.signature))
    return None


def _manifest_of(source: str, folder: Path, handler: str) -> Manifest:
    for name in (MAR_MANIFEST_NAME, MANIFEST_NAME):
        path = folder / name
        if path.is_file():
            label = f"{source}: {name}"
            files = [entry.name for entry in folder.iterdir()]
            return _parse(_load_json(path, label), name, label, handler, files)
    if handler:
        return handler_manifest(folder.resolve().name, handler)
    raise _no_manifest(source)


def _parse(document: object, name: str, label: str, handler: str, files: list[str]) -> Manifest:
    """Parse a manifest of either schema.

    Args:
        document: Parsed JSON.
        name: Its name in the archive, which determines the schema.
        label: Its origin, for messages.
        handler: Handler to use instead of a 1.x archive's own.
        files: Names of the files at the archive's root.
    """
    if name == MANIFEST_NAME:
        return parse_manifest(document, label)
    manifest = parse_mar_manifest(document, label)
    if handler:
        manifest = dataclasses.replace(manifest, handler=handler)
    if not manifest.handler:
        raise ArchiveError(
            f"{label}: it names no handler; add one such as service:handle, or register the "
            "model with the handler parameter"
        )
    file = f"{manifest.handler.split(':')[0].removesuffix('.py').split('/')[-1]}.py"
    if is_of_torchserve(document) and file not in files:
        raise ArchiveError(
            f"{label}: a TorchServe archive whose handler {manifest.handler!r} is part of "
            f"TorchServe and not of the archive; this server has no PyTorch handlers. Add {file} "
            "with a function handle(data, context) that loads and runs the model"
        )
    return manifest


def _no_manifest(source: str | Path) -> ArchiveError:
    return ArchiveError(
        f"{source}: neither {MANIFEST_NAME} nor {MAR_MANIFEST_NAME} is in it; create an archive "
        "with mxnet-model-export"
    )


def _verify_files(source: str, folder: Path, manifest: Manifest) -> None:
    """Hash the files that the manifest lists. Others are allowed: folders may gain files."""
    for name, expected in manifest.files.items():
        path = _resolve(folder, name)
        if not path.is_file():
            raise ArchiveError(f"{source}: {name!r} is listed in the manifest but missing")
        if hash_file(path) != expected:
            raise ArchiveError(
                f"{source}: {name!r} differs from its sha256 in the manifest: the archive is "
                "damaged or was changed; fetch it again, or export it again after a change"
            )


def _resolve(folder: Path, name: str) -> Path:
    """Join folder and name, refusing links that lead out of the folder."""
    path = folder / name
    # Path.resolve raises RuntimeError on a link to itself; realpath leaves it unresolved.
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise ArchiveError(f"{folder}: {name!r} leads out of the archive")
    return path


def _unpack(path: Path, workspace: Path, limits: UnpackLimits) -> tuple[Path, str]:
    # ZipFile reads by seeking, so the digest of the whole file needs a pass of its own.
    with _reading(path):
        digest = hash_file(path)
    with _reading(path):
        target = Path(tempfile.mkdtemp(prefix=f"{path.stem[:40]}-", dir=workspace))
    staging = target.with_name(f".unpacking-{target.name}")
    try:
        with _reading(path), open_zip(path, limits) as archive:
            staging.mkdir(mode=0o700)
            members = check_members(path, archive.infolist(), limits)
            check_space(path, [info for info, _ in members], workspace)
            for info, name in members:
                _extract(archive, info, staging / name, path)
            staging.rename(target)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        raise
    return target, digest


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


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn zipfile's exceptions on damaged archives into ArchiveError."""
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


def _load_json(path: Path, label: str) -> object:
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise ArchiveError(f"{label} is larger than {MAX_DOCUMENT_BYTES} bytes")
    return _parse_json(path.read_bytes(), label)


def _parse_json(data: bytes, label: str) -> object:
    try:
        # Editors on Windows put a byte order mark first.
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise ArchiveError(f"{label}: not valid JSON: {error}") from None


def remove_unpacked(archive: Archive, workspace: Path) -> None:
    """Delete an archive's folder if `open_archive` made it; a user's own folder stays."""
    if archive.folder.parent == workspace:
        shutil.rmtree(archive.folder, ignore_errors=True)
