"""The content of an unpacked archive: its manifest, its signature, and the files that they name."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from mms.archive.artefacts.parts import model_name_of
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
from mms.archive.signature import Signature, parse_signature
from mms.errors import ArchiveError, SignatureError

#: Manifests and signatures take a few kB; this only stops one crafted to exhaust memory.
MAX_DOCUMENT_BYTES = 8 << 20
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Archive:
    """A model on disk that passed every check.

    Attributes:
        source: The file or folder that the user named.
        folder: The unpacked files, or links to them.
        manifest: Its table of contents.
        signature: The model's inputs and outputs; None if a 1.x archive does not state them.
        digest: sha256 of the archive file in hex, or "" for a folder.
        family: What it was recognised as, if nobody has exported it; else "".
        notes: Lines for the log.
    """

    source: str
    folder: Path
    manifest: Manifest
    signature: Signature | None
    digest: str
    family: str = ""
    notes: tuple[str, ...] = ()


def hash_file(path: Path) -> str:
    """Return the sha256 of a file in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def has_manifest(folder: Path) -> bool:
    """Whether a folder is an unpacked archive."""
    return any((folder / name).is_file() for name in (MANIFEST_NAME, MAR_MANIFEST_NAME))


def inspect(source: str, folder: Path, digest: str, handler: str) -> Archive:
    """Return the archive in a folder, with all that its manifest names.

    Raises:
        ArchiveError: Something is missing or not valid.
    """
    manifest = manifest_of(source, folder, handler)
    if manifest.model_format is ModelFormat.HANDLER:
        signature = signature_if_any(folder, manifest)
        return Archive(source, folder, manifest, signature, digest)
    manifest, notes = _resolved(source, folder, manifest)
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
    label = f"{source}: {manifest.signature}"
    document = load_json(_resolve(folder, manifest.signature), label)
    return Archive(source, folder, manifest, parse_signature(document, label), digest, notes=notes)


def rewritten_manifest(archive: Archive) -> bytes | None:
    """Return the manifest of an archive whose own has patterns or names missing parameters.

    Returns:
        None if it can stay as it is.
    """
    path = archive.folder / MANIFEST_NAME
    if archive.manifest.model_format is ModelFormat.HANDLER or not path.is_file():
        return None
    document: Any = load_json(path, MANIFEST_NAME)
    model, manifest = document["Model"], archive.manifest
    old = (model.get("Service"), model.get("Signature"), model.get("Parameters") or "")
    if old == (manifest.service, manifest.signature, manifest.parameters):
        return None
    names = {"Service": manifest.service, "Signature": manifest.signature}
    names["Parameters"] = manifest.parameters
    return orjson.dumps({**document, "Model": {**model, **names}}, option=orjson.OPT_INDENT_2)


def _resolved(source: str, folder: Path, manifest: Manifest) -> tuple[Manifest, tuple[str, ...]]:
    """Return a manifest without the liberties that 0.4 allowed, and a line for each.

    Service and signature could be patterns that match one file, and parameters could be missing.
    """
    notes = []
    service = _matching(source, folder, manifest.service, "Service")
    signature = _matching(source, folder, manifest.signature, "Signature")
    parameters = manifest.parameters
    is_network = manifest.model_format is ModelFormat.GLUON
    if parameters and is_network and not _resolve(folder, parameters).is_file():
        notes.append(f"the parameter file {parameters!r} is missing; the service goes without")
        parameters = ""
    changed = dataclasses.replace(
        manifest, service=service, signature=signature, parameters=parameters
    )
    return changed, tuple(notes)


def _matching(source: str, folder: Path, name: str, key: str) -> str:
    """Return the one file that a pattern matches; a name of a file is none."""
    if not set(name) & set("*?[") or _resolve(folder, name).is_file():
        return name
    found = [p.relative_to(folder).as_posix() for p in sorted(folder.glob(name)) if p.is_file()]
    if len(found) != 1:
        listed = ", ".join(found[:8]) or "no file"
        raise ArchiveError(
            f"{source}: the manifest's Model.{key} is the pattern {name!r}, which must match one "
            f"file; it matches {listed}"
        )
    return found[0]


def signature_if_any(folder: Path, manifest: Manifest) -> Signature | None:
    """Return the signature of a 1.x archive, whose signature.json may be the handler's own file."""
    path = folder / manifest.signature
    with contextlib.suppress(ArchiveError, SignatureError):
        if path.is_file():
            return parse_signature(load_json(path, manifest.signature))
    return None


def manifest_of(source: str, folder: Path, handler: str) -> Manifest:
    """Return the manifest of a folder; one made up for the handler if it has none.

    Raises:
        ArchiveError: It is missing or not valid.
    """
    for name in (MAR_MANIFEST_NAME, MANIFEST_NAME):
        path = folder / name
        if path.is_file():
            label = f"{source}: {name}"
            files = [entry.name for entry in folder.iterdir()]
            return _parse(load_json(path, label), name, label, handler, files)
    if handler:
        return handler_manifest(model_name_of(folder.resolve().name), handler)
    raise no_manifest(source)


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


def member_manifest(path: Path, archive: zipfile.ZipFile, name: str, handler: str) -> Manifest:
    """Return the manifest that is a member of a zip file.

    Raises:
        ArchiveError: It is not valid.
    """
    info = archive.getinfo(name)
    if info.file_size > MAX_DOCUMENT_BYTES:
        raise ArchiveError(f"{path}: {name} is larger than {MAX_DOCUMENT_BYTES} bytes")
    label = f"{path}: {name}"
    with archive.open(info) as member:
        document = _parse_json(member.read(MAX_DOCUMENT_BYTES), label)
    kind = name if name == MAR_MANIFEST_NAME else MANIFEST_NAME
    return _parse(document, kind, label, handler, archive.namelist())


def no_manifest(source: str | Path) -> ArchiveError:
    """Return the error for a folder or file in which there is no model."""
    return ArchiveError(
        f"{source}: neither {MANIFEST_NAME} nor {MAR_MANIFEST_NAME} is in it, and no other model "
        "that is known (docs/artefacts.md lists them); create an archive with mxnet-model-export"
    )


def verify_files(source: str, folder: Path, manifest: Manifest) -> None:
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


def load_json(path: Path, label: str) -> object:
    """Return the JSON in a file.

    Raises:
        ArchiveError: It is too long, or not JSON.
    """
    if path.stat().st_size > MAX_DOCUMENT_BYTES:
        raise ArchiveError(f"{label} is larger than {MAX_DOCUMENT_BYTES} bytes")
    return _parse_json(path.read_bytes(), label)


def _parse_json(data: bytes, label: str) -> object:
    try:
        # Editors on Windows put a byte order mark first.
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError as error:
        raise ArchiveError(f"{label}: not valid JSON: {error}") from None
