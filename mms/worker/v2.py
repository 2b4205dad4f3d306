"""The Open Inference Protocol V2 on the wire: requests to tensors, tensors to answers.

A body is a JSON object, or one followed by the elements of its tensors in binary (the protocol's
binary tensor extension), or the elements of the sole input alone. Pure but for numpy; what a model
makes of the tensors is `mms.worker.v2_model`'s business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from mms.archive.signature import DATA_TYPES, MAX_DIMENSIONS, MAX_SIZE, MAX_TENSORS, TensorSpec
from mms.errors import InvalidRequest
from mms.quoting import quoted, quoted_names
from mms.wire.frames import Buffer
from mms.wire.messages import V2_HEADER_LENGTH, Answer, RequestLimits, RequestMeta
from mms.worker.json_text import read_json, too_many_elements
from mms.worker.request import DEFAULT_LIMITS
from mms.worker.response import encode_json

Array = npt.NDArray[Any]

#: Little-endian on the wire, whatever the machine.
_DTYPES = {
    "BOOL": np.dtype("?"), "UINT8": np.dtype("u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"), "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"), "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
}  # fmt: skip
_DATA_TYPES = {dtype.str.lstrip("<|"): name for name, dtype in _DTYPES.items()}
#: What JSON may give for each kind of element.
_ACCEPTED: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
#: Of one request, input or output.
_MAX_PARAMETERS = 1000
_LENGTH_BYTES = 4
#: Extensions of other servers that change what an answer means, and so must not pass unnoticed.
_NOT_OFFERED = {
    "classification": "the classification extension",
    "shared_memory_region": "the shared memory extension",
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    Attributes:
        name: What the model calls it.
        datatype: One of `DATA_TYPES`.
        shape: Sizes by axis.
        data: An array of that shape; of BYTES, the elements in row-major order.
        content_type: What its parameters say its bytes are, or "".
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | list[bytes]
    content_type: str = ""


@dataclass(frozen=True, slots=True)
class InferRequest:
    """What was asked.

    Attributes:
        id: Goes into the answer; None if there is none.
        inputs: At least one, with distinct names.
        outputs: Whether each output asked for is to come in binary, by name; None asks for all.
        is_binary: Whether outputs come in binary unless they say otherwise.
    """

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: Mapping[str, bool] | None
    is_binary: bool


def header_length(meta: RequestMeta) -> str | None:
    """Return the header that says where the JSON ends and the binary tensors begin."""
    for name, value in meta.headers.items():
        if name.lower() == V2_HEADER_LENGTH.lower():
            return value
    return None


def decode_request(
    body: memoryview,
    json_length: str | None,
    raw_input: TensorSpec | None,
    limits: RequestLimits = DEFAULT_LIMITS,
) -> InferRequest:
    """Read a request.

    Args:
        body: All of it.
        json_length: The header `V2_HEADER_LENGTH` as sent; None if it was not.
        raw_input: What a body of elements alone is; None if the model takes none.
        limits: How many elements the JSON, or a tensor of BYTES, may have.

    Raises:
        InvalidRequest: Naming the tensor, what was expected and what came.
        PayloadTooLarge: There are more elements than the limits allow.
    """
    if json_length is None:
        return _decode_document(body, None, limits)
    length = _json_length(json_length, len(body))
    if length == 0:
        return _decode_raw(body, raw_input, limits)
    return _decode_document(body[:length], _Elements(body[length:]), limits)


def tensor_of(name: str, array: Array) -> Tensor | None:
    """Return an array as a tensor; None if the protocol has no type for its elements."""
    datatype = _DATA_TYPES.get(array.dtype.str.lstrip("<>|="))
    if datatype is not None:
        return Tensor(name, datatype, array.shape, array)
    elements = array.ravel().tolist()
    if array.dtype.kind in "OSU" and all(isinstance(e, (str, bytes)) for e in elements):
        data = [e.encode() if isinstance(e, str) else e for e in elements]
        return Tensor(name, "BYTES", array.shape, data)
    return None


def encode_response(
    model: str, version: str, request: InferRequest, outputs: Sequence[Tensor]
) -> Answer:
    """Return the answer to a request.

    Args:
        model: Name of the model.
        version: Its version.
        request: What was asked: which outputs, and in which form.
        outputs: All that the model gave.

    Raises:
        InvalidRequest: An output was asked for that there is not, or in a form that it has not.
    """
    entries: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for tensor, is_binary in _chosen(request, outputs):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if is_binary:
            chunks.append(_to_binary(tensor))
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"] = _to_json(tensor)
        entries.append(entry)
    document: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id is not None:
        document["id"] = request.id
    text = encode_json({**document, "outputs": entries})
    if not chunks:
        return Answer(text)
    headers = {V2_HEADER_LENGTH: str(len(text))}
    return Answer(b"".join((text, *chunks)), "application/octet-stream", headers=headers)


class _Elements:
    """The binary part of a body, taken tensor by tensor."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Bytes that no tensor has taken."""
        return len(self._data) - self._at

    def take(self, where: str, size: int) -> memoryview:
        """Return the next bytes.

        Raises:
            InvalidRequest: There are not so many.
        """
        if size > self.left:
            raise InvalidRequest(
                f"{where}: binary_data_size is {size}, but only {self.left} bytes of the body are "
                "left for it"
            )
        self._at += size
        return self._data[self._at - size : self._at]


