"""Requests and answers of the Open Inference Protocol V2: bodies to tensors, tensors to bodies.

A body is a JSON object, or one followed by the elements of its tensors in binary (the protocol's
binary tensor extension), or the elements of the sole input alone. Pure except for numpy;
`mms.worker.v2_model` maps tensors to a model's inputs and outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mms.archive.signature import DATA_TYPES, MAX_DIMENSIONS, MAX_SIZE, MAX_TENSORS, TensorSpec
from mms.errors import InvalidRequest
from mms.quoting import quoted_names
from mms.wire.messages import V2_HEADER_LENGTH, Answer, RequestLimits, RequestMeta
from mms.worker.json_text import read_json
from mms.worker.request import DEFAULT_LIMITS
from mms.worker.response import encode_json
from mms.worker.v2_tensors import (
    Array,
    Tensor,
    from_binary,
    from_json,
    kind_of,
    raw_tensor,
    shown,
    to_binary,
    to_json,
)

#: Per request, input or output.
_MAX_PARAMETERS = 1000
#: Extensions of other servers that change the meaning of an answer, and so must be refused.
_NOT_OFFERED = {
    "classification": "the classification extension",
    "shared_memory_region": "the shared memory extension",
}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A decoded inference request.

    Attributes:
        id: Returned in the answer; None if there is none.
        inputs: At least one, with distinct names.
        outputs: Whether each requested output is binary, by name; None requests all outputs.
        is_binary: Whether outputs are binary by default.
    """

    id: str | None
    inputs: tuple[Tensor, ...]
    outputs: Mapping[str, bool] | None
    is_binary: bool


def header_length(meta: RequestMeta) -> str | None:
    """Return the header with the length of the JSON part, after which binary tensors follow."""
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
    """Decode a request.

    Args:
        body: The entire body.
        json_length: The header `V2_HEADER_LENGTH` as sent; None if absent.
        raw_input: Spec of the input of a raw body; None if the model does not accept one.
        limits: Limit on the number of elements in the JSON, or in a BYTES tensor.

    Raises:
        InvalidRequest: The message names the tensor, the expected and the actual value.
        PayloadTooLarge: There are more elements than the limits allow.
    """
    if json_length is None:
        return _decode_document(body, None, limits)
    length = _json_length(json_length, len(body))
    if length == 0:
        return _decode_raw(body, raw_input, limits)
    return _decode_document(body[:length], _Elements(body[length:]), limits)


