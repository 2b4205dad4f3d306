"""What is checked of a ``.onnx`` file before an engine opens it, whichever engine that is."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from mms.archive.onnx_external import find_locations
from mms.archive.protobuf import Buffer, fields
from mms.errors import ExportError, ModelLoadFailed

#: Numbers of fields, by message: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL_GRAPH, _GRAPH_NODE, _NODE_OPERATOR = 7, 1, 4
#: How the names of ONNX's operators on 8-bit integers begin.
_QUANTIZED = (b"QuantizeLinear", b"DequantizeLinear", b"QLinear", b"DynamicQuantizeLinear")


def check_external_files(path: Path) -> bool:
    """Refuse a model whose weights lie outside its folder, links included.

    onnxruntime before 1.24, the last to support Python 3.10, reads any file that is named.

    Returns:
        Whether the model could be parsed to its end. If not, the engine reports the reason best.

    Raises:
        ModelLoadFailed: Weights lie outside, or the file cannot be read.
    """
    try:
        locations = find_locations(path)
    except ExportError as error:
        raise ModelLoadFailed(str(error)) from error
    except ValueError:
        return False
    folder = os.path.realpath(path.parent)
    for location in locations:
        # If the model itself is a link, its weights lie beside the link.
        real = os.path.realpath(os.path.join(folder, location))
        if os.path.isabs(location) or os.path.commonpath([folder, real]) != folder:
            raise ModelLoadFailed(
                f"{path.name}: its weights lie in {location!r}, which is outside its folder; "
                "put that file, not a link to it, beside the model, and save the model again with "
                "a plain file name"
            )
    return True


def is_quantized(path: Path) -> bool:
    """Return whether a graph computes in 8-bit integers; False if it cannot be parsed."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _has_quantized(data)
    except (OSError, ValueError):
        return False


def _has_quantized(data: Buffer) -> bool:
    return any(
        data[begin:finish].startswith(_QUANTIZED)
        for model, start, end in fields(data, 0, len(data))
        if model == _MODEL_GRAPH
        for graph, first, last in fields(data, start, end)
        if graph == _GRAPH_NODE
        for node, begin, finish in fields(data, first, last)
        if node == _NODE_OPERATOR
    )
