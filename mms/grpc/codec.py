"""Convert between gRPC messages and the binary form of the REST protocol, which workers use.

Pure; the contents of raw tensors are passed on unchanged.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from mms.archive.data_types import TABLE
from mms.archive.signature import MAX_DIMENSIONS, MAX_TENSORS
from mms.errors import InvalidRequest, PayloadTooLarge, ProtocolError
from mms.grpc import inference_pb2 as pb
from mms.quoting import quoted
from mms.wire.frames import Buffer
from mms.wire.messages import V2_HEADER_LENGTH, Answer

#: Maximum number of BYTES elements in one tensor, and of parameters in one message: each is a
#: Python object, created in the server process. Models take one element as a body.
MAX_TEXTS = 100_000
MAX_PARAMETERS = 1000
#: Datatype -> field of InferTensorContents, and the array type of its elements on the wire.
_CONTENTS = {type_.name: (type_.grpc_field, type_.array) for type_ in TABLE if type_.grpc_field}
_LENGTH_BYTES = 4


def encode_request(request: Any, max_bytes: int) -> tuple[list[Buffer], int]:
    """Return a ModelInferRequest as the chunks of a body, the first being the JSON.

    Args:
        request: The message.
        max_bytes: Maximum length of the body.

    Returns:
        The chunks and their total length.

    Raises:
        InvalidRequest: Contents are misplaced or of the wrong type. The worker checks the rest.
        PayloadTooLarge: The body is longer.
    """
    for kind, tensors in (("inputs", request.inputs), ("outputs", request.outputs)):
        if len(tensors) > MAX_TENSORS:
            raise InvalidRequest(
                f"the request has {len(tensors)} {kind}; the limit is {MAX_TENSORS}"
            )
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"raw_input_contents has {len(raw)} entries for {len(request.inputs)} inputs"
        )
    inputs: list[dict[str, Any]] = []
    chunks: list[Buffer] = []
    left = max_bytes
    for index, tensor in enumerate(request.inputs):
        if raw and tensor.HasField("contents"):
            raise InvalidRequest(
                f"input {_shown(tensor.name)} has contents as well as raw_input_contents; send "
                "only one of them"
            )
        if len(tensor.shape) > MAX_DIMENSIONS:
            raise InvalidRequest(
                f"input {_shown(tensor.name)}: shape has {len(tensor.shape)} dimensions; the limit "
                f"is {MAX_DIMENSIONS}"
            )
        data = raw[index] if raw else _contents(tensor, left)
        left -= len(data)
        chunks.append(data)
        parameters = {**_parameters(tensor.parameters), "binary_data_size": len(data)}
        inputs.append(
            {
                "name": tensor.name,
                "datatype": tensor.datatype,
                "shape": list(tensor.shape),
                "parameters": parameters,
            }
        )
    header = orjson.dumps(_document(request, inputs))
    if len(header) > left:
        raise _too_large(max_bytes)
    return [header, *chunks], len(header) + max_bytes - left


def decode_answer(answer: Answer) -> Any:
    """Convert a worker's answer to a ModelInferResponse.

    Raises:
        ProtocolError: It is not in the requested binary form.
    """
    body = memoryview(answer.body)
    try:
        at = int(answer.headers.get(V2_HEADER_LENGTH, len(body)))
        document = orjson.loads(body[:at])
        response = pb.ModelInferResponse(
            model_name=document["model_name"],
            model_version=document["model_version"],
            id=document.get("id", ""),
        )
        for output in document["outputs"]:
            size = output["parameters"]["binary_data_size"]
            response.outputs.add(
                name=output["name"], datatype=output["datatype"], shape=output["shape"]
            )
            response.raw_output_contents.append(bytes(body[at : at + size]))
            at += size
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"a worker's answer cannot be sent over gRPC: {error!r}") from None
    return response


def _document(request: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    parameters = {**_parameters(request.parameters), "binary_data_output": True}
    document: dict[str, Any] = {"inputs": inputs, "parameters": parameters}
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [
            {
                "name": output.name,
                "parameters": {**_parameters(output.parameters), "binary_data": True},
            }
            for output in request.outputs
        ]
    return document


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    if len(parameters) > MAX_PARAMETERS:
        raise InvalidRequest(
            f"a part of the request has {len(parameters)} parameters; the limit is {MAX_PARAMETERS}"
        )
    values = {}
    for key, parameter in parameters.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is not None:
            values[key] = getattr(parameter, choice)
    return values


def _contents(tensor: Any, max_bytes: int) -> bytes:
    """Return the elements of a tensor as the bytes of raw contents."""
    where = f"input {_shown(tensor.name)}"
    if tensor.datatype not in _CONTENTS:
        raise InvalidRequest(
            f"{where}: contents has no field for {_shown(tensor.datatype)}, only for "
            f"{', '.join(_CONTENTS)}; send FP16 in raw_input_contents"
        )
    field, type_ = _CONTENTS[tensor.datatype]
    for found, _ in tensor.contents.ListFields():
        if found.name != field:
            raise InvalidRequest(
                f"{where} is {tensor.datatype}, whose elements belong in {field}, not {found.name}"
            )
    elements = getattr(tensor.contents, field)
    if not type_:
        if len(elements) > MAX_TEXTS:
            raise InvalidRequest(
                f"{where} has {len(elements)} elements of BYTES; the limit is {MAX_TEXTS}; send "
                "them in raw_input_contents"
            )
        return _joined(elements)
    # Checked before conversion: a small number takes one byte in the message and up to eight here.
    if len(elements) * array(type_).itemsize > max_bytes:
        raise _too_large(max_bytes)
    try:
        values = array(type_, elements)
    except OverflowError as error:
        raise InvalidRequest(
            f"{where} has an element that is not {tensor.datatype}: {error}"
        ) from None
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()


def _joined(elements: Sequence[bytes]) -> bytes:
    parts = []
    for element in elements:
        parts += [len(element).to_bytes(_LENGTH_BYTES, "little"), element]
    return b"".join(parts)


def _shown(value: str) -> str:
    return quoted(value, 60)


def _too_large(max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the request is longer than max_request_bytes ({max_bytes} bytes); start the server with "
        "--max-request-bytes to allow more"
    )
