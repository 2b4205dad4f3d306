"""Lay out a recognised model as the folder of an archive: links and generated files."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from mms.archive.artefacts.artefact import Artefact
from mms.archive.manifest import MANIFEST_NAME, MAR_MANIFEST_NAME


def lay_out(artefact: Artefact, folder: Path) -> None:
    """Fill an empty folder with what an export of the model would have packed.

    The files of the user are linked one by one, so that nothing is written beside them, not even
    Python's caches.

    Raises:
        OSError: It cannot be written.
    """
    documents = dict(artefact.documents)
    if not documents.keys() & {MANIFEST_NAME, MAR_MANIFEST_NAME}:
        document = artefact.manifest.to_document()
        documents[MANIFEST_NAME] = orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"
    for name, content in documents.items():
        _place(folder, name).write_bytes(content)
    for name, path in artefact.files.items():
        _place(folder, name).symlink_to(os.path.abspath(path))


def _place(folder: Path, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
