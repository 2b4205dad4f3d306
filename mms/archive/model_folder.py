"""Inspect a folder with a trained model: the files to pack, and the role of each."""

from __future__ import annotations

import fnmatch
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import orjson

from mms.archive.manifest import MANIFEST_NAME, ModelFormat, Sample
from mms.archive.signature import Signature, parse_signature
from mms.errors import ExportError, SignatureError

SIGNATURE_NAME = "signature.json"
ONNX_SUFFIX = ".onnx"
_SAMPLE_STEM = "sample"
_SAMPLE_TYPES = {
    ".json": "application/json",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
}
#: Never packed: caches, archives, files of version control and editors.
_IGNORED = ("__pycache__", "*.pyc", "*.model", "*.mar", ".*", "*~", MANIFEST_NAME)
_PARAMS = re.compile(r"(?P<prefix>.+)-(?P<epoch>\d+)\.params")


def expand(path: Path) -> Path:
    """Expand ``~``; unlike Path.expanduser, leave an unknown user's home unexpanded."""
    return Path(os.path.expanduser(path))


def collect(folder: Path) -> Iterator[tuple[str, Path]]:
    """Return (member name, path) of each file worth packing, in a fixed order."""
    seen = {os.path.realpath(folder)}
    for root, folders, names in os.walk(folder, followlinks=True):
        kept = []
        for name in sorted(name for name in folders if not _is_ignored(name)):
            # A linked folder is packed like any other, unless the link forms a cycle.
            real = os.path.realpath(os.path.join(root, name))
            if real not in seen:
                seen.add(real)
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            path = Path(root, name)
            if not _is_ignored(name) and path.is_file():
                yield path.relative_to(folder).as_posix(), path


def _is_ignored(name: str) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in _IGNORED)


def check_names(folder: Path, names: Iterable[str]) -> None:
    """Refuse names that could be packed but not unpacked."""
    seen: dict[str, str] = {}
    for name in names:
        if not _is_text(name) or "\\" in name or name.split("/")[0].endswith(":"):
            raise ExportError(
                f"{folder}: the file name {name!r} is not allowed in an archive; rename the file"
            )
        other = seen.setdefault(name.lower(), name)
        if other != name:
            raise ExportError(
                f"{folder}: {other!r} and {name!r} are the same file on systems that ignore case; "
                "rename one"
            )


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def find_model_files(folder: Path, names: list[str]) -> tuple[str, str]:
    """Return the names of the symbol and the parameter file; "" for a missing one.

    For an ONNX model, whose single file holds both, the former is that file's name.
    """
    top = [name for name in names if "/" not in name]
    symbol = _only(folder, top, "-symbol.json", "symbol")
    parameters = _only(folder, top, ".params", "parameter")
    onnx = _only(folder, top, ONNX_SUFFIX, "ONNX")
    if onnx and (symbol or parameters):
        raise ExportError(
            f"{folder}: the folder holds both an ONNX model ({onnx}) and an MXNet model "
            f"({symbol or parameters}); keep one model per folder"
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
                f"{folder}: {symbol} and {parameters} have different prefixes; name them "
                f"{match['prefix']}-symbol.json and {parameters}"
            )
    return symbol, parameters


def _only(folder: Path, names: list[str], suffix: str, what: str) -> str:
    found = [name for name in names if name.endswith(suffix)]
    if len(found) > 1:
        raise ExportError(
            f"{folder}: several {what} files ({', '.join(found)}); keep the one to export"
        )
    return found[0] if found else ""


def format_of(symbol: str) -> ModelFormat:
    """Return the format of a model by the name of its symbol or ONNX file, "" if it has none."""
    if symbol.endswith(ONNX_SUFFIX):
        return ModelFormat.ONNX
    return ModelFormat.SYMBOLIC if symbol else ModelFormat.GLUON


def read_signature(folder: Path) -> Signature:
    """Return the signature in a folder.

    Raises:
        SignatureError: It is missing or not valid.
    """
    path = folder / SIGNATURE_NAME
    if not path.is_file():
        raise SignatureError(
            f"{folder}: no {SIGNATURE_NAME}; write one, such as "
            '{"inputs": [{"data_name": "data", "data_shape": [0, 3, 224, 224]}], '
            '"input_type": "image/jpeg", '
            '"outputs": [{"data_name": "softmax", "data_shape": [0, 10]}], '
            '"output_type": "application/json"}'
        )
    return read_signature_file(path)


def read_signature_file(path: Path) -> Signature:
    """Return the signature in a file.

    Raises:
        SignatureError: It is not valid.
    """
    try:
        # The same parser as the server's, which refuses NaN, for one.
        document = orjson.loads(path.read_bytes().removeprefix(b"\xef\xbb\xbf"))
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError as error:
        raise SignatureError(f"{path}: not valid JSON: {error}") from None
    return parse_signature(document, str(path))


def find_sample(names: list[str]) -> Sample | None:
    """Return the sample request among a folder's files, if there is one."""
    for suffix, content_type in _SAMPLE_TYPES.items():
        if f"{_SAMPLE_STEM}{suffix}" in names:
            return Sample(f"{_SAMPLE_STEM}{suffix}", content_type)
    return None


def engine_version(symbol: Path) -> str:
    """Return the MXNet version that wrote a symbol; 1.9.1 if it states none."""
    try:
        document = json.loads(symbol.read_text(encoding="utf-8"))
        code = document["attrs"]["mxnet_version"][1]
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError):
        return "1.9.1"
    return f"{code // 10000}.{code // 100 % 100}.{code % 100}" if isinstance(code, int) else "1.9.1"
