"""Requests and answers of the V1 protocol of KServe and TensorFlow Serving. Pure.

``{"instances": [...]}`` has an entry per row and is answered ``{"predictions": [...]}``;
``{"inputs": ...}`` has a value per input and is answered ``{"outputs": ...}``.
https://www.tensorflow.org/tfx/serving/api_rest
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mms.archive.signature import Signature
from mms.errors import InvalidRequest, InvalidServiceOutput
from mms.wire.messages import Answer, Request, RequestLimits
from mms.worker.arrays import arrays_of
from mms.worker.envelope import COLUMNS_KEY, ROWS_KEY, by_input, columns
from mms.worker.form import in_utf8, parse_media_type
from mms.worker.image_body import images_of_instance
from mms.worker.json_text import read_json
from mms.worker.names import hint, joined, kind_of, missing_input
from mms.worker.request import as_list
from mms.worker.response import encode_json

_PREDICTIONS, _OUTPUTS = b"predictions", b"outputs"


@dataclass(frozen=True, slots=True)
class V1Request:
    """A decoded request.

    Attributes:
        inputs: One value per input, for a single pass; empty if each instance runs alone.
        instances: The inputs of each instance that runs alone; empty if all run in a single pass.
        rows: Number of instances; None if the request has none, but ``inputs``.
    """

    inputs: list[Any]
    instances: list[list[Any]]
    rows: int | None


def decode_v1(
    request: Request, signature: Signature, limits: RequestLimits, takes_arrays: bool
) -> V1Request:
    """Decode a request; its content type is ignored, as in TensorFlow Serving.

    Args:
        request: The request.
        signature: The model's signature.
        limits: Limit on the number of elements.
        takes_arrays: Whether the service itself makes an array of the rows of several instances.

    Raises:
        InvalidRequest: The message names the input, the expected and the actual value.
        UnsupportedMedia: Its charset is unknown.
        PayloadTooLarge: It has more elements than the limits allow.
    """
    _, parameters = parse_media_type(request.meta.content_type)
    text = in_utf8(request.body, parameters.get("charset", ""), "the body")
    document = read_json(text, "the body", limits.max_json_elements)
    if not isinstance(document, dict) or (ROWS_KEY in document) == (COLUMNS_KEY in document):
        raise _no_envelope(document)
    if ROWS_KEY in document:
        return _by_rows(document[ROWS_KEY], signature, takes_arrays)
    names, value = signature.input_names, document[COLUMNS_KEY]
    if signature.takes_images:
        return V1Request(list(images_of_instance(value, names, repr(COLUMNS_KEY))), [], None)
    # The value of a sole input that may be an object is taken as one without its name.
    may_be_it = len(names) == 1 and not takes_arrays
    is_named = isinstance(value, dict) and names[0] in value
    values = [value] if may_be_it and not is_named else by_input(value, names)
    pairs = zip(names, values, strict=True)
    return V1Request([as_list(name, one, takes_arrays) for name, one in pairs], [], None)


def encode_arrays(value: Any, names: Sequence[str], rows: int | None) -> bytes:
    """Return the answer to a request that ran in a single pass, from the network's outputs.

    Args:
        value: An array, or a list of them.
        names: The signature's outputs; further outputs of the network are left out.
        rows: As in the request.

    Raises:
        InvalidServiceOutput: The outputs do not have a row for each instance.
    """
    arrays = [one.asnumpy() if hasattr(one, "asnumpy") else one for one in arrays_of(value) or ()]
    if rows is None:
        named = dict(zip(names, arrays, strict=False))
        return _document(_OUTPUTS, encode_json(arrays[0] if len(named) == 1 else named))
    for array in arrays[: len(names)]:
        if not array.ndim or len(array) != rows:
            raise InvalidServiceOutput(
                f"the network returned an array of shape {list(array.shape)} for {rows} instances, "
                "which has no row for each; ask /predictions instead"
            )
    if len(arrays) == 1 or len(names) == 1:
        return _document(_PREDICTIONS, encode_json(arrays[0]))
    entries = [dict(zip(names, row, strict=False)) for row in zip(*arrays, strict=False)]
    return _document(_PREDICTIONS, encode_json(entries))


def encode_value(value: Any) -> bytes:
    """Return the answer to a request by ``inputs`` from the answer of the service."""
    return _document(_OUTPUTS, encode_json(value))


def encode_predictions(answers: Sequence[Answer]) -> bytes:
    """Return the answer to instances that ran alone, from the JSON answer of each."""
    return _document(_PREDICTIONS, b"[%s]" % b",".join(bytes(one.body) for one in answers))


def _document(key: bytes, value: bytes) -> bytes:
    return b'{"%s":%s}' % (key, value)


def _by_rows(rows: Any, signature: Signature, takes_arrays: bool) -> V1Request:
    if not isinstance(rows, list) or not rows:
        got = "an empty list" if rows == [] else kind_of(rows)
        raise InvalidRequest(f"{ROWS_KEY!r} must be a list with one entry per row, got {got}")
    names = signature.input_names
    if takes_arrays:
        values = columns(rows, names, ROWS_KEY)
        return V1Request(values, [], len(rows))
    read = _images if signature.takes_images else _row
    instances = [read(row, names, f"{ROWS_KEY}[{index}]") for index, row in enumerate(rows)]
    return V1Request([], instances, len(rows))


def _images(row: Any, names: tuple[str, ...], where: str) -> list[Any]:
    return list(images_of_instance(row, names, where))


def _row(row: Any, names: tuple[str, ...], where: str) -> list[Any]:
    """Return the inputs of an instance: each a batch of one."""
    if isinstance(row, dict) and any(name in row for name in names):
        for name in names:
            if name not in row:
                raise missing_input(name, row, where, names)
        return [[row[name]] for name in names]
    if len(names) > 1:
        raise InvalidRequest(
            f"{where} must be an object with the keys {joined(names)}, got {kind_of(row)}"
        )
    return [[row]]


def _no_envelope(document: Any) -> InvalidRequest:
    wanted = f'"{ROWS_KEY}", a list with one entry per row, or "{COLUMNS_KEY}"'
    if not isinstance(document, dict):
        return InvalidRequest(f"the body needs {wanted}; it is {kind_of(document)}")
    if ROWS_KEY in document:
        return InvalidRequest(f"the body needs {wanted}, and has both")
    near = hint(ROWS_KEY, document) or hint(COLUMNS_KEY, document)
    return InvalidRequest(
        f"the body needs {wanted}; it has {joined(document)}"
        f"{near.replace('the input is called', 'the key is called')}"
    )
