"""Find the service of an archive and check it against the model, or generate one."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Mapping
from pathlib import Path

from mms.archive.manifest import ModelFormat
from mms.archive.model_folder import ONNX_SUFFIX, check_names, expand, format_of
from mms.archive.service_file import has_imported_base, service_classes
from mms.archive.signature import Signature
from mms.errors import ExportError

DEFAULT_SERVICE_NAME = "default_service.py"
#: Module and class of the default service, by whether the inputs are images.
_DEFAULT_SERVICES = {
    (ModelFormat.SYMBOLIC, False): ("mxnet_model_service", "MXNetBaseService"),
    (ModelFormat.SYMBOLIC, True): ("mxnet_vision_service", "MXNetVisionService"),
    (ModelFormat.ONNX, False): ("onnx_service", "OnnxBaseService"),
    (ModelFormat.ONNX, True): ("onnx_service", "OnnxVisionService"),
}


def add_service(
    contents: dict[str, Path | bytes],
    folder: Path,
    service_file: Path | None,
    symbol: str,
    parameters: str,
    signature: Signature,
) -> str:
    """Add the service to the contents if it is missing; return its member name."""
    if service_file is None:
        found = own_service(folder, contents, symbol)
        service_file = folder / found if found else None
    if service_file is None:
        return _add_default_service(contents, folder, symbol, parameters, signature)
    path = _locate(service_file, folder)
    _check_service(path, symbol)
    resolved, root = os.path.realpath(path), os.path.realpath(folder)
    if Path(resolved).is_relative_to(root):
        name = Path(resolved).relative_to(root).as_posix()
        # Named by the user, it is packed even if such files are normally left out (a hidden file).
        contents.setdefault(name, path)
    else:
        name = path.name
        contents[name] = path
    check_names(folder, contents)
    return name


def own_service(folder: Path, contents: Mapping[str, Path | bytes], symbol: str) -> str:
    """Return the name of the only service file at the top of a model's folder; "" if none is.

    Raises:
        ExportError: There are several, or it does not fit the model.
    """
    found = [
        name
        for name, path in contents.items()
        if name.endswith(".py") and "/" not in name and isinstance(path, Path)
        if service_classes(path)
    ]
    if len(found) > 1:
        raise ExportError(
            f"{folder}: several files define services ({', '.join(found)}); choose one with "
            "--service-file-path"
        )
    if found:
        _check_service(folder / found[0], symbol)
    return found[0] if found else ""


def refuse_scripts(folder: Path, contents: Mapping[str, Path | bytes]) -> None:
    """Refuse a model without a service whose only script was most likely meant as one.

    Raises:
        ExportError: It defines no service class.
    """
    scripts = [name for name in contents if name.endswith(".py") and "/" not in name]
    if len(scripts) == 1:
        _check_service(folder / scripts[0], "")


def default_service(symbol: str, signature: Signature) -> tuple[str, str, str]:
    """Return module and class of a model's default service, and what it is for."""
    module, name = _DEFAULT_SERVICES[format_of(symbol), signature.takes_images]
    return module, name, f"The default service for {signature.input_type} inputs."


def service_source(module: str, name: str, what: str) -> bytes:
    """Return the text of a default service, to be changed by whoever unpacks the archive."""
    source = f'''\
        """{what}"""

        from mms.model_service.{module} import {name}


        class DefaultService({name}):
            """Override _preprocess, _inference or _postprocess to change what it does."""
        '''
    return textwrap.dedent(source).encode()


def _add_default_service(
    contents: dict[str, Path | bytes],
    folder: Path,
    symbol: str,
    parameters: str,
    signature: Signature,
) -> str:
    if not symbol:
        refuse_scripts(folder, contents)
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
    contents[DEFAULT_SERVICE_NAME] = service_source(*default_service(symbol, signature))
    return DEFAULT_SERVICE_NAME


def _locate(service_file: Path, folder: Path) -> Path:
    """Find a service file by its path, by its name in the folder, or by its own folder."""
    service_file = expand(service_file)
    for path in (service_file, folder / service_file):
        if path.is_file():
            return path
    if service_file.is_dir():
        # The command in v0.4's announcement names the folder.
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
    if symbol.endswith(ONNX_SUFFIX) and model_format not in (None, ModelFormat.ONNX):
        raise ExportError(
            f"{path}: {name} serves an MXNet model, but the folder holds an ONNX model ({symbol}); "
            "derive the service from OnnxBaseService (mms.model_service.onnx_service)"
        )
    if model_format is ModelFormat.ONNX and not symbol.endswith(ONNX_SUFFIX):
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
