"""Make an archive out of a folder with a trained model: find its parts, check them, write.

Every mistake that v0.4's exporter checked for, and more, is an ExportError that says what to do.
The source folder is never changed, and no user code is run here.
"""

from __future__ import annotations

import fnmatch
import json
import os
import platform
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from mms.archive.manifest import (
    MANIFEST_NAME,
    Manifest,
    ModelFormat,
    Quantization,
    Sample,
    ServingDefaults,
    is_model_name,
    parse_serving,
)
from mms.archive.onnx_external import external_members
from mms.archive.onnx_graph import (
    Graph,
    check_images,
    check_inputs,
    check_labels,
    check_outputs,
    make_signature,
)
from mms.archive.reader import Archive
from mms.archive.signature import Signature, parse_signature
from mms.archive.writer import write_archive
from mms.errors import ExportError, SignatureError
from mms.export.onnx_file import read_graph
from mms.export.service_file import has_imported_base, own_methods, service_classes
from mms.version import __version__

SIGNATURE_NAME = "signature.json"
DEFAULT_SERVICE_NAME = "default_service.py"
_LABELS_NAME = "synset.txt"
_ONNX_SUFFIX = ".onnx"
_SAMPLE_STEM = "sample"
_SAMPLE_TYPES = {
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
}
#: Never packed: caches, archives, what version control and editors leave.
_IGNORED = ("__pycache__", "*.pyc", "*.model", "*.mar", ".*", "*~", MANIFEST_NAME)
_PARAMS = re.compile(r"(?P<prefix>.+)-(?P<epoch>\d+)\.params")
#: Module and class of the default service, by whether the inputs are images.
_DEFAULT_SERVICES = {
    (ModelFormat.SYMBOLIC, False): ("mxnet_model_service", "MXNetBaseService"),
    (ModelFormat.SYMBOLIC, True): ("mxnet_vision_service", "MXNetVisionService"),
    (ModelFormat.ONNX, False): ("onnx_service", "OnnxBaseService"),
    (ModelFormat.ONNX, True): ("onnx_service", "OnnxVisionService"),
}


@dataclass(frozen=True, slots=True)
class Export:
    """What was made.

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
        model_name: Name for the manifest and the file.
        model_path: Folder with signature.json, the parameters and, for symbolic models, the
            symbol; or with an ONNX model, which needs no signature.json. Everything else in it is
            packed too, keeping its folders.
        service_file: The service, in that folder or elsewhere. Without one, the only service in
            the folder is taken, or for a symbolic or ONNX model the default one for its input
            type.
        export_path: Folder to write to; made if missing.
        force: Replace an existing archive.
        serving: Defaults for how to serve the model: workers, batch_size, max_batch_delay,
            response_timeout, device.

    Raises:
        ExportError, SignatureError: What is missing or wrong, and how to mend it.
        EngineMissing: It is an ONNX model, and there is no onnxruntime to read it.
    """
    if not is_model_name(model_name):
        raise ExportError(
            f"model name {model_name!r} cannot stand in a URL; use letters, digits, '.', '_' and "
            "'-', starting with a letter or digit"
        )
    model_path = _expand(model_path)
    if not model_path.is_dir():
        raise ExportError(f"{model_path}: no such folder; give --model-path the model's folder")
    files = dict(_collect(model_path))
    _check_names(model_path, files)
    symbol, parameters = _find_model_files(model_path, list(files))
    contents: dict[str, Path | bytes] = dict(files)
    if _format_of(symbol) is ModelFormat.ONNX:
        # Whatever their names: without them the model does not load.
        contents |= external_members(model_path, symbol)
        graph = read_graph(model_path / symbol)
        signature = _add_onnx_signature(contents, model_path, symbol, graph)
        service = _add_service(contents, model_path, service_file, symbol, parameters, signature)
        _check_onnx_signature(contents, model_path, signature, graph, service)
        engine = {"onnxruntime": graph.runtime}
    else:
        signature = _read_signature(model_path)
        service = _add_service(contents, model_path, service_file, symbol, parameters, signature)
        engine = {"MXNet": _engine_version(files[symbol]) if symbol else "1.9.1"}
    defaults = replace(parse_serving(serving or {}, "--serving"), sample=_find_sample(list(files)))
    manifest = _make_manifest(model_name, symbol, parameters, service, engine, defaults)
    target = _make_folder(_expand(export_path)) / f"{model_name}.model"
    manifest = write_archive(target, manifest, contents, overwrite=force)
    return Export(target, manifest, len(contents) + 1)


