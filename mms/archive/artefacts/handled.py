"""Lay out a model of another framework as a 1.x archive, whose handler is one of this server's."""

from __future__ import annotations

import os
from pathlib import Path

import orjson

from mms.archive.artefacts.artefact import Artefact
from mms.archive.manifest import MAR_MANIFEST_NAME, parse_mar_manifest


def handled(
    family: str, folder: Path, name: str, handler: str, engine: str, version: str, note: str
) -> Artefact:
    """Return a folder as a model that a handler serves.

    Args:
        family: Its kind.
        folder: The folder; all its files belong to the model.
        name: Name of the model.
        handler: ``module:class`` of the handler.
        engine: Name of what runs it.
        version: Version of that which wrote it; "" if it is not known.
        note: A line for the log.
    """
    document = {
        "specificationVersion": "1.0",
        "runtime": "python",
        "model": {"modelName": name, "handler": handler, "description": family},
        "engine": {"engineName": engine, "engineVersion": version},
    }
    return Artefact(
        family,
        parse_mar_manifest(document),
        _files(folder),
        {MAR_MANIFEST_NAME: orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"},
        (note,),
    )


def _files(folder: Path) -> dict[str, Path]:
    """Return the files below a folder by name: one by one, so that no cache is written there."""
    found = {}
    for root, folders, names in os.walk(folder):
        # Folders that are links are not followed, which could be for ever.
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in (*names, *links):
            path = Path(root, name)
            found[path.relative_to(folder).as_posix()] = path
    return dict(sorted(found.items()))