def _json_length(text: str, body_length: int) -> int:
    # isdecimal alone also takes other scripts' digits; the length bounds the number.
    if not (text.isascii() and text.isdecimal() and len(text) <= 12):
        raise InvalidRequest(
            f"{V2_HEADER_LENGTH} must be the number of bytes of the JSON, got {text[:20]!r}"
        )
    if int(text) > body_length:
        raise InvalidRequest(
            f"{V2_HEADER_LENGTH} is {text}, but the whole body has {body_length} bytes"
        )
    return int(text)


def _decode_document(
    text: memoryview, elements: _Elements | None, limits: RequestLimits
) -> InferRequest:
    document = read_json(text, "the request", limits.max_json_elements, is_strict=True)
    if not isinstance(document, dict):
        raise InvalidRequest(f"the request must be a JSON object, got {_kind(document)}")
    id_ = document.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise InvalidRequest(f"id must be a text, got {_kind(id_)}")
    entries = document.get("inputs")
    if not isinstance(entries, list) or not entries:
        raise InvalidRequest(
            'the request needs "inputs", a list with at least one '
            '{"name", "shape", "datatype", "data"}'
        )
    _names(entries, "input")
    inputs = tuple(_input(entry, elements, limits) for entry in entries)
    if elements is not None and elements.left:
        raise InvalidRequest(
            f"the body has {elements.left} bytes after its last tensor; every tensor in it needs "
            "its binary_data_size"
        )
    parameters = _parameters(document, "the request")
    is_binary = _flag(parameters, "binary_data_output", "the request", False)
    return InferRequest(id_, inputs, _outputs(document, is_binary), is_binary)


def _input(entry: dict[str, Any], elements: _Elements | None, limits: RequestLimits) -> Tensor:
    name = entry["name"]
    where = f"input {_shown(name)}"
    shape = _shape(entry.get("shape"), where)
    datatype = entry.get("datatype")
    if datatype not in DATA_TYPES:
        raise InvalidRequest(
            f"{where}: datatype must be one of {', '.join(DATA_TYPES)}, got {_shown(datatype)}"
        )
    parameters = _parameters(entry, where)
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in entry):
        both = "neither data nor" if size is None else "both data and"
        raise InvalidRequest(f"{where} has {both} binary_data_size; send one of them")
    data: Array | list[bytes]
    if size is None:
        data = _from_json(entry["data"], datatype, shape, where)
    else:
        data = _from_binary(_take(elements, size, where), datatype, shape, where, limits)
    content_type = parameters.get("content_type")
    return Tensor(
        name, datatype, shape, data, content_type if isinstance(content_type, str) else ""
    )


