"""Bodies that are arrays: npy, CSV and JSON lines, in and out. Pure except for numpy.

They are what SageMaker's clients send and accept. CSV and npy hold one array; JSON lines hold rows,
each a value of the sole input or an object with all of them.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InvalidRequest, UnsupportedMedia
from mms.wire.frames import Buffer
from mms.wire.messages import Answer, RequestLimits
from mms.worker.arrays import arrays_of
from mms.worker.envelope import columns
from mms.worker.form import in_utf8
from mms.worker.json_text import too_many_elements
from mms.worker.mismatch import shape_of
from mms.worker.names import joined
from mms.worker.npy import MAGIC, read_npy, write_npy
from mms.worker.response import encode_json
from mms.worker.text_rows import read_csv, read_json_lines, shaped, write_csv


class ArrayType(enum.Enum):
    """A format; the value is its usual media type."""

    NPY = "application/x-npy"
    CSV = "text/csv"
    JSON_LINES = "application/jsonlines"


_TYPES = {
    "application/x-npy": ArrayType.NPY,
    "application/npy": ArrayType.NPY,
    "text/csv": ArrayType.CSV,
    "application/csv": ArrayType.CSV,
    "application/jsonlines": ArrayType.JSON_LINES,
    "application/x-jsonlines": ArrayType.JSON_LINES,
    "application/jsonl": ArrayType.JSON_LINES,
    "application/ndjson": ArrayType.JSON_LINES,
    "application/x-ndjson": ArrayType.JSON_LINES,
}
#: Media types of bodies of any kind, whose first bytes are looked at.
_UNKNOWN = ("", "application/octet-stream", "application/x-www-form-urlencoded")
#: Accept headers of most clients, which need no look-up.
_JSON_ACCEPTED = frozenset({"", "*/*", "application/json"})


def array_type(media_type: str, body: Buffer) -> ArrayType | None:
    """Return the format of a body; None if it is another one."""
    if media_type in _UNKNOWN:
        return ArrayType.NPY if body[: len(MAGIC)] == MAGIC else None
    return _TYPES.get(media_type)


def accepted_type(accept: str) -> ArrayType | None:
    """Return the first format in an Accept header; None if JSON or any format comes first."""
    if accept in _JSON_ACCEPTED:
        return None
    for part in accept.split(","):
        media_type = part.partition(";")[0].strip().lower()
        if media_type in ("application/json", "application/*", "*/*"):
            return None
        if media_type in _TYPES:
            return _TYPES[media_type]
    return None


def decode_arrays(
    kind: ArrayType,
    body: Buffer,
    parameters: Mapping[str, str],
    signature: Signature,
    limits: RequestLimits,
    takes_arrays: bool,
) -> list[Any]:
    """Return one value per input: an array if the service takes them, else nested lists.

    Args:
        kind: Format of the body.
        body: The body.
        parameters: Those of its media type.
        signature: The model's signature.
        limits: Limit on the number of elements.
        takes_arrays: Whether the service takes arrays.

    Raises:
        InvalidRequest: The body is malformed, or holds one array for several inputs.
        UnsupportedMedia: The input takes strings, or the charset is unknown.
        PayloadTooLarge: There are more elements than the limits allow.
    """
    names = signature.input_names
    if kind is ArrayType.JSON_LINES:
        text = in_utf8(body, parameters.get("charset", ""), "the body")
        rows = read_json_lines(text, "the body", limits.max_json_elements)
        are_values = len(names) == 1 and not takes_arrays
        return [rows] if are_values else columns(rows, names, "lines")
    if len(names) > 1:
        raise InvalidRequest(
            f"the model has {len(names)} inputs, and {kind.value} holds one array; send a JSON "
            f"object with the keys {joined(names)}, {ArrayType.JSON_LINES.value} of such objects, "
            "or multipart/form-data with a file for each"
        )
    spec = signature.inputs[0]
    return [decode_array(kind, body, parameters, spec, "the body", limits, takes_arrays)]


def decode_array(
    kind: ArrayType,
    body: Buffer,
    parameters: Mapping[str, str],
    spec: TensorSpec,
    what: str,
    limits: RequestLimits,
    takes_arrays: bool,
) -> Any:
    """Return the value of one input from a body or a form field of its own.

    Args:
        kind: Its format.
        body: Its bytes.
        parameters: Those of its media type.
        spec: The input.
        what: Name of the body, for messages.
        limits: Limit on the number of elements.
        takes_arrays: Whether the service takes arrays.

    Raises:
        InvalidRequest: It is malformed.
        UnsupportedMedia: The input takes strings, or the charset is unknown.
        PayloadTooLarge: There are more elements than the limits allow.
    """
    limit = limits.max_json_elements
    if kind is not ArrayType.NPY:
        body = in_utf8(body, parameters.get("charset", ""), what)
    if kind is ArrayType.JSON_LINES:
        return read_json_lines(body, what, limit)
    if spec.data_type == "BYTES":
        raise UnsupportedMedia(
            f"input {spec.name!r} takes strings, and {kind.value} holds numbers; send "
            "application/json"
        )
    if kind is ArrayType.CSV:
        has_header = parameters.get("header", "").lower() == "present"
        array = shaped(read_csv(body, what, limit, has_header), spec)
    else:
        array = read_npy(body, what)
    if not array.ndim:
        raise InvalidRequest(f"{what} is a number without axes; the input's shape has a batch axis")
    if takes_arrays:
        return array
    if array.size > limit:
        raise too_many_elements(what, limit)
    return array.tolist()


def encode_array(kind: ArrayType, value: Any) -> Answer | None:
    """Return an answer in a format, or None if the value is not one array of numbers."""
    array = _array_of(value)
    if array is None:
        return None
    if kind is ArrayType.NPY:
        return Answer(write_npy(array), kind.value)
    if kind is ArrayType.CSV:
        return Answer(write_csv(array), kind.value)
    rows = array if array.ndim else array.reshape(1)
    return Answer(b"".join(encode_json(row) + b"\n" for row in rows), kind.value)


def is_one_array(value: Any) -> bool:
    """Whether a network's output is a single array."""
    return len(arrays_of(value) or ()) == 1


def _array_of(value: Any) -> npt.NDArray[Any] | None:
    arrays = arrays_of(value)
    if arrays is not None and len(arrays) == 1:
        array = arrays[0].asnumpy() if hasattr(arrays[0], "asnumpy") else arrays[0]
    elif shape_of(value) is not None:
        array = np.array(value)
    else:
        return None
    return array if array.dtype.kind in "biuf" else None
