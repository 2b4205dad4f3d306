"""Write archives of MMS 1.x: a folder with a handler, as model-archiver 1.0.3 packed it."""

from __future__ import annotations

import contextlib
import enum
import io
import json
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mms.archive.manifest import MAR_MANIFEST_NAME
from mms.errors import ExportError

#: What the manifest may name as the language of the handler.
RUNTIMES = ("python", "python2", "python3")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_LEFT_OUT_FOLDERS = ("__MACOSX", "__pycache__")
_LEFT_OUT_FILES = ("MANIFEST.json",)
_LEFT_OUT_ENDINGS = (".pyc", ".DS_Store", ".mar")


class ArchiveFormat(enum.Enum):
    """A way to pack, by its name on the command line."""

    MAR = "default"
    TGZ = "tgz"
    FOLDER = "no-archive"


_SUFFIXES = {ArchiveFormat.MAR: ".mar", ArchiveFormat.TGZ: ".tar.gz", ArchiveFormat.FOLDER: ""}


def write_mar(
    model_name: str,
    model_path: Path,
    handler: str,
    export_path: Path,
    runtime: str = "python",
    archive_format: ArchiveFormat = ArchiveFormat.MAR,
    force: bool = False,
) -> Path:
    """Write ``export_path/model_name.mar``, ``.tar.gz`` or a folder of that name; return it.

    Args:
        model_name: Name of the model, for the manifest and the file.
        model_path: Folder to pack, without what editors, Git and Python leave in it.
        handler: ``module:function``, or a module with one class.
        export_path: Existing folder to write to.
        runtime: Language of the handler, for the manifest.
        archive_format: How to pack.
        force: Replace an existing file; into an existing folder, write over its files.

    Raises:
        ExportError: The message says what is missing or wrong, and how to fix it.
    """
    if not _MODEL_NAME.fullmatch(model_name):
        raise ExportError(
            f"the model name {model_name!r} is not valid; use letters, digits, '.', '_' and '-', "
            "starting with a letter or digit"
        )
    for option, folder in (("--model-path", model_path), ("--export-path", export_path)):
        if not folder.is_dir():
            raise ExportError(f"{folder}: no such folder; set {option} to an existing one")
    target = export_path / f"{model_name}{_SUFFIXES[archive_format]}"
    if target.exists() and not force:
        raise ExportError(f"{target} already exists; use --force to replace it")
    document = {
        "runtime": runtime,
        "model": {"modelName": model_name, "handler": handler},
        "modelServerVersion": "1.0",
        "implementationVersion": "1.0",
        "specificationVersion": "1.0",
    }
    manifest = json.dumps(document, indent=2).encode()
    try:
        files = list(_collect(model_path, target))
        if archive_format is ArchiveFormat.FOLDER:
            _write_folder(target, files, manifest)
        else:
            write = _write_zip if archive_format is ArchiveFormat.MAR else _write_tar
            with _replacing(target) as temporary:
                write(temporary, model_name, files, manifest)
    except OSError as error:
        place = error.filename or target
        raise ExportError(f"{place}: {error.strerror or error}") from None
    return target


def _collect(folder: Path, target: Path) -> Iterator[tuple[str, Path]]:
    """Yield name in the archive and path of each file to pack."""
    own = os.path.realpath(target)
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(
            name
            for name in folders
            if name not in _LEFT_OUT_FOLDERS
            and not name.startswith(".")
            # A folder that is written into itself; one that is packed in place is the root.
            and os.path.realpath(os.path.join(root, name)) != own
        )
        for name in sorted(files):
            path = Path(root, name)
            if name in _LEFT_OUT_FILES or name.endswith(_LEFT_OUT_ENDINGS):
                continue
            if os.path.realpath(path) == own:
                continue
            if not path.is_file():
                raise ExportError(f"{path}: neither a file nor a link to one; remove it")
            yield path.relative_to(folder).as_posix(), path


@contextlib.contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a file to write, which takes the target's place if nothing fails."""
    descriptor, name = tempfile.mkstemp(prefix=".model-archiver-", dir=target.parent)
    os.close(descriptor)
    try:
        # As for any new file; temporary ones are private.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        yield Path(name)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def _write_zip(path: Path, model_name: str, files: list[tuple[str, Path]], manifest: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, strict_timestamps=False) as archive:
        for name, file in files:
            archive.write(file, name)
        archive.writestr(MAR_MANIFEST_NAME, manifest)


def _write_tar(path: Path, model_name: str, files: list[tuple[str, Path]], manifest: bytes) -> None:
    # Links are followed, as in a .mar file: servers refuse archives with links.
    with tarfile.open(path, "w:gz", dereference=True) as archive:
        for name, file in files:
            archive.add(file, f"{model_name}/{name}", filter=_anonymous)
        entry = tarfile.TarInfo(f"{model_name}/{MAR_MANIFEST_NAME}")
        entry.size = len(manifest)
        archive.addfile(entry, io.BytesIO(manifest))


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Return an entry without its owner, and never as a link to another of the same file."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _write_folder(target: Path, files: list[tuple[str, Path]], manifest: bytes) -> None:
    for name, file in files:
        copy = target / name
        # A folder may be packed in place.
        if not (copy.exists() and os.path.samefile(copy, file)):
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)
    place = target / MAR_MANIFEST_NAME
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(manifest)