def _outputs(document: dict[str, Any], is_binary: bool) -> dict[str, bool] | None:
    entries = document.get("outputs")
    if entries is not None and not isinstance(entries, list):
        raise InvalidRequest(f'"outputs" must be a list, got {_kind(entries)}')
    if not entries:
        return None
    names = _names(entries, "output")
    outputs = {}
    for name, entry in zip(names, entries, strict=True):
        where = f"output {_shown(name)}"
        outputs[name] = _flag(_parameters(entry, where), "binary_data", where, is_binary)
    return outputs


def _names(entries: list[Any], kind: str) -> list[str]:
    """Return the distinct names of inputs or outputs, before anything else of them is read."""
    if len(entries) > MAX_TENSORS:
        raise InvalidRequest(f"the request has {len(entries)} {kind}s, at most {MAX_TENSORS}")
    names = [_name(entry, f"{kind}s[{index}]") for index, entry in enumerate(entries)]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"{kind} {_shown(name)} is there more than once")
        seen.add(name)
    return names


def _name(entry: Any, where: str) -> str:
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where} must be an object, got {_kind(entry)}")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where} needs a name, a text; got {_kind(name)}")
    return name


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) > MAX_DIMENSIONS:
        raise InvalidRequest(
            f"{where}: shape has {len(value)} dimensions, at most {MAX_DIMENSIONS} are possible"
        )
    if not isinstance(value, list) or not all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_SIZE
        for size in value
    ):
        raise InvalidRequest(
            f"{where}: shape must be a list of whole numbers from 0 to {MAX_SIZE}, "
            f"got {_shown(value)}"
        )
    return tuple(value)


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if isinstance(parameters, dict) and len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequest(
            f"{where} has {len(parameters)} parameters, at most {_MAX_PARAMETERS} are possible"
        )
    if not isinstance(parameters, dict) or not all(
        isinstance(value, (str, int, float, bool)) for value in parameters.values()
    ):
        raise InvalidRequest(
            f"{where}: parameters must be an object of texts, numbers, true and false, "
            f"got {_shown(parameters)}"
        )
    for key, extension in _NOT_OFFERED.items():
        if key in parameters:
            raise InvalidRequest(f"{where}: this server does not offer {extension} ({key})")
    return parameters


def _flag(parameters: dict[str, Any], key: str, where: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where}: {key} must be true or false, got {_shown(value)}")
    return value


def _take(elements: _Elements | None, size: Any, where: str) -> memoryview:
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidRequest(
            f"{where}: binary_data_size must be a whole number of bytes >= 0, got {_shown(size)}"
        )
    if elements is None:
        raise InvalidRequest(
            f"{where} has a binary_data_size, but the header {V2_HEADER_LENGTH}, which says where "
            "the JSON ends, is missing"
        )
    return elements.take(where, size)


def _from_binary(
    data: memoryview, datatype: str, shape: tuple[int, ...], where: str, limits: RequestLimits
) -> Array | list[bytes]:
    if datatype == "BYTES":
        return _split_bytes(data, shape, where, limits)
    count = math.prod(shape)
    dtype = _DTYPES[datatype]
    if len(data) != count * dtype.itemsize:
        raise InvalidRequest(
            f"{where} has {len(data)} bytes, but {datatype} of shape {list(shape)} takes "
            f"{count * dtype.itemsize}"
        )
    if datatype == "BOOL" and (np.frombuffer(data, np.uint8) > 1).any():
        raise InvalidRequest(f"{where}: the bytes of BOOL must be 0 or 1")
    # A copy: aligned, and the model's own to write to.
    array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return _reshaped(array, shape, where)


def _split_bytes(
    data: memoryview, shape: tuple[int, ...], where: str, limits: RequestLimits
) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        # Each becomes an object, as those of JSON do.
        if len(elements) == limits.max_json_elements:
            raise too_many_elements(where, limits.max_json_elements)
        start = at + _LENGTH_BYTES
        end = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or end > len(data):
            raise InvalidRequest(
                f"{where}: element {len(elements)} of BYTES, whose length stands before it in 4 "
                f"bytes, goes beyond the {len(data)} bytes of the tensor"
            )
        elements.append(bytes(data[start:end]))
        at = end
    if len(elements) != math.prod(shape):
        raise InvalidRequest(
            f"{where} has {len(elements)} elements, but its shape {list(shape)} has "
            f"{math.prod(shape)}"
        )
    return elements