def encode_response(
    model: str, version: str, request: InferRequest, outputs: Sequence[Tensor]
) -> Answer:
    """Encode the answer to a request.

    Args:
        model: Name of the model.
        version: Its version.
        request: The request, which selects the outputs and their format.
        outputs: All outputs of the model.

    Raises:
        InvalidRequest: A requested output does not exist, or not in the requested format.
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
            chunks.append(to_binary(tensor))
            entry["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            entry["data"] = to_json(tensor)
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
    """The binary part of a body, consumed tensor by tensor."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        """Number of bytes that no tensor has consumed."""
        return len(self._data) - self._at

    def take(self, where: str, size: int) -> memoryview:
        """Return the next `size` bytes.

        Raises:
            InvalidRequest: Fewer bytes are left.
        """
        if size > self.left:
            raise InvalidRequest(
                f"{where}: binary_data_size is {size}, but only {self.left} bytes of the body are "
                "left for it"
            )
        self._at += size
        return self._data[self._at - size : self._at]


def _json_length(text: str, body_length: int) -> int:
    # isdecimal alone also accepts digits of other scripts; the length bounds the number.
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
        raise InvalidRequest(f"the request must be a JSON object, got {kind_of(document)}")
    id_ = document.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise InvalidRequest(f"id must be a string, got {kind_of(id_)}")
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
    where = f"input {shown(name)}"
    shape = _shape(entry.get("shape"), where)
    datatype = entry.get("datatype")
    if datatype not in DATA_TYPES:
        raise InvalidRequest(
            f"{where}: datatype must be one of {', '.join(DATA_TYPES)}, got {shown(datatype)}"
        )
    parameters = _parameters(entry, where)
    size = parameters.get("binary_data_size")
    if (size is None) == ("data" not in entry):
        both = "neither data nor" if size is None else "both data and"
        raise InvalidRequest(f"{where} has {both} binary_data_size; send one of them")
    data: Array | list[bytes]
    if size is None:
        data = from_json(entry["data"], datatype, shape, where)
    else:
        data = from_binary(_take(elements, size, where), datatype, shape, where, limits)
    content_type = parameters.get("content_type")
    return Tensor(
        name, datatype, shape, data, content_type if isinstance(content_type, str) else ""
    )


def _outputs(document: dict[str, Any], is_binary: bool) -> dict[str, bool] | None:
    entries = document.get("outputs")
    if entries is not None and not isinstance(entries, list):
        raise InvalidRequest(f'"outputs" must be a list, got {kind_of(entries)}')
    if not entries:
        return None
    names = _names(entries, "output")
    outputs = {}
    for name, entry in zip(names, entries, strict=True):
        where = f"output {shown(name)}"
        outputs[name] = _flag(_parameters(entry, where), "binary_data", where, is_binary)
    return outputs


def _names(entries: list[Any], kind: str) -> list[str]:
    """Return the distinct names of inputs or outputs, before parsing the rest of them."""
    if len(entries) > MAX_TENSORS:
        raise InvalidRequest(f"the request has {len(entries)} {kind}s, at most {MAX_TENSORS}")
    names = [_name(entry, f"{kind}s[{index}]") for index, entry in enumerate(entries)]
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InvalidRequest(f"{kind} {shown(name)} appears more than once")
        seen.add(name)
    return names


def _name(entry: Any, where: str) -> str:
    if not isinstance(entry, dict):
        raise InvalidRequest(f"{where} must be an object, got {kind_of(entry)}")
    name = entry.get("name")
    if not isinstance(name, str) or not name:
        raise InvalidRequest(f"{where} needs a name, a string; got {kind_of(name)}")
    return name


def _shape(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, list) and len(value) > MAX_DIMENSIONS:
        raise InvalidRequest(
            f"{where}: shape has {len(value)} dimensions, at most {MAX_DIMENSIONS} are allowed"
        )
    if not isinstance(value, list) or not all(
        isinstance(size, int) and not isinstance(size, bool) and 0 <= size <= MAX_SIZE
        for size in value
    ):
        raise InvalidRequest(
            f"{where}: shape must be a list of integers from 0 to {MAX_SIZE}, got {shown(value)}"
        )
    return tuple(value)


def _parameters(entry: dict[str, Any], where: str) -> dict[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if isinstance(parameters, dict) and len(parameters) > _MAX_PARAMETERS:
        raise InvalidRequest(
            f"{where} has {len(parameters)} parameters, at most {_MAX_PARAMETERS} are allowed"
        )
    if not isinstance(parameters, dict) or not all(
        isinstance(value, (str, int, float, bool)) for value in parameters.values()
    ):
        raise InvalidRequest(
            f"{where}: parameters must be an object of strings, numbers and booleans, "
            f"got {shown(parameters)}"
        )
    for key, extension in _NOT_OFFERED.items():
        if key in parameters:
            raise InvalidRequest(f"{where}: this server does not support {extension} ({key})")
    return parameters


def _flag(parameters: dict[str, Any], key: str, where: str, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        raise InvalidRequest(f"{where}: {key} must be true or false, got {shown(value)}")
    return value


def _take(elements: _Elements | None, size: Any, where: str) -> memoryview:
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidRequest(
            f"{where}: binary_data_size must be an integer >= 0 (bytes), got {shown(size)}"
        )
    if elements is None:
        raise InvalidRequest(
            f"{where} has a binary_data_size, but the header {V2_HEADER_LENGTH}, the length of the "
            "JSON part, is missing"
        )
    return elements.take(where, size)


def _decode_raw(body: memoryview, spec: TensorSpec | None, limits: RequestLimits) -> InferRequest:
    """Decode a body that consists only of the elements of the sole input."""
    if spec is None:
        raise InvalidRequest(
            f"{V2_HEADER_LENGTH} is 0, which only models with one input support; send the "
            "request's JSON before the tensors"
        )
    return InferRequest(None, (raw_tensor(body, spec, limits),), None, True)


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
        f"the model has no output {shown(name)}; its outputs: {quoted_names(known, 60)}"
    )
