"""Write an archive: equal input yields equal bytes, and a crash leaves no partial file."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import orjson

from mms.archive.content import hash_file
from mms.archive.manifest import MANIFEST_NAME, Manifest
from mms.errors import ExportError

#: Deflating weights saves a few percent and costs seconds per 100 MB on each load.
_STORED_SUFFIXES = (
    *(".params", ".onnx", ".data", ".onnx_data", ".npz", ".npy", ".bin"),
    *(".jpg", ".jpeg", ".png", ".gz"),
)
#: The earliest time a zip can store; a constant keeps the bytes reproducible.
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_archive(
    target: Path,
    manifest: Manifest,
    files: Mapping[str, Path | bytes],
    *,
    overwrite: bool = False,
) -> Manifest:
    """Write a ``.model`` file.

    Args:
        target: Path of the file to create; its folder must exist.
        manifest: Table of contents; ``Files`` is filled in here.
        files: Files on disk, or contents, by member name (POSIX path). Links are followed.
        overwrite: Replace an existing target.

    Returns:
        The manifest as written.

    Raises:
        ExportError: The target exists, or a file cannot be read or written. The target is then
            unchanged.
    """
    if target.exists() and not overwrite:
        raise ExportError(f"{target} already exists; use --force to replace it")
    try:
        digests = {name: _digest(files[name]) for name in sorted(files)}
        complete = replace(manifest, files=digests)
        descriptor, staging = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with os.fdopen(descriptor, "wb") as file, zipfile.ZipFile(file, "w") as archive:
                document = orjson.dumps(complete.to_document(), option=orjson.OPT_INDENT_2)
                _add(archive, MANIFEST_NAME, document + b"\n")
                for name in digests:
                    _add(archive, name, files[name])
            os.chmod(staging, _default_mode())
            os.replace(staging, target)
        except BaseException:
            os.unlink(staging)
            raise
    except OSError as error:
        raise ExportError(
            f"{target}: cannot be written: {error.strerror or error}"
            + (f" ({error.filename})" if error.filename else "")
        ) from error
    return complete


def _add(archive: zipfile.ZipFile, name: str, content: Path | bytes) -> None:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.external_attr = (stat.S_IFREG | 0o644) << 16
    info.create_system = 3  # Unix, on every system, for the same bytes
    stored = name.lower().endswith(_STORED_SUFFIXES)
    info.compress_type = zipfile.ZIP_STORED if stored else zipfile.ZIP_DEFLATED
    if isinstance(content, bytes):
        archive.writestr(info, content)
        return
    info.file_size = content.stat().st_size
    with content.open("rb") as source, archive.open(info, "w") as member:
        shutil.copyfileobj(source, member, 1 << 20)


def _digest(content: Path | bytes) -> str:
    if isinstance(content, Path):
        return hash_file(content)
    return hashlib.sha256(content).hexdigest()


def _default_mode() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return 0o666 & ~umask
