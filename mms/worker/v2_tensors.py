"""Tensors of the Open Inference Protocol V2: their elements in JSON and in binary.

Pure except for numpy; `mms.worker.v2` locates the tensors in a request.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from mms.archive.data_types import TABLE
from mms.archive.signature import MAX_DIMENSIONS, TensorSpec
from mms.errors import InvalidRequest
from mms.quoting import quoted
from mms.wire.frames import Buffer
from mms.wire.messages import V2_HEADER_LENGTH, RequestLimits
from mms.worker.json_text import too_many_elements

Array = npt.NDArray[Any]

#: Little-endian on the wire, whatever the machine.
_DTYPES = {
    type_.name: np.dtype(type_.numpy).newbyteorder("<") for type_ in TABLE if type_.numpy != "O"
}
_DATA_TYPES = {dtype.str.lstrip("<|"): name for name, dtype in _DTYPES.items()}
#: JSON types accepted for each kind of element.
_ACCEPTED: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
_LENGTH_BYTES = 4


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output.

    Attributes:
        name: The model's name for it.
        datatype: One of `DATA_TYPES`.
        shape: Size of each axis.
        data: An array of that shape; for BYTES, the elements in row-major order.
        content_type: Content type of its bytes according to its parameters, or "".
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: Array | list[bytes]
    content_type: str = ""


def tensor_of(name: str, array: Array) -> Tensor | None:
    """Convert an array to a tensor; return None if the protocol lacks its element type."""
    datatype = _DATA_TYPES.get(array.dtype.str.lstrip("<>|="))
    if datatype is not None:
        return Tensor(name, datatype, array.shape, array)
    elements = array.ravel().tolist()
    if array.dtype.kind in "OSU" and all(isinstance(e, (str, bytes)) for e in elements):
        data = [e.encode() if isinstance(e, str) else e for e in elements]
        return Tensor(name, "BYTES", array.shape, data)
    return None


def raw_tensor(body: memoryview, spec: TensorSpec, limits: RequestLimits) -> Tensor:
    """Return the tensor of a body that consists only of its elements.

    Raises:
        InvalidRequest: The elements do not match the shape, or the shape is ambiguous.
        PayloadTooLarge: There are more than the limits allow.
    """
    if spec.data_type == "BYTES":
        # The body is the element itself, without a length before it.
        return Tensor(spec.name, "BYTES", (1,), [bytes(body)])
    where = f"input {shown(spec.name)}"
    shape = _raw_shape(spec, len(body), where)
    data = from_binary(body, spec.data_type, shape, where, limits)
    return Tensor(spec.name, spec.data_type, shape, data)


def from_binary(
    data: memoryview, datatype: str, shape: tuple[int, ...], where: str, limits: RequestLimits
) -> Array | list[bytes]:
    """Decode the elements of an input from their bytes.

    Args:
        data: The bytes; they are copied.
        datatype: One of `DATA_TYPES`.
        shape: Size of each axis.
        where: Name of the input in messages.
        limits: Limit on the number of BYTES elements.

    Raises:
        InvalidRequest: The bytes do not match type and shape.
        PayloadTooLarge: There are more elements than the limits allow.
    """
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
    # A copy: aligned, and writable by the model.
    array = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    return _reshaped(array, shape, where)


def _split_bytes(
    data: memoryview, shape: tuple[int, ...], where: str, limits: RequestLimits
) -> list[bytes]:
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        # Each becomes an object, like those from JSON.
        if len(elements) == limits.max_json_elements:
            raise too_many_elements(where, limits.max_json_elements)
        start = at + _LENGTH_BYTES
        end = start + int.from_bytes(data[at:start], "little")
        if start > len(data) or end > len(data):
            raise InvalidRequest(
                f"{where}: element {len(elements)} of BYTES, whose length is in the 4 bytes before "
                f"it, extends beyond the {len(data)} bytes of the tensor"
            )
        elements.append(bytes(data[start:end]))
        at = end
    if len(elements) != math.prod(shape):
        raise InvalidRequest(
            f"{where} has {len(elements)} elements, but its shape {list(shape)} has "
            f"{math.prod(shape)}"
        )
    return elements


def from_json(value: Any, datatype: str, shape: tuple[int, ...], where: str) -> Array | list[bytes]:
    """Decode the elements of an input from a JSON list, flat or nested to its shape.

    Args:
        value: The list.
        datatype: One of `DATA_TYPES`.
        shape: Size of each axis.
        where: Name of the input in messages.

    Raises:
        InvalidRequest: The elements do not match type and shape.
    """
    if not isinstance(value, list):
        raise InvalidRequest(f"{where}: data must be a list, got {kind_of(value)}")
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
    """Return the elements of a tensor, flat or nested to its shape, as a flat list."""
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
    """Describe the nesting of data for a message, judging by the first element of each level."""
    if len(set(map(type, value))) > 1 or len(set(map(len, value))) > 1:
        return "not nested evenly"
    sizes: list[int] = []
    while isinstance(value, list) and len(sizes) <= MAX_DIMENSIONS:
        sizes.append(len(value))
        value = value[0] if value else None
    return f"nested to the shape {sizes}"


def _numbers(elements: list[Any], datatype: str, where: str) -> Array:
    """Return the elements as an array of the type.

    Their types are checked before NumPy sees them: it would convert all to strings beside a single
    one, each as long as the longest.
    """
    dtype = _DTYPES[datatype].newbyteorder("=")
    types = set(map(type, elements))
    if not types <= _ACCEPTED[dtype.kind]:
        wrong = next(e for e in elements if type(e) not in _ACCEPTED[dtype.kind])
        raise InvalidRequest(f"{where}: data must contain {datatype}, got {shown(wrong)}")
    if dtype.kind in "iu":
        return _whole_numbers(elements, dtype, datatype, where)
    try:
        # Integers are rounded once, not twice.
        array = np.array(elements, np.int64 if types == {int} else np.float64)
    except OverflowError:
        array = _as_floats(elements)
    with np.errstate(over="ignore"):
        cast = array.astype(dtype)
    if dtype.kind == "f" and np.isinf(cast).any():
        # JSON has no infinity: these are numbers too large for the type.
        raise InvalidRequest(f"{where}: data contains a number that does not fit {datatype}")
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
            raise InvalidRequest(f"{where}: {shown(value)} does not fit {datatype}")
    return array.astype(dtype) if array.size else np.array(elements, dtype)


def _as_floats(elements: list[Any]) -> Array:
    """Convert numbers to floats, with infinity for those beyond the largest."""
    try:
        return np.array(elements, np.float64)
    except OverflowError:
        return np.array([math.inf])


def _texts(elements: list[Any], where: str) -> list[bytes]:
    """Return the elements of BYTES."""
    if not set(map(type, elements)) <= {str}:
        wrong = next(e for e in elements if type(e) is not str)
        raise InvalidRequest(f"{where}: data must contain strings (BYTES), got {shown(wrong)}")
    try:
        return [element.encode() for element in elements]
    except UnicodeEncodeError:
        raise InvalidRequest(f"{where}: data contains a lone surrogate") from None


def _reshaped(array: Array, shape: tuple[int, ...], where: str) -> Array:
    try:
        return array.reshape(shape)
    except ValueError:
        # No elements, but sizes whose product exceeds the limit of arrays.
        raise InvalidRequest(f"{where}: no array has the shape {list(shape)}") from None


def _raw_shape(spec: TensorSpec, length: int, where: str) -> tuple[int, ...]:
    """Return the shape of `length` bytes, which determine the size of a single free axis."""
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


def to_binary(tensor: Tensor) -> bytes:
    """Encode a tensor's elements as bytes."""
    if isinstance(tensor.data, list):
        parts: list[Buffer] = []
        for element in tensor.data:
            parts += (len(element).to_bytes(_LENGTH_BYTES, "little"), element)
        return b"".join(parts)
    return tensor.data.astype(_DTYPES[tensor.datatype], copy=False).tobytes()


def to_json(tensor: Tensor) -> Any:
    """Return a tensor's elements flat, in a form that the JSON encoder accepts.

    Raises:
        InvalidRequest: The type has no JSON form.
    """
    if tensor.datatype == "FP16":
        raise InvalidRequest(
            f"output {shown(tensor.name)} is FP16, which has no JSON form; ask for it in binary "
            '(outputs: [{"name": ..., "parameters": {"binary_data": true}}])'
        )
    if isinstance(tensor.data, list):
        return tensor.data
    # The encoder accepts only contiguous arrays in native byte order.
    dtype = _DTYPES[tensor.datatype].newbyteorder("=")
    return np.ascontiguousarray(tensor.data, dtype).ravel()


def kind_of(value: Any) -> str:
    """Return the type of a JSON value in words, for a message."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false"}
    if value is None:
        return "nothing"
    return names.get(type(value), "a number")


def shown(value: Any) -> str:
    """Return a client's value, quoted for messages."""
    return quoted(value, 60)
