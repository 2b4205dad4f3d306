"""Find out what a file or folder is that nobody has exported."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from mms.archive.artefacts import checkpoint, gluonts, network, onnx, sagemaker, segmentation
from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.gluonts import CONFIG
from mms.archive.artefacts.parts import beside, model_name_of, top_files
from mms.archive.artefacts.sagemaker import CODE
from mms.archive.manifest import MANIFEST_NAME, MAR_MANIFEST_NAME, SIGNATURE_NAME
from mms.archive.model_folder import ONNX_SUFFIX
from mms.archive.onnx_file import is_onnx
from mms.archive.parameters import is_parameters
from mms.errors import ArchiveError

#: Each returns the model of a folder, None if it is of another family, or raises ArchiveError if
#: it is of this one but incomplete. The first that returns one wins.
RECOGNISERS: Sequence[Callable[[Path, str], Artefact | None]] = (
    gluonts.recognise,
    sagemaker.recognise,
    segmentation.recognise,
    checkpoint.recognise,
    onnx.recognise,
    network.recognise,
)
_WITH_EPOCH = re.compile(r"(?P<prefix>.+)@(?P<epoch>\d{1,8})")
_HEAD_BYTES = 64
_ENDINGS = (
    *(checkpoint.SYMBOL_SUFFIX, checkpoint.PARAMETERS_SUFFIX, ONNX_SUFFIX),
    *(SIGNATURE_NAME, CONFIG, segmentation.PARAMETERS),
)


def recognise(path: Path, name: str = "", version: str = "") -> Artefact | None:
    """Return the model at a path; None if it is none that is known.

    Args:
        path: A folder; an ONNX, symbol or parameter file; or what the files of a checkpoint begin
            with, with or without ``@`` and the number of an epoch.
        name: Name of the file, if it lies under another one; "" means that of the path.
        version: The version that is asked for; it chooses among numbered folders.

    Raises:
        ArchiveError: It is incomplete or ambiguous; says what to add or to name.
    """
    name = name or path.resolve().name
    model_name = model_name_of(name)
    if path.is_dir():
        if version.isascii() and version.isdecimal():
            chosen = onnx.recognise_version(path, model_name, int(version))
            if chosen is not None:
                return chosen
        found = (recogniser(path, model_name) for recogniser in RECOGNISERS)
        return next((artefact for artefact in found if artefact is not None), None)
    if path.is_file():
        if name.endswith(ONNX_SUFFIX) or is_onnx(_head(path)):
            return onnx.recognise_file(path, model_name)
        pair = checkpoint.prefix_of(path.name)
    else:
        pair = _named_prefix(path)
    if pair is None:
        return None
    return checkpoint.recognise_prefix(path.parent, model_name, *pair)


def newest_version(path: Path) -> str | None:
    """Return the highest number of the folders of a model's versions; None if it has none."""
    try:
        versions = onnx.version_folders(path) if path.is_dir() else {}
    except ArchiveError:
        return None
    is_archive = any((path / name).is_file() for name in (MANIFEST_NAME, MAR_MANIFEST_NAME))
    return str(max(versions)) if versions and not is_archive else None


def may_be_model(folder: Path) -> bool:
    """Whether the names in a folder are those of a model; reads no file."""
    try:
        names = top_files(folder)
        is_named = any(name.endswith(_ENDINGS) for name in names)
        return is_named or (folder / CODE).is_dir() or bool(onnx.version_folders(folder))
    except ArchiveError:
        return False


def is_prefix(path: Path) -> bool:
    """Whether a path that is no file names a checkpoint: ``PREFIX`` or ``PREFIX@EPOCH``."""
    return _named_prefix(path) is not None


def files_of(path: Path) -> list[Path]:
    """Return the files that belong to a model named by one of them, or by its prefix."""
    pair = checkpoint.prefix_of(path.name) if path.is_file() else _named_prefix(path)
    if pair is None:
        return [path]
    prefix, _ = pair
    own = [p for p in path.parent.glob("*") if checkpoint.prefix_of(p.name) is not None]
    kept = [p for p in own if (checkpoint.prefix_of(p.name) or ("", 0))[0] == prefix]
    return sorted([*kept, *beside(path.parent).values()])


def kind_of(path: Path) -> str:
    """Return what a file seems to be that is no model, for messages; "" if nothing is known."""
    head = _head(path)
    if is_parameters(head):
        return "an MXNet parameter file"
    for magic, kind in _KINDS:
        if head.startswith(magic):
            return kind
    return ""


#: First bytes of files that are taken for models, and what they are.
_KINDS = (
    (b"\x1f\x8b", "a gzip file"),
    (b"\x80\x02", "a pickle, as PyTorch and scikit-learn write it"),
    (b"\x80\x04", "a pickle, as PyTorch and scikit-learn write it"),
    (b"\x80\x05", "a pickle, as PyTorch and scikit-learn write it"),
    (b"\x89HDF", "an HDF5 file, as Keras writes it"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"{", "a JSON document"),
    (b"<", "a web page"),
)


def _named_prefix(path: Path) -> tuple[str, int | None] | None:
    """Return prefix and epoch that a path names, if a symbol of that prefix is there."""
    match = _WITH_EPOCH.fullmatch(path.name)
    candidates: list[tuple[str, int | None]] = [(path.name, None)]
    if match:
        candidates.insert(0, (match["prefix"], int(match["epoch"])))
    for prefix, epoch in candidates:
        if prefix and (path.parent / f"{prefix}{checkpoint.SYMBOL_SUFFIX}").is_file():
            return prefix, epoch
    return None


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD_BYTES)
    except OSError:
        return b""
