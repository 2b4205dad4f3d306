"""Package a folder with a trained model as an archive: find its parts, check and write them.

Every mistake that v0.4's exporter checked for, and more, raises ExportError with advice. The source
folder is never changed, and no user code is run here.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mms.archive.default_service import add_service
from mms.archive.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelFormat,
    Quantization,
    ServingDefaults,
    parse_serving,
)
from mms.archive.model_folder import (
    SIGNATURE_NAME,
    check_names,
    collect,
    engine_version,
    expand,
    find_model_files,
    find_sample,
    format_of,
    read_signature,
)
from mms.archive.names import NAME_RULE, is_model_name
from mms.archive.onnx_external import external_members
from mms.archive.onnx_graph import (
    Graph,
    check_images,
    check_inputs,
    check_labels,
    check_outputs,
    make_signature,
)
from mms.archive.pictures import picture_layout
from mms.archive.reader import Archive
from mms.archive.service_file import own_methods
from mms.archive.signature import Signature
from mms.archive.text import blank_labels, read_labels
from mms.archive.writer import write_archive
from mms.errors import ExportError, ModelLoadFailed, SignatureError
from mms.export.onnx_file import read_graph
from mms.version import __version__

_LABELS_NAME = "synset.txt"
_ONNX_BASES = ("OnnxBaseService", "OnnxVisionService")
_VISION_BASES = ("MXNetVisionService", "GluonVisionService")


@dataclass(frozen=True, slots=True)
class Export:
    """The archive that was written.

    Attributes:
        path: The archive.
        manifest: Its table of contents.
        members: Number of files in it, the manifest included.
    """

    path: Path
    manifest: Manifest
    members: int


def export_model(
    model_name: str,
    model_path: Path,
    service_file: Path | None = None,
    export_path: Path = Path(),
    force: bool = False,
    serving: Mapping[str, Any] | None = None,
) -> Export:
    """Write ``export_path/model_name.model``.

    Args:
        model_name: Name of the model, for the manifest and the file.
        model_path: Folder with signature.json, the parameters and, for symbolic models, the
            symbol; or with an ONNX model, which needs no signature.json. Everything else in it is
            packed too, keeping its folders.
        service_file: The service, in that folder or elsewhere. By default the only service in the
            folder or, for a symbolic or ONNX model, the default service for its input type.
        export_path: Folder to write to; created if missing.
        force: Replace an existing archive.
        serving: Default settings for serving the model: workers, batch_size, max_batch_delay,
            response_timeout, device.

    Raises:
        ExportError, SignatureError: The message says what is missing or wrong, and how to fix it.
        EngineMissing: It is an ONNX model, and onnxruntime is not installed.
    """
    if not is_model_name(model_name):
        raise ExportError(f"model name {model_name[:100]!r} cannot be used in a URL: {NAME_RULE}")
    model_path = expand(model_path)
    if not model_path.is_dir():
        raise ExportError(f"{model_path}: no such folder; set --model-path to the model's folder")
    files = dict(collect(model_path))
    check_names(model_path, files)
    if _LABELS_NAME in files:
        _check_labels_file(files[_LABELS_NAME])
    symbol, parameters = find_model_files(model_path, list(files))
    contents: dict[str, Path | bytes] = dict(files)
    if format_of(symbol) is ModelFormat.ONNX:
        # Under any name: without them the model does not load.
        contents |= external_members(model_path, symbol)
        graph = read_graph(model_path / symbol)
        signature = _add_onnx_signature(contents, model_path, symbol, graph)
        service = add_service(contents, model_path, service_file, symbol, parameters, signature)
        _check_onnx_signature(contents, model_path, signature, graph, service)
        engine = {graph.engine: graph.runtime}
    else:
        signature = read_signature(model_path)
        service = add_service(contents, model_path, service_file, symbol, parameters, signature)
        _check_pictures(contents[service], model_path, signature)
        engine = {"MXNet": engine_version(files[symbol]) if symbol else "1.9.1"}
    defaults = replace(parse_serving(serving or {}, "--serving"), sample=find_sample(list(files)))
    manifest = _make_manifest(model_name, symbol, parameters, service, engine, defaults)
    target = _make_folder(expand(export_path)) / f"{model_name}.model"
    manifest = write_archive(target, manifest, contents, overwrite=force)
    return Export(target, manifest, len(contents) + 1)


def _check_labels_file(path: Path) -> None:
    """Refuse a synset.txt that cannot be read, or that names only some of its classes.

    Raises:
        ExportError: The message says which line, and what to do.
    """
    try:
        blank = blank_labels(read_labels(path))
    except ModelLoadFailed as error:
        raise ExportError(f"{path.parent}: {error}") from None
    if blank:
        raise ExportError(
            f"{path}: line {blank[0]} is blank, and would be the name of a class; name the class, "
            "or remove the line"
        )


def export_quantized(
    archive: Archive,
    files: Mapping[str, Path],
    quantization: Quantization,
    target: Path,
    force: bool = False,
) -> Export:
    """Write a copy of an archive with a quantized network in place of the original.

    Args:
        archive: The original, unpacked.
        files: The quantized ``symbol`` and ``parameters``.
        quantization: Their agreement with the original.
        target: The file to write.
        force: Replace an existing one.

    Raises:
        ExportError: It cannot be written.
    """
    old = archive.manifest
    left_out = {old.symbol, old.parameters, MANIFEST_NAME}
    contents: dict[str, Path | bytes] = {
        name: path for name, path in collect(archive.folder) if name not in left_out
    }
    names = {kind: path.name for kind, path in files.items()}
    contents |= {path.name: path for path in files.values()}
    manifest = replace(
        old,
        symbol=names["symbol"],
        parameters=names["parameters"],
        serving=replace(old.serving, quantization=quantization),
    )
    manifest = write_archive(target, manifest, contents, overwrite=force)
    return Export(target, manifest, len(contents) + 1)


def _make_manifest(
    model_name: str,
    symbol: str,
    parameters: str,
    service: str,
    engine: dict[str, str],
    serving: ServingDefaults,
) -> Manifest:
    return Manifest(
        model_name=model_name,
        model_format=format_of(symbol),
        service=service,
        signature=SIGNATURE_NAME,
        parameters=parameters,
        symbol=symbol,
        description=model_name,
        model_server=__version__,
        engine=engine,
        created_by={
            "mxnet-model-server": __version__,
            "python": ".".join(platform.python_version_tuple()[:2]),
        },
        serving=serving,
    )


def _make_folder(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{path}: cannot be created: {error.strerror}") from None
    return path


def _add_onnx_signature(
    contents: dict[str, Path | bytes], folder: Path, model: str, graph: Graph
) -> Signature:
    """Return the signature in the folder; if there is none, add one generated from the graph."""
    if (folder / SIGNATURE_NAME).exists():
        return read_signature(folder)
    signature = make_signature(graph, _LABELS_NAME in contents, str(folder / model))
    document = orjson.dumps(signature.to_document(), option=orjson.OPT_INDENT_2)
    contents[SIGNATURE_NAME] = document + b"\n"
    return signature


def _check_onnx_signature(
    contents: Mapping[str, Path | bytes],
    folder: Path,
    signature: Signature,
    graph: Graph,
    service: str,
) -> None:
    """Check the signature against the graph, for the stages that the service does not override.

    Raises:
        SignatureError: It does not match.
    """
    source = str(folder / SIGNATURE_NAME)
    path = contents[service]
    own = set() if isinstance(path, bytes) else own_methods(path, _ONNX_BASES)
    if own is None:
        # Only loading it shows; the service then checks it itself.
        return
    if not own & {"_preprocess", "inference"}:
        check_inputs(signature, graph, source)
    if not own & {"_postprocess", "inference"}:
        check_outputs(signature, graph, source)
    if isinstance(path, Path) or not signature.takes_images:
        return
    check_images(signature, graph, source)
    declared = signature.postprocess
    # Without labels, declared classes are numbers; detectors and embeddings have no classes.
    if declared and not (declared.ranks_classes and _LABELS_NAME in contents):
        return
    labels = contents.get(_LABELS_NAME)
    if not isinstance(labels, Path):
        raise SignatureError(
            f"{source}: image models are answered with labels, but there is no {_LABELS_NAME}; add "
            "one with one class per line, or set --service-file-path to a service of your own"
        )
    check_labels(signature, graph, len(read_labels(labels)), source)


def _check_pictures(service: Path | bytes, folder: Path, signature: Signature) -> None:
    """Check that the default service for pictures can feed the network, if it is the one to do so.

    Raises:
        SignatureError: No picture fits into an input; the message names a shape that would do.
    """
    if not signature.takes_images:
        return
    own = set() if isinstance(service, bytes) else own_methods(service, _VISION_BASES)
    if own is not None and not own & {"_preprocess", "inference"}:
        for spec in signature.inputs:
            picture_layout(spec.name, spec.shape, spec.preprocess, str(folder / SIGNATURE_NAME))
