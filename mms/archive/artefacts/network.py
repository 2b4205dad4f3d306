"""A Gluon network with its service: what mxnet-model-export packs when there is no symbol."""

from __future__ import annotations

from pathlib import Path

from mms.archive.artefacts.artefact import Artefact
from mms.archive.artefacts.parts import Parts, assemble, contents_of, top_files
from mms.archive.default_service import own_service, refuse_scripts
from mms.archive.model_folder import find_model_files, read_signature
from mms.errors import ArchiveError


def recognise(folder: Path, name: str) -> Artefact | None:
    """Return the model of a folder with a service file and perhaps parameters, but no symbol.

    Raises:
        ArchiveError: A part is missing; says what to add.
    """
    names = top_files(folder)
    parameters = [file for file in names if file.endswith(".params")]
    service = own_service(folder, {n: folder / n for n in names if n.endswith(".py")}, "")
    if not service and parameters:
        refuse_scripts(folder, {n: folder / n for n in names})
        first = parameters[0]
        raise ArchiveError(
            f"{folder}: only a parameter file ({first}) was found; add its symbol, "
            f"{first.removesuffix('.params').rpartition('-')[0] or 'NAME'}-symbol.json, as "
            "export and save_checkpoint write it, or for a Gluon network a service file that "
            "builds it, and a signature.json"
        )
    if not service:
        return None
    newest, *others = sorted(parameters, reverse=True) or [""]
    _, newest = find_model_files(folder, [newest]) if newest else ("", "")
    # Says what to write if it is missing.
    read_signature(folder)
    contents = contents_of(folder)
    for file in others:
        contents.pop(file, None)
    notes = (f"{newest} is the newest of {len(parameters)} parameter files",) if others else ()
    parts = Parts("model folder", "", newest, None, ("", "", ""), notes=notes)
    return assemble(folder, name, contents, parts)
