"""Read, check and unpack a model: nothing in it is trusted until it has passed these checks.

`open_archive` and `read_manifest` are the only doors: what they take is a model, whoever named it
and by whichever way. That is a ``.model`` or ``.mar`` file; a folder of one, unpacked; a folder or
zip file that holds one; and whatever `mms.archive.artefacts` recognises.

A file is unpacked beside the target and renamed into place, with every member checked first. So a
crash leaves nothing half-done, and code of an archive that fails a check is never run.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.layout import lay_out
from mms.archive.artefacts.parts import contents_of
from mms.archive.artefacts.recognise import is_prefix, kind_of, recognise
from mms.archive.content import (
    Archive as Archive,
)
from mms.archive.content import (
    has_manifest,
    inspect,
    load_json,
    manifest_of,
    member_manifest,
    no_manifest,
    rewritten_manifest,
    signature_if_any,
    verify_files,
)
from mms.archive.content import (
    hash_file as hash_file,
)
from mms.archive.manifest import MANIFEST_NAME, MAR_MANIFEST_NAME, Manifest, ModelFormat
from mms.archive.members import UnpackLimits, open_zip
from mms.archive.model_folder import ONNX_SUFFIX
from mms.archive.signature import parse_signature
from mms.archive.tar import is_tar
from mms.archive.unpacking import reading, unpack_tar_file, unpack_zip
from mms.errors import ArchiveError, ExportError

#: Suffixes of archive files.
ARCHIVE_SUFFIXES = (".model", ".mar")
#: Unpacks a file into a new folder of the workspace, within limits.
Unpack = Callable[[Path, Path, UnpackLimits], Path]
_ZIP_HEAD = b"PK\x03\x04"
_MAR = "MAR-INF/"
#: Folder, in a folder of ours, with the files of a model that was packed without a manifest.
_FILES = ".files"
#: Archives around an archive, as SageMaker's tar file around a .mar file.
_MAX_LEVELS = 2


def open_archive(
    source: str | Path,
    workspace: Path,
    limits: UnpackLimits | None = None,
    handler: str = "",
    name: str = "",
    version: str = "",
) -> Archive:
    """Return a checked archive from whatever is a model.

    Args:
        source: File or folder.
        workspace: Existing folder; a file is unpacked into a new folder inside it, which the caller
            owns. An unpacked archive is served in place.
        limits: Limits for unpacking.
        handler: ``module:function`` to use instead of a 1.x archive's own; with it, a folder
            needs no manifest.
        name: Name of the file or folder, if it lies under another one, as in a cache.
        version: The version that is asked for; it chooses among numbered folders.

    Raises:
        ArchiveError: The message names the file, what is wrong and what to do; StorageFull if the
            disk has no space. Nothing is left in `workspace`.
    """
    path = Path(os.path.expanduser(source))
    asked = _Asked(str(source), workspace, limits or UnpackLimits(), handler, name, version)
    with reading(path):
        return _open(path, asked, 0)


def read_manifest(
    source: str | Path,
    handler: str = "",
    name: str = "",
    limits: UnpackLimits | None = None,
    parent: Path | None = None,
) -> Manifest:
    """Return the manifest of a model without unpacking it, if it has one.

    Args:
        source: File or folder.
        handler: As for `open_archive`.
        name: As for `open_archive`.
        limits: As for `open_archive`.
        parent: Folder to unpack in what has none, for the moment; the system's by default.

    Raises:
        ArchiveError: The manifest is missing or not valid.
    """
    path = Path(os.path.expanduser(source))
    with reading(path):
        if os.path.isdir(path):
            if has_manifest(path):
                return manifest_of(str(source), path, handler)
        elif os.path.isfile(path) and _unpacker(path, name) is unpack_zip:
            with open_zip(path, limits or UnpackLimits()) as archive:
                member = _manifest_member(archive.namelist())
                if member:
                    return member_manifest(path, archive, member, handler)
        with tempfile.TemporaryDirectory(prefix="mms-manifest-", dir=parent) as folder:
            return open_archive(path, Path(folder), limits, handler, name).manifest


def find_archives(folder: Path) -> list[Path]:
    """Return the archives in a folder: the folder itself if it is unpacked, else its files."""
    return [folder] if has_manifest(folder) else _archive_files(folder)


def find_models(folder: Path) -> list[Path]:
    """Return the models in a folder: its archives if there are several, else the folder itself.

    Returns:
        Nothing if the folder is empty.
    """
    found = find_archives(folder)
    if len(found) > 1:
        return found
    return [folder] if found or any(folder.iterdir()) else []


@dataclass(frozen=True, slots=True)
class _Asked:
    """What `open_archive` was asked for; ``limits`` hold for each archive inside another, too."""

    source: str
    workspace: Path
    limits: UnpackLimits
    handler: str
    name: str
    version: str


def _open(path: Path, asked: _Asked, level: int) -> Archive:
    """Open a file or folder; `level` is the number of archives around it."""
    if os.path.isdir(path):
        return _open_folder(path, path, asked, level)
    unpack = _unpacker(path, asked.name) if os.path.isfile(path) else None
    if unpack is not None:
        return _open_packed(path, unpack, asked, level)
    if not os.path.exists(path) and not is_prefix(path):
        raise ArchiveError(f"{asked.source}: no such file or folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ArchiveError(f"{asked.source}: neither a file nor a folder")
    artefact = _recognise(path, asked)
    if artefact is None:
        raise _no_archive(path)
    return _overlay(artefact, asked)


def _open_folder(path: Path, shown: Path, asked: _Asked, level: int) -> Archive:
    """Open a folder.

    Args:
        path: The folder.
        shown: What messages call it.
        asked: What was asked for.
        level: Number of archives around it.
    """
    if has_manifest(path):
        return _open_unpacked(path, asked, is_own=False)
    archives = _archive_files(path)
    if asked.handler and not archives:
        return inspect(asked.source, path, "", asked.handler)
    error: ArchiveError | None = None
    artefact = None
    try:
        artefact = _recognise(path, asked)
    except ArchiveError as incomplete:
        error = incomplete
    if artefact is not None:
        return _overlay(artefact, asked)
    if len(archives) == 1 and level < _MAX_LEVELS:
        return _open(archives[0], dataclasses.replace(asked, name=archives[0].name), level + 1)
    if len(archives) == 1:
        raise ArchiveError(f"{shown}: an archive in archives; unpack the innermost, and name that")
    if archives:
        listed = ", ".join(str(archive) for archive in archives[:8])
        raise ArchiveError(f"{shown}: {len(archives)} archives are in it; name one: {listed}")
    raise error or no_manifest(asked.source)


def _open_packed(path: Path, unpack: Unpack, asked: _Asked, level: int) -> Archive:
    digest = hash_file(path)
    folder = unpack(path, asked.workspace, asked.limits)
    return _open_own(folder, path, digest, asked, level)


def _open_own(folder: Path, path: Path, digest: str, asked: _Asked, level: int) -> Archive:
    """Open what has been unpacked into a folder of ours, which goes unless it is served."""
    try:
        if has_manifest(folder):
            archive = _open_unpacked(folder, asked, is_own=True)
        elif asked.handler and not _archive_files(folder):
            archive = inspect(asked.source, folder, "", asked.handler)
        else:
            archive = _adopt(folder, path, asked, level)
        return dataclasses.replace(archive, digest=digest)
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, ArchiveError):
            # What it was unpacked to means nothing to anybody.
            text = str(error).replace(f"{folder / _FILES}", str(path))
            error.args = (text.replace(str(folder), str(path)),)
        raise


def _adopt(folder: Path, path: Path, asked: _Asked, level: int) -> Archive:
    """Open a folder of ours that has no manifest: it holds an archive, or a recognised model."""
    entries = [entry.name for entry in folder.iterdir()]
    inner = folder / _FILES
    inner.mkdir(mode=0o700)
    for entry in entries:
        (folder / entry).rename(inner / entry)
    asked = dataclasses.replace(asked, name=asked.name or path.name)
    place = inner
    if not _archive_files(inner):
        artefact = _recognise(inner, asked)
        top = [entry for entry in inner.iterdir() if not entry.name.startswith(".")]
        if artefact is None and len(top) == 1 and top[0].is_dir():
            # Packed with the folder around it.
            place = top[0]
            artefact = None if has_manifest(place) else _recognise(place, asked)
        if artefact is not None:
            lay_out(artefact, folder)
            return _archive(artefact, asked, folder)
    if has_manifest(place):
        for member in list(place.iterdir()):
            member.rename(folder / member.name)
        return _open_unpacked(folder, asked, is_own=True)
    archive = _open_folder(place, path, asked, level)
    shutil.rmtree(folder, ignore_errors=True)
    return archive


def _recognise(path: Path, asked: _Asked) -> Artefact | None:
    try:
        return recognise(path, asked.name, asked.version)
    except ExportError as error:
        # The exporter's checks; here, nothing is exported.
        raise ArchiveError(str(error)) from None


def _overlay(artefact: Artefact, asked: _Asked) -> Archive:
    """Return an archive of links to the user's files, and of generated ones."""
    prefix = f"{artefact.manifest.model_name[:40]}-"
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=asked.workspace))
    try:
        lay_out(artefact, folder)
        return _archive(artefact, asked, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _archive(artefact: Artefact, asked: _Asked, folder: Path) -> Archive:
    manifest = artefact.manifest
    label = f"{asked.source}: {manifest.signature}"
    signature = None
    if manifest.model_format is not ModelFormat.HANDLER:
        signature = parse_signature(load_json(folder / manifest.signature, label), label)
    elif (folder / manifest.signature).is_file():
        signature = signature_if_any(folder, manifest)
    return Archive(asked.source, folder, manifest, signature, "", artefact.family, artefact.notes)


def _open_unpacked(folder: Path, asked: _Asked, *, is_own: bool) -> Archive:
    """Open a folder with a manifest.

    A folder of the user is a working copy: its files may have been changed since they were
    exported, and their digests are those of the archive that it came from.
    """
    archive = inspect(asked.source, folder, "", asked.handler)
    if is_own:
        verify_files(asked.source, folder, archive.manifest)
    manifest = rewritten_manifest(archive)
    if manifest is None:
        return archive
    if is_own:
        (folder / MANIFEST_NAME).write_bytes(manifest)
        return archive
    files = {name: path for name, path in contents_of(folder).items() if name != MANIFEST_NAME}
    documents = {MANIFEST_NAME: manifest}
    artefact = Artefact("", archive.manifest, files, documents, archive.notes)
    return _overlay(artefact, asked)


def _archive_files(folder: Path) -> list[Path]:
    """Return the archive files in a folder."""
    return sorted(path for path in folder.iterdir() if path.suffix in ARCHIVE_SUFFIXES)


def _unpacker(path: Path, name: str) -> Unpack | None:
    """Return what unpacks a file; None if nothing does."""
    if (name or path.name).endswith(ONNX_SUFFIX):
        return None
    with path.open("rb") as file:
        head = file.read(len(_ZIP_HEAD))
    if head == _ZIP_HEAD:
        return unpack_zip
    # Before the directory of a zip file is looked for: a tar file may end with one.
    if is_tar(path):
        return unpack_tar_file
    return unpack_zip if zipfile.is_zipfile(path) else None


def _manifest_member(names: list[str]) -> str:
    """Return the manifest among the members of a zip file; "" if there is none.

    0.4 unpacked members by base name, so that its own may lie in a folder.
    """
    for name in (MAR_MANIFEST_NAME, MANIFEST_NAME):
        if name in names:
            return name
    return next((n for n in names if n.split("/")[-1] == MANIFEST_NAME and _MAR not in n), "")


def _no_archive(path: Path) -> ArchiveError:
    kind = kind_of(path)
    if kind:
        return ArchiveError(
            f"{path}: {kind}, and not a model archive (docs/artefacts.md lists what is served)"
        )
    return ArchiveError(
        f"{path}: not a model archive (a .model file is a zip file); was the download cut short?"
    )


def remove_unpacked(archive: Archive, workspace: Path) -> None:
    """Delete an archive's folder if `open_archive` made it; a user's own folder stays."""
    if archive.folder.parent == workspace:
        shutil.rmtree(archive.folder, ignore_errors=True)