def _from_json(
    value: Any, datatype: str, shape: tuple[int, ...], where: str
) -> Array | list[bytes]:
    if not isinstance(value, list):
        raise InvalidRequest(f"{where}: data must be a list, got {_kind(value)}")
    if datatype == "FP16":
        raise InvalidRequest(
            f"{where}: FP16 has no JSON form; send its bytes after the JSON (binary_data_size and "
            f"the header {V2_HEADER_LENGTH})"
        )
    elements = _flattened(value, shape, where)
    if datatype == "BYTES":
        return _texts(elements, where)
    return _reshaped(_numbers(elements, datatype, where), shape, where)


def _flattened(value: list[Any], shape: tuple[int, ...], where: str) -> list[Any]:
    """Return the elements of a tensor, nested to its shape or flat."""
    elements = value
    for axis, size in enumerate(shape if list in set(map(type, value)) else ()):
        is_even = not axis or set(map(len, elements)) <= {size}
        if axis and is_even:
            elements = list(chain.from_iterable(elements))
        types = set(map(type, elements))
        is_last = axis == len(shape) - 1
        if (
            not is_even
            or len(elements) != math.prod(shape[: axis + 1])
            or (list in types if is_last else not types <= {list})
        ):
            raise InvalidRequest(
                f"{where}: data, {_nesting(value)}, is not nested to its shape {list(shape)} "
                f"(axis {axis} of {size})"
            )
    if len(elements) != math.prod(shape):
        raise InvalidRequest(
            f"{where}: data has {len(elements)} elements, but shape {list(shape)} has "
            f"{math.prod(shape)}"
        )
    return elements


def _nesting(value: Any) -> str:
    """Say how data is nested, for a message; only its first elements are looked at below."""
    if len(set(map(type, value))) > 1 or len(set(map(len, value))) > 1:
        return "not nested evenly"
    sizes: list[int] = []
    while isinstance(value, list) and len(sizes) <= MAX_DIMENSIONS:
        sizes.append(len(value))
        value = value[0] if value else None
    return f"nested to the shape {sizes}"


def _numbers(elements: list[Any], datatype: str, where: str) -> Array:
    """Return the elements as an array of the type.

    NumPy sees them only once their types are known: beside a text, it makes texts of them all, each
    as long as the longest.
    """
    dtype = _DTYPES[datatype].newbyteorder("=")
    types = set(map(type, elements))
    if not types <= _ACCEPTED[dtype.kind]:
        wrong = next(e for e in elements if type(e) not in _ACCEPTED[dtype.kind])
        raise InvalidRequest(f"{where}: data must hold {datatype}, got {_shown(wrong)}")
    if dtype.kind in "iu":
        return _whole_numbers(elements, dtype, datatype, where)
    try:
        # Whole numbers are rounded once, not twice.
        array = np.array(elements, np.int64 if types == {int} else np.float64)
    except OverflowError:
        array = _as_floats(elements)
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f" and np.isinf(cast).any():
        # JSON has no infinity: these are numbers too large for the type.
        raise InvalidRequest(f"{where}: data holds a number that does not fit {datatype}")
    return cast


def _whole_numbers(elements: list[int], dtype: np.dtype[Any], datatype: str, where: str) -> Array:
    try:
        array: Array = np.array(elements, np.int64)
        least, most = (int(array.min()), int(array.max())) if elements else (0, 0)
    except OverflowError:
        array, least, most = np.empty(0), min(elements), max(elements)
    limits = np.iinfo(dtype.str)
    for value in (least, most):
        if not limits.min <= value <= limits.max:
            raise InvalidRequest(f"{where}: {_shown(value)} does not fit {datatype}")
    return array.astype(dtype) if array.size else np.array(elements, dtype)


def _as_floats(elements: list[Any]) -> Array:
    """Return numbers as floats, with infinity for those beyond the largest."""
    try:
        return np.array(elements, np.float64)
    except OverflowError:
        return np.array([math.inf])


