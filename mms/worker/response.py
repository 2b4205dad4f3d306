"""Encode what a service answers into the bytes that a client gets.

Pure but for numpy: NDArrays are recognised by their `asnumpy`, so mxnet is not imported.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from mms.archive.signature import Signature
from mms.errors import InvalidServiceOutput
from mms.protocol import Answer, RequestMeta

#: The route of v0.4 clients, whose answers are wrapped in {"prediction": ...}.
LEGACY_ROUTE = "legacy_predict"
_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
#: NumPy types, by character, that are lists of Python's own only by way of another one. Dates are
#: then written as orjson writes them.
_BY_WAY_OF = {"M": "M8[us]", "g": "f8", "G": "c16"}


def encode_output(output: Any, meta: RequestMeta, signature: Signature, max_bytes: int) -> Answer:
    """Give the answer to one request.

    Args:
        output: What the service's `_postprocess` or `inference` returned.
        meta: The request's; its route decides on the envelope, its Accept header whether an
            image comes raw.
        signature: The model's.
        max_bytes: The longest body that may be sent.

    Raises:
        InvalidServiceOutput: The value cannot be sent, or is longer than `max_bytes`.
    """
    if signature.gives_images and _accepts_image(meta.accept):
        answer = Answer(image_bytes(output), signature.output_type)
    else:
        if meta.route == LEGACY_ROUTE:
            output = {"prediction": output}
        answer = Answer(encode_json(output))
    return within(answer, max_bytes)


def within(answer: Answer, max_bytes: int) -> Answer:
    """Give an answer that is short enough.

    Raises:
        InvalidServiceOutput: Its body is longer than `max_bytes`.
    """
    if len(answer.body) > max_bytes:
        raise InvalidServiceOutput(
            f"the answer has {len(answer.body)} bytes, more than max_response_bytes ({max_bytes})"
        )
    return answer


def encode_json(value: Any) -> bytes:
    """Serialise, arrays and NumPy values included; NaN and infinities become null.

    Raises:
        InvalidServiceOutput: The value holds something that JSON cannot express.
    """
    try:
        try:
            return orjson.dumps(value, default=_plain, option=_JSON_OPTIONS)
        except TypeError as error:
            # The one kind of array that it neither takes nor asks `default` about.
            if "native-endian" not in str(error):
                raise
            return orjson.dumps(value, default=_plain_again, option=orjson.OPT_NON_STR_KEYS)
    except (TypeError, ValueError, RecursionError) as error:
        reason = error.__cause__ or error
        raise InvalidServiceOutput(
            f"the service's answer, a {type(value).__name__}, cannot be sent as JSON: {reason}"
        ) from error


def _plain(value: Any) -> Any:
    """Give what orjson does not know as something that it does."""
    if hasattr(value, "asnumpy"):
        return value.asnumpy()
    if isinstance(value, (np.ndarray, np.generic)):
        # What orjson does not take itself: strides, types, arrays without dimensions.
        other = _BY_WAY_OF.get(value.dtype.char)
        return (value.astype(other) if other else value).tolist()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _text(bytes(value))
    if isinstance(value, (set, frozenset, Iterator)):
        return list(value)
    if hasattr(value, "items"):
        return dict(value.items())
    raise TypeError(f"values of type {type(value).__name__} have no JSON form")


def _plain_again(value: Any) -> Any:
    """Do as `_plain`, after a first attempt that has read every iterator to its end."""
    if isinstance(value, Iterator):
        raise TypeError("an iterator beside an array in foreign byte order has no JSON form")
    return _plain(value)


def _text(data: bytes) -> str:
    """Give bytes as the text they hold, or in base64 if they hold none."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode("ascii")


def _accepts_image(accept: str) -> bool:
    return any(part.strip().lower().startswith("image/") for part in accept.split(","))


def image_bytes(output: Any) -> bytes:
    """Take the encoded image out of a service's answer: base64 or raw, alone or in a list.

    Raises:
        InvalidServiceOutput: The answer is something else.
    """
    while isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    if isinstance(output, str):
        output = output.encode()
    if not isinstance(output, (bytes, bytearray)):
        raise InvalidServiceOutput(
            "the service's answer is not one image (base64 text or bytes) but a "
            f"{type(output).__name__}; ask without an image type in Accept to get it as JSON"
        )
    try:
        return base64.b64decode(output, validate=True)
    except binascii.Error:
        return bytes(output)