def export_quantized(
    archive: Archive,
    files: Mapping[str, Path],
    quantization: Quantization,
    target: Path,
    force: bool = False,
) -> Export:
    """Write an archive again with a quantized network in place of the original.

    Args:
        archive: The original, unpacked.
        files: The quantized ``symbol`` and ``parameters``.
        quantization: How well they agree with the original.
        target: The file to write.
        force: Replace an existing one.

    Raises:
        ExportError: It cannot be written.
    """
    old = archive.manifest
    left_out = {old.symbol, old.parameters, MANIFEST_NAME}
    contents: dict[str, Path | bytes] = {
        name: path for name, path in _collect(archive.folder) if name not in left_out
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
        model_format=_format_of(symbol),
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
        raise ExportError(f"{path}: cannot be made: {error.strerror}") from None
    return path


def _collect(folder: Path) -> Iterator[tuple[str, Path]]:
    """Return (member name, path) of each file worth packing, in a fixed order."""
    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(name for name in folders if not _is_ignored(name)):
            # A linked folder is packed like any other, but not one that leads round in a circle.
            real = os.path.realpath(os.path.join(root, name))
            if real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            path = Path(root, name)
            if not _is_ignored(name) and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _check_names(folder: Path, names: Iterable[str]) -> None:
    """Refuse what could be packed but not be unpacked again."""
    seen: dict[str, str] = {}
    for name in names:
        if not _is_text(name) or "\\" in name or name.split("/")[0].endswith(":"):
            raise ExportError(
                f"{folder}: the file name {name!r} cannot stand in an archive; rename the file"
            )
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ExportError(
                f"{folder}: {other!r} and {name!r} are one file on systems that ignore case; "
                "rename one"
            )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _expand(path: Path) -> Path:
    """Expand ``~``; unlike Path.expanduser, leave an unknown user's as it is."""
    return Path(os.path.expanduser(path))


def _is_ignored(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _IGNORED)


def _find_model_files(folder: Path, names: list[str]) -> tuple[str, str]:
    """Return the symbol's and the parameter file's names; "" for what a model lacks.

    Of an ONNX model, whose one file holds both, the former is that file's name.
    """
    top = [name for name in names if "/" not in name]
    symbol = _only(folder, top, "-symbol.json", "symbol")
    parameters = _only(folder, top, ".params", "parameter")
    onnx = _only(folder, top, _ONNX_SUFFIX, "ONNX")
    if onnx and (symbol or parameters):
        raise ExportError(
            f"{folder}: an ONNX model ({onnx}) and an MXNet model ({symbol or parameters}) lie in "
            "one folder; keep one model per folder"
        )
    if onnx:
        return onnx, ""
    if symbol and not parameters:
        raise ExportError(
            f"{folder}: the symbol {symbol} has no parameter file; add "
            f"{symbol.removesuffix('-symbol.json')}-0000.params"
        )
    if parameters:
        match = _PARAMS.fullmatch(parameters)
        if match is None:
            raise ExportError(
                f"{folder}: the parameter file {parameters} has no epoch number; rename it to "
                f"{parameters.removesuffix('.params')}-0000.params"
            )
        if symbol and symbol.removesuffix("-symbol.json") != match["prefix"]:
            raise ExportError(
                f"{folder}: {symbol} and {parameters} do not begin alike; name them "
                f"{match['prefix']}-symbol.json and {parameters}"
            )
    return symbol, parameters


def _format_of(symbol: str) -> ModelFormat:
    if symbol.endswith(_ONNX_SUFFIX):
        return ModelFormat.ONNX
    return ModelFormat.SYMBOLIC if symbol else ModelFormat.GLUON


def _only(folder: Path, names: list[str], suffix: str, what: str) -> str:
    found = [name for name in names if name.endswith(suffix)]
    if len(found) > 1:
        raise ExportError(
            f"{folder}: several {what} files ({', '.join(found)}); keep the one to export"
        )
    return found[0] if found else ""


def _read_signature(folder: Path) -> Signature:
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        raise SignatureError(
            f"{folder}: no {SIGNATURE_NAME}; write one, such as "
            '{"inputs": [{"data_name": "data", "data_shape": [0, 3, 224, 224]}], '
            '"input_type": "image/jpeg", '
            '"outputs": [{"data_name": "softmax", "data_shape": [0, 10]}], '
            '"output_type": "application/json"}'
        )
    try:
        # The parser that the server reads it with, which takes no NaN, for one.
        document = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise SignatureError(f"{path}: not valid JSON: {error}") from None
    return parse_signature(document, str(path))


def _add_onnx_signature(
    contents: dict[str, Path | bytes], folder: Path, model: str, graph: Graph
) -> Signature:
    """Return the signature in the folder; if there is none, add one made from the graph."""
    if (folder / SIGNATURE_NAME).exists():
        return _read_signature(folder)
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
    """Check the signature against the graph, as far as the service leaves that to its base.

    Raises:
        SignatureError: It does not fit.
    """
    source = str(folder / SIGNATURE_NAME)
    path = contents[service]
    own = set() if isinstance(path, bytes) else own_methods(path)
    if own is None:
        # Only loading it tells; the service then checks it itself.
        return
    if not own & {"_preprocess", "inference"}:
        check_inputs(signature, graph, source)
    if not own & {"_postprocess", "inference"}:
        check_outputs(signature, graph, source)
    if isinstance(path, Path) or not signature.takes_images:
        return
    check_images(signature, graph, source)
    labels = contents.get(_LABELS_NAME)
    if not isinstance(labels, Path):
        raise SignatureError(
            f"{source}: images are answered by labels, but there is no {_LABELS_NAME}; add one "
            "with a class per line, or name a service of your own with --service-file-path"
        )
    check_labels(signature, graph, len(labels.read_bytes().splitlines()), source)


def _add_service(
    contents: dict[str, Path | bytes],
    folder: Path,
    service_file: Path | None,
    symbol: str,
    parameters: str,
    signature: Signature,
) -> str:
    """Put the service into the contents if it is not there; return its member name."""
    if service_file is None:
        found = [
            name
            for name, path in contents.items()
            if name.endswith(".py") and "/" not in name and isinstance(path, Path)
            if service_classes(path)
        ]
        if len(found) > 1:
            raise ExportError(
                f"{folder}: several files define services ({', '.join(found)}); name one with "
                "--service-file-path"
            )
        if found:
            service_file = folder / found[0]
    if service_file is None:
        return _add_default_service(contents, folder, symbol, parameters, signature)
    path = _locate(service_file, folder)
    _check_service(path, symbol)
    resolved, root = os.path.realpath(path), os.path.realpath(folder)
    if Path(resolved).is_relative_to(root):
        name = Path(resolved).relative_to(root).as_posix()
        # Named by the user, it is packed even where its like is left out (a hidden file, say).
        contents.setdefault(name, path)
    else:
        name = path.name
        contents[name] = path
    _check_names(folder, contents)
    return name


def _add_default_service(
    contents: dict[str, Path | bytes],
    folder: Path,
    symbol: str,
    parameters: str,
    signature: Signature,
) -> str:
    if not symbol:
        if parameters:
            raise ExportError(
                f"{folder}: only a parameter file ({parameters}) was found. A Gluon model needs "
                "its service file: name it with --service-file-path. A symbolic model needs "
                f"{parameters.rsplit('-', 1)[0]}-symbol.json beside it"
            )
        raise ExportError(
            f"{folder}: no model found. A symbolic model is a NAME-symbol.json and a "
            "NAME-0000.params file; a Gluon model is a service file and a NAME-0000.params file; "
            "an ONNX model is a NAME.onnx file"
        )
    module, name = _DEFAULT_SERVICES[_format_of(symbol), signature.takes_images]
    source = f'''\
        """The default service for {signature.input_type} inputs."""

        from mms.model_service.{module} import {name}


        class DefaultService({name}):
            """Override _preprocess, _inference or _postprocess to change what it does."""
        '''
    contents[DEFAULT_SERVICE_NAME] = textwrap.dedent(source).encode()
    return DEFAULT_SERVICE_NAME


def _locate(service_file: Path, folder: Path) -> Path:
    """Find a service file given by its path, by its name in the folder, or by its folder."""
    service_file = _expand(service_file)
    for path in (service_file, folder / service_file):
        if path.is_file():
            return path
    if service_file.is_dir():
        # The announcement's own command names the folder.
        found = [path for path in sorted(service_file.glob("*.py")) if service_classes(path)]
        if len(found) == 1:
            return found[0]
        names = ", ".join(path.name for path in found) or "none"
        raise ExportError(
            f"{service_file}: expected one service file in this folder, found {names}; name the "
            "file itself"
        )
    raise ExportError(f"{service_file}: no such service file, neither here nor in {folder}")


def _check_service(path: Path, symbol: str) -> None:
    if path.suffix != ".py":
        raise ExportError(f"{path}: a service file's name ends in .py; rename it")
    classes = service_classes(path)
    if not classes and has_imported_base(path):
        return
    if not classes:
        raise ExportError(
            f"{path}: defines no service class; derive one from GluonImperativeBaseService or "
            "MXNetBaseService (mms.model_service.mxnet_model_service), or for an ONNX model from "
            "OnnxBaseService (mms.model_service.onnx_service)"
        )
    if len(classes) > 1:
        names = ", ".join(name for name, _ in classes)
        raise ExportError(f"{path}: defines several service classes ({names}); keep one per file")
    name, model_format = classes[0]
    if symbol.endswith(_ONNX_SUFFIX) and model_format not in (None, ModelFormat.ONNX):
        raise ExportError(
            f"{path}: {name} serves an MXNet model, but the folder holds an ONNX model ({symbol}); "
            "derive the service from OnnxBaseService (mms.model_service.onnx_service)"
        )
    if model_format is ModelFormat.ONNX and not symbol.endswith(_ONNX_SUFFIX):
        raise ExportError(
            f"{path}: {name} serves an ONNX model, but the folder holds none; add NAME.onnx, or "
            "derive the service from GluonImperativeBaseService or MXNetBaseService"
        )
    if symbol and model_format is ModelFormat.GLUON:
        raise ExportError(
            f"{path}: {name} serves a Gluon network, but the folder holds a symbol ({symbol}); "
            "remove the symbol, or derive the service from MXNetBaseService"
        )
    if not symbol and model_format is ModelFormat.SYMBOLIC:
        raise ExportError(
            f"{path}: {name} serves a symbol, but the folder holds none; add "
            "NAME-symbol.json, or derive the service from GluonImperativeBaseService"
        )


def _find_sample(names: list[str]) -> Sample | None:
    for suffix, content_type in _SAMPLE_TYPES.items():
        if f"{_SAMPLE_STEM}{suffix}" in names:
            return Sample(f"{_SAMPLE_STEM}{suffix}", content_type)
    return None


def _engine_version(symbol: Path) -> str:
    """Return the MXNet version that wrote a symbol, as far as it says."""
    try:
        document = json.loads(symbol.read_text(encoding="utf-8"))
        code = document["attrs"]["mxnet_version"][1]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "1.9.1"
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}" if isinstance(code, int) else "1.9.1"
