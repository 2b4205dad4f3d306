"""ONNX models: a file, a folder with one, and the numbered folders of Triton and TF Serving."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.parts import (
    LABELS_NAME,
    Parts,
    assemble,
    beside,
    contents_of,
    top_files,
)
from mms.archive.default_service import default_service
from mms.archive.model_folder import ONNX_SUFFIX, SIGNATURE_NAME, read_signature_file
from mms.archive.onnx_external import external_members
from mms.archive.onnx_file import read_graph
from mms.archive.onnx_graph import make_signature
from mms.errors import ArchiveError

#: Triton's configuration of a model: batching and placement are settings of this server.
_CONFIG_NAME = "config.pbtxt"
#: Folder of an archive in which the model lies with the files of its weights.
_FOLDER = "model"


def recognise(folder: Path, name: str) -> Artefact | None:
    """Return the ONNX model of a folder, which may lie in folders that number its versions.

    Raises:
        ArchiveError: There are several models.
    """
    versions = version_folders(folder)
    if not versions:
        return _in_folder(folder, folder, name)
    number = max(versions)
    return recognise_version(folder, name, number)


def recognise_version(folder: Path, name: str, number: int) -> Artefact | None:
    """Return one of the numbered versions of an ONNX model.

    Raises:
        ArchiveError: There is no such version, or several models are in it.
    """
    versions = version_folders(folder)
    if number not in versions:
        return None
    artefact = _in_folder(versions[number], folder, name)
    others = sorted(set(versions) - {number})
    if artefact and others:
        listed = ", ".join(map(str, others[-8:]))
        note = f"version {number} is served; versions {listed} are there as well"
        artefact = dataclasses.replace(artefact, notes=(*artefact.notes, note))
    return artefact


def version_folders(folder: Path) -> dict[int, Path]:
    """Return the folders of a model's versions that hold an ONNX model, by number."""
    try:
        found = {int(p.name): p for p in folder.iterdir() if _is_number(p.name) and p.is_dir()}
        return {n: path for n, path in found.items() if _candidates(path)}
    except OSError as error:
        raise ArchiveError(f"{folder}: cannot be read: {error.strerror}") from None


def recognise_file(path: Path, name: str) -> Artefact:
    """Return the model of one ONNX file, with the files beside it that describe it.

    Raises:
        ArchiveError: It is not valid.
    """
    # A downloaded file may have any name.
    file = path.name if path.suffix == ONNX_SUFFIX else "model.onnx"
    contents = {key: beside_ for key, beside_ in beside(path.parent).items()}
    return _artefact(path, file, contents, path.parent, name, ())


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdecimal() and len(name) <= 18


def _candidates(folder: Path) -> list[Path]:
    """Return the ONNX files of a folder; one called model.onnx goes before all others."""
    found = [folder / file for file in top_files(folder) if file.endswith(ONNX_SUFFIX)]
    if not found and (folder / "model.onnx").is_dir():
        # Triton's form for models whose weights lie in files of their own.
        found = _candidates(folder / "model.onnx")
    named = [path for path in found if path.name == "model.onnx"]
    return named or found


def _in_folder(folder: Path, root: Path, name: str) -> Artefact | None:
    found = _candidates(folder)
    if not found:
        return None
    if len(found) > 1:
        listed = ", ".join(str(path) for path in found[:8])
        raise ArchiveError(f"{folder}: {len(found)} ONNX models are in it; name one: {listed}")
    path = found[0]
    contents = contents_of(path.parent)
    if any(file.endswith("-symbol.json") and "/" not in file for file in contents):
        raise ArchiveError(
            f"{folder}: both an ONNX model ({path.name}) and an MXNet symbol are in it; name the "
            f"one to serve: {path}"
        )
    notes = []
    if (root / _CONFIG_NAME).is_file():
        notes.append(f"{_CONFIG_NAME} is not read; batching and devices are settings here")
    contents = {**beside(root), **contents}
    contents.pop(_CONFIG_NAME, None)
    return _artefact(path, path.name, contents, path.parent, name, tuple(notes))


def _artefact(
    path: Path,
    file: str,
    contents: dict[str, Path],
    folder: Path,
    name: str,
    notes: tuple[str, ...],
) -> Artefact:
    contents[file] = path
    weights = external_members(path.parent, path.name)
    if SIGNATURE_NAME in contents:
        signature, given = None, read_signature_file(contents[SIGNATURE_NAME])
    else:
        given = make_signature(read_graph(path), LABELS_NAME in contents, str(path))
        signature = given
    symbol = f"{_FOLDER}/{file}" if weights else file
    parts = Parts("ONNX model", symbol, "", signature, default_service(file, given), notes=notes)
    artefact = assemble(folder, name, contents, parts)
    if not weights:
        return artefact
    # onnxruntime reads weights only from the folder of the file itself, links followed.
    files = {key: value for key, value in artefact.files.items() if key != file}
    return dataclasses.replace(artefact, files={**files, _FOLDER: path.parent})