def _texts(elements: list[Any], where: str) -> list[bytes]:
    """Return the elements of BYTES."""
    if not set(map(type, elements)) <= {str}:
        wrong = next(e for e in elements if type(e) is not str)
        raise InvalidRequest(f"{where}: data must hold texts (BYTES), got {_shown(wrong)}")
    try:
        return [element.encode() for element in elements]
    except UnicodeEncodeError:
        raise InvalidRequest(f"{where}: data holds half of a surrogate pair") from None


def _reshaped(array: Array, shape: tuple[int, ...], where: str) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:
        # No elements, but sizes whose product no array can have.
        raise InvalidRequest(f"{where}: no array has the shape {list(shape)}") from None


def _decode_raw(body: memoryview, spec: TensorSpec | None, limits: RequestLimits) -> InferRequest:
    """Read a body that is nothing but the elements of the sole input."""
    if spec is None:
        raise InvalidRequest(
            f"{V2_HEADER_LENGTH} is 0, which only models with one input understand; send the "
            "request's JSON before the tensors"
        )
    where = f"input {_shown(spec.name)}"
    if spec.data_type == "BYTES":
        # The body is the element itself, without a length before it.
        tensor = Tensor(spec.name, "BYTES", (1,), [bytes(body)])
    else:
        shape = _raw_shape(spec, len(body), where)
        data = _from_binary(body, spec.data_type, shape, where, limits)
        tensor = Tensor(spec.name, spec.data_type, shape, data)
    return InferRequest(None, (tensor,), None, True)


def _raw_shape(spec: TensorSpec, length: int, where: str) -> tuple[int, ...]:
    """Return the shape that so many bytes have: of one free axis the size follows."""
    free = [axis for axis, size in enumerate(spec.shape) if size == 0]
    shape = list(spec.shape)
    if len(free) > 1 and free[0] == 0:
        # A body without a shape is one request, not a batch.
        shape[0] = 1
        free = free[1:]
    if len(free) > 1:
        raise InvalidRequest(
            f"{where} has several free axes ({list(spec.shape)}, 0 is free), so a body without a "
            "shape is ambiguous; send the request's JSON before the tensor"
        )
    if free:
        shape[free[0]] = 1
        row = math.prod(shape) * _DTYPES[spec.data_type].itemsize
        shape[free[0]] = length // row
    return tuple(shape)


def _chosen(request: InferRequest, outputs: Sequence[Tensor]) -> list[tuple[Tensor, bool]]:
    if request.outputs is None:
        return [(tensor, request.is_binary) for tensor in outputs]
    by_name = {tensor.name: tensor for tensor in outputs}
    for name in request.outputs:
        if name not in by_name:
            raise unknown_output(name, list(by_name))
    return [(by_name[name], is_binary) for name, is_binary in request.outputs.items()]


def unknown_output(name: str, known: Sequence[str]) -> InvalidRequest:
    """Return the error for an output that the model does not have."""
    return InvalidRequest(
        f"the model has no output {_shown(name)}; its outputs: {quoted_names(known, 60)}"
    )


def _to_binary(tensor: Tensor) -> bytes:
    if isinstance(tensor.data, list):
        parts: list[Buffer] = []
        for element in tensor.data:
            parts += (len(element).to_bytes(_LENGTH_BYTES, "little"), element)
        return b"".join(parts)
    return tensor.data.astype(_DTYPES[tensor.datatype], copy=False).tobytes()


def _to_json(tensor: Tensor) -> Any:
    if tensor.datatype == "FP16":
        raise InvalidRequest(
            f"output {_shown(tensor.name)} is FP16, which has no JSON form; ask for it in binary "
            '(outputs: [{"name": ..., "parameters": {"binary_data": true}}])'
        )
    if isinstance(tensor.data, list):
        return tensor.data
    # The encoder takes arrays that are contiguous and in the machine's own byte order.
    dtype = _DTYPES[tensor.datatype].newbyteorder("=")
    return np.ascontiguousarray(tensor.data, dtype).ravel()


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return quoted(value, 60)
