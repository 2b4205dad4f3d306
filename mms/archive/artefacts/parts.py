"""What recognisers share: the files of a folder, and the parts that an archive has."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from mms.archive.artefacts.artefact import Artefact
from mms.archive.default_service import DEFAULT_SERVICE_NAME, own_service, service_source
from mms.archive.manifest import MANIFEST_NAME, Manifest, ServingDefaults
from mms.archive.model_folder import (
    SIGNATURE_NAME,
    collect,
    engine_version,
    find_sample,
    format_of,
)
from mms.archive.signature import Signature
from mms.errors import ArchiveError

LABELS_NAME = "synset.txt"
#: SageMaker's shapes and hyper-parameters of a training job.
SHAPES_NAME, HYPERPARAMETERS_NAME = "model-shapes.json", "hyperparams.json"
#: What belongs to a model that is named by one of its files.
_BESIDE = (
    *(SIGNATURE_NAME, LABELS_NAME, SHAPES_NAME, HYPERPARAMETERS_NAME),
    *("sample.json", "sample.jpg", "sample.jpeg", "sample.png"),
)
#: The same as of an archive: whoever points at a home folder is told so at once.
MAX_FILES = 10_000
MAX_DOCUMENT_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Parts:
    """What a recogniser knows of a model.

    Attributes:
        family: Its kind, such as "SageMaker object detection".
        symbol: Its symbol or ONNX file, by its name in the archive; "" for a Gluon network.
        parameters: Its parameter file likewise.
        signature: Its inputs and outputs, unless its folder has a signature.json.
        service: Module of `mms.model_service` and class of its default service, and what that does.
        documents: Files to generate besides.
        notes: Lines for the log.
    """

    family: str
    symbol: str
    parameters: str
    signature: Signature | None
    service: tuple[str, str, str]
    documents: Mapping[str, bytes] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def top_files(folder: Path) -> list[str]:
    """Return the names of the files in a folder that may belong to a model, sorted.

    Raises:
        ArchiveError: The folder cannot be read, or has too many files.
    """
    try:
        with os.scandir(folder) as entries:
            names = []
            for entry in entries:
                if not entry.name.startswith(".") and entry.is_file():
                    names.append(entry.name)
                if len(names) > MAX_FILES:
                    raise _too_many(folder)
            return sorted(names)
    except OSError as error:
        raise ArchiveError(f"{folder}: cannot be read: {error.strerror}") from None


def contents_of(folder: Path) -> dict[str, Path]:
    """Return all files of a model's folder by their names in the archive.

    Raises:
        ArchiveError: There are too many.
    """
    contents = {}
    for name, path in collect(folder):
        contents[name] = path
        if len(contents) > MAX_FILES:
            raise _too_many(folder)
    return contents


def beside(folder: Path, *names: str) -> dict[str, Path]:
    """Return some files of a folder, and those that describe any model in it."""
    return {name: folder / name for name in (*names, *_BESIDE) if (folder / name).is_file()}


def assemble(folder: Path, name: str, contents: Mapping[str, Path], parts: Parts) -> Artefact:
    """Return the artefact of a model whose parts are known.

    A service file of its own runs instead of the default one, and a signature.json of its own is
    taken instead of the one that was found.

    Raises:
        ExportError: The folder has several services.
    """
    documents = dict(parts.documents)
    if parts.signature is not None and SIGNATURE_NAME not in contents:
        document = orjson.dumps(parts.signature.to_document(), option=orjson.OPT_INDENT_2)
        documents[SIGNATURE_NAME] = document + b"\n"
    service = own_service(folder, contents, parts.symbol)
    if not service:
        service = DEFAULT_SERVICE_NAME
        documents[service] = service_source(*parts.service)
    # A symbol that has been changed is generated; the original says who wrote it.
    written = contents.get(parts.symbol)
    is_symbol = written is not None and parts.symbol.endswith(".json")
    manifest = Manifest(
        model_name=name,
        model_format=format_of(parts.symbol),
        service=service,
        signature=SIGNATURE_NAME,
        parameters=parts.parameters,
        symbol=parts.symbol,
        description=parts.family,
        engine={"MXNet": engine_version(written)} if is_symbol and written else {},
        serving=ServingDefaults(sample=find_sample(list(contents))),
    )
    # What is generated stands for a file of the same name, which stays where it is.
    files = {file: path for file, path in contents.items() if file not in documents}
    files.pop(MANIFEST_NAME, None)
    return Artefact(parts.family, manifest, files, documents, parts.notes)


def read_document(path: Path) -> object:
    """Return the JSON in a file that belongs to a model.

    Raises:
        ArchiveError: It is too long, or not JSON.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
        if len(data) > MAX_DOCUMENT_BYTES:
            raise ArchiveError(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
        return orjson.loads(data.removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise ArchiveError(f"{path}: not valid JSON: {error}") from None


def model_name_of(text: str) -> str:
    """Return a model's name from the name of its file or folder.

    Suffixes, the number of an epoch and a version go; what no name in a URL has becomes ``_``.
    """
    stem = re.sub(
        r"(-symbol\.json|(-\d{1,8})?\.params|\.onnx|\.tar\.gz|\.tgz|\.tar|\.zip|\.model|\.mar"
        r"|@\d{1,8})$",
        "",
        text[:200],
    )
    name = re.sub(r"\W", "_", stem, flags=re.ASCII).lstrip("_")
    return name[:128] or "model"


def _too_many(folder: Path) -> ArchiveError:
    return ArchiveError(
        f"{folder}: more than {MAX_FILES} files, so not the folder of one model; name the folder "
        "that holds the model alone"
    )
