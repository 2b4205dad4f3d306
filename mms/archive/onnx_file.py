"""Read the inputs and outputs of a ``.onnx`` file's graph, without onnxruntime.

Only what the file itself states is read, and its weights are skipped. onnxruntime checks the model
when a worker opens it.
"""

from __future__ import annotations

import mmap
import os
from pathlib import Path

from mms.archive.onnx_graph import Graph, GraphValue
from mms.archive.protobuf import Buffer, all_fields, fields, varint
from mms.errors import ArchiveError

#: Numbers of fields, by message: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL_IR_VERSION, _MODEL_GRAPH = 1, 7
_GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 5, 11, 12, 15
_TENSOR_NAME = 8
_VALUE_NAME, _VALUE_TYPE = 1, 2
_TYPE_TENSOR, _TYPE_SEQUENCE, _TYPE_MAP = 1, 4, 5
_TENSOR_ELEMENT, _TENSOR_SHAPE = 1, 2
_MAP_KEY, _MAP_VALUE = 1, 2
_SHAPE_DIM, _DIM_VALUE, _DIM_PARAM = 1, 1, 2
#: Names of element types in onnxruntime's notation, by TensorProto.DataType.
_ELEMENTS = (
    *("undefined", "float", "uint8", "int8", "uint16", "int16", "int32", "int64", "string"),
    *("bool", "float16", "double", "uint32", "uint64", "complex64", "complex128", "bfloat16"),
)
_MAX_LEVELS = 4
_MAX_VALUES = 10_000
_MAX_AXES = 64


def is_onnx(head: bytes) -> bool:
    """Whether a file with these first bytes may be an ONNX model.

    It begins with the version of its format, as each exporter writes it.
    """
    return len(head) > 2 and head[0] == _MODEL_IR_VERSION << 3 and 0 < head[1] < 32


def read_graph(path: Path) -> Graph:
    """Return the inputs and outputs that a model's graph states.

    Raises:
        ArchiveError: It is not an ONNX model, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise ValueError("it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _graph(data)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ArchiveError(
            f"{path}: not an ONNX model, or cut short ({error}); export it again"
        ) from None


def _graph(data: Buffer) -> Graph:
    graphs = [(start, end) for n, start, end in fields(data, 0, len(data)) if n == _MODEL_GRAPH]
    if not graphs:
        raise ValueError("it has no graph")
    start, end = graphs[-1]
    inputs: list[GraphValue] = []
    outputs: list[GraphValue] = []
    constants: set[str] = set()
    for number, begin, finish in fields(data, start, end):
        if number == _GRAPH_INPUT:
            inputs.append(_value(data, begin, finish))
        elif number == _GRAPH_OUTPUT:
            outputs.append(_value(data, begin, finish))
        elif number in (_GRAPH_INITIALIZER, _GRAPH_SPARSE):
            constants.add(_name(data, begin, finish, _TENSOR_NAME))
        if len(inputs) + len(outputs) > _MAX_VALUES:
            raise ValueError("too many inputs and outputs")
    return Graph(
        tuple(value for value in inputs if value.name not in constants), tuple(outputs), ""
    )


def _value(data: Buffer, start: int, end: int) -> GraphValue:
    name, type_, dims = "", "", ()  # type: str, str, tuple[int | str | None, ...]
    for number, begin, finish in fields(data, start, end):
        if number == _VALUE_NAME:
            name = _text(data, begin, finish)
        elif number == _VALUE_TYPE:
            type_, dims = _type(data, begin, finish, 0)
    return GraphValue(name, type_, dims)


def _type(
    data: Buffer, start: int, end: int, level: int
) -> tuple[str, tuple[int | str | None, ...]]:
    """Return a type in onnxruntime's notation, and the sizes of a tensor's axes."""
    if level > _MAX_LEVELS:
        raise ValueError("a type is nested too deeply")
    for number, begin, finish in fields(data, start, end):
        if number == _TYPE_TENSOR:
            return _tensor(data, begin, finish)
        if number in (_TYPE_SEQUENCE, _TYPE_MAP):
            key, inner = "", ""
            for part, first, last, is_bytes in all_fields(data, begin, finish):
                if is_bytes:
                    inner, _ = _type(data, first, last, level + 1)
                elif number == _TYPE_MAP and part == _MAP_KEY:
                    key = _element(data, first, last)
            return (f"seq({inner})" if number == _TYPE_SEQUENCE else f"map({key},{inner})"), ()
    return "unknown", ()


def _tensor(data: Buffer, start: int, end: int) -> tuple[str, tuple[int | str | None, ...]]:
    element, dims = "undefined", []  # type: str, list[int | str | None]
    for number, begin, finish, is_bytes in all_fields(data, start, end):
        if number == _TENSOR_ELEMENT and not is_bytes:
            element = _element(data, begin, finish)
        elif number == _TENSOR_SHAPE and is_bytes:
            for part, first, last in fields(data, begin, finish):
                if part == _SHAPE_DIM:
                    dims.append(_dim(data, first, last))
                if len(dims) > _MAX_AXES:
                    raise ValueError("too many axes")
    return f"tensor({element})", tuple(dims)


def _dim(data: Buffer, start: int, end: int) -> int | str | None:
    for number, begin, finish, is_bytes in all_fields(data, start, end):
        if number == _DIM_VALUE and not is_bytes:
            value, _ = varint(data, begin, finish)
            return value if value < 1 << 31 else None
        if number == _DIM_PARAM and is_bytes:
            return _text(data, begin, finish)
    return None


def _element(data: Buffer, start: int, end: int) -> str:
    code, _ = varint(data, start, end)
    return _ELEMENTS[code] if code < len(_ELEMENTS) else f"type {code}"


def _name(data: Buffer, start: int, end: int, number: int) -> str:
    names = (_text(data, a, b) for n, a, b in fields(data, start, end) if n == number)
    return next(names, "")


def _text(data: Buffer, start: int, end: int) -> str:
    return data[start : min(end, start + 4096)].decode("utf-8", "replace")
