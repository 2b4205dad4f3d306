"""Find the files that hold the weights of a ``.onnx`` file, without importing onnx.

Only the relevant fields of the file are parsed.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mms.archive.protobuf import Buffer, fields
from mms.errors import ExportError

#: Numbers of the fields that lead to tensors, by message, with the message that each field holds:
#: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_FIELDS = {
    "Model": {7: "Graph", 25: "Function"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Function": {7: "Node"},
    "Node": {5: "Attribute"},
    "Attribute": {
        **{5: "Tensor", 10: "Tensor", 6: "Graph", 11: "Graph"},
        **{22: "SparseTensor", 23: "SparseTensor"},
    },
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},
    "Entry": {},
}
_KEY, _VALUE = 1, 2


def external_members(folder: Path, model: str) -> dict[str, Path]:
    """Return the files that hold a model's weights, by their names in an archive.

    Args:
        folder: The model's folder.
        model: Name of its ``.onnx`` file.

    Raises:
        ExportError: A file is missing, or lies outside the model's folder.
    """
    members = {}
    for location in external_files(folder / model):
        path = PurePosixPath(location)
        name = path.as_posix()
        if path.is_absolute() or ".." in path.parts or name == "." or "\\" in name:
            raise ExportError(
                f"{folder / model}: its weights lie in {location!r}, outside its folder; save "
                "it again with a plain file name: onnx.save_model(model, PATH, "
                f"save_as_external_data=True, location='{model}.data')"
            )
        if not (folder / name).is_file():
            raise ExportError(
                f"{folder / model}: its weights lie in {name!r}, which is missing; put that file, "
                "which was written together with the model, beside it"
            )
        members[name] = folder / name
    return members


def external_files(path: Path) -> list[str]:
    """Return the names of the files that hold a model's weights, relative to its folder.

    A file that is not valid ONNX yields no names; onnxruntime reports what is wrong with it.

    Raises:
        ExportError: The file cannot be read.
    """
    try:
        return find_locations(path)
    except ValueError:
        return []


def find_locations(path: Path) -> list[str]:
    """Return the same names as `external_files`, for untrusted models.

    Raises:
        ExportError: The file cannot be read.
        ValueError: It cannot be parsed to its end, so it may name more files.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                return []
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return sorted(set(_locations(data)))
    except OSError as error:
        raise ExportError(f"{path}: cannot be read: {error.strerror}") from None


def _locations(data: Buffer) -> Iterator[str]:
    """Return the ``location`` of each external tensor.

    Raises:
        ValueError: The bytes are not a protobuf message.
    """
    pending = [("Model", 0, len(data))]
    while pending:
        message, start, end = pending.pop()
        if message == "Entry":
            entry = {
                number: os.fsdecode(data[begin:finish])
                for number, begin, finish in fields(data, start, end)
            }
            if entry.get(_KEY) == "location":
                yield entry.get(_VALUE, "")
            continue
        inner = _FIELDS[message]
        pending += [
            (inner[number], begin, finish)
            for number, begin, finish in fields(data, start, end)
            if number in inner
        ]
