"""Encode the output of a service into the bytes of an answer.

Pure except for numpy: NDArrays are recognised by their `asnumpy`, so mxnet is not imported.
"""

from __future__ import annotations

import base64
import binascii
import calendar
import datetime
import enum
import json
import math
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from email.utils import formatdate
from typing import Any

import numpy as np
import orjson

from mms.archive.signature import Signature
from mms.errors import InvalidServiceOutput
from mms.wire.messages import Answer, Dialect, RequestMeta

_JSON_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS
_V04_OPTIONS = _JSON_OPTIONS | orjson.OPT_PASSTHROUGH_DATETIME
#: NumPy types, by character, that must be converted before they become Python lists. Dates are
#: then written as orjson writes them.
_BY_WAY_OF = {"M": "M8[us]", "g": "f8", "G": "c16"}
#: Levels of an answer that are searched for what cannot be encoded.
_MOST_LEVELS = 16
_TEMPORAL = (datetime.date, datetime.time)


def encode_output(output: Any, meta: RequestMeta, signature: Signature, max_bytes: int) -> Answer:
    """Return the answer to one request.

    Args:
        output: Return value of the service's `_postprocess` or `inference`.
        meta: The request's meta; its dialect selects the envelope, its Accept header whether an
            image is sent raw.
        signature: The model's signature.
        max_bytes: Maximum length of the body.

    Raises:
        InvalidServiceOutput: The value cannot be sent, or is longer than `max_bytes`.
    """
    if signature.gives_images and _accepts_image(meta.accept):
        answer = Answer(image_bytes(output), signature.output_type)
    else:
        is_v04 = meta.dialect is Dialect.V04
        answer = Answer(encode_json({"prediction": output} if is_v04 else output, is_v04))
    return within(answer, max_bytes)


def within(answer: Answer, max_bytes: int) -> Answer:
    """Return the answer if it is short enough.

    Raises:
        InvalidServiceOutput: Its body is longer than `max_bytes`.
    """
    if len(answer.body) > max_bytes:
        raise InvalidServiceOutput(
            f"the answer has {len(answer.body)} bytes, more than max_response_bytes ({max_bytes})"
        )
    return answer


def encode_json(value: Any, http_dates: bool = False) -> bytes:
    """Serialise a value, arrays and NumPy values included; NaN and infinities become null.

    Values that the fast encoder does not support are written like Python's encoder, which 0.4
    used: integers of any size, named tuples and other subclasses as their base, lone surrogates,
    objects with ``__html__`` as its result, a thousand levels.

    Args:
        value: The value.
        http_dates: Whether dates are written as in HTTP headers, as 0.4's framework did, and not as
            in ISO 8601.

    Raises:
        InvalidServiceOutput: The value contains something that JSON cannot express.
    """
    default, option = (_plain_v04, _V04_OPTIONS) if http_dates else (_plain, _JSON_OPTIONS)
    try:
        return orjson.dumps(value, default=default, option=option)
    except (TypeError, ValueError, RecursionError):
        pass
    try:
        return _encode_slowly(value, default, option)
    except Exception as error:
        reason = error.__cause__ or error
        place = _place_of_fault(value, lambda part: _encode_slowly(part, default, option))
        raise InvalidServiceOutput(
            f"the service's answer, a {type(value).__name__}, cannot be sent as JSON"
            f"{place and f', because of its {place}'}: {reason}"
        ) from error


def _place_of_fault(value: Any, encode: Callable[[Any], bytes]) -> str:
    """Return where the first part of a value lies that cannot be encoded, such as ``['a'][0]``.

    Returns:
        "" if it is the value itself, its keys or its depth.
    """
    place = ""
    for _ in range(_MOST_LEVELS):
        if isinstance(value, Mapping):
            parts: Iterable[tuple[Any, Any]] = value.items()
        elif isinstance(value, (list, tuple)):
            parts = enumerate(value)
        else:
            break
        for key, part in parts:
            try:
                encode(part)
            except Exception:  # noqa: BLE001 - values of user code raise anything
                place, value = f"{place}[{key!r}]", part
                break
        else:
            break
    return place


def _encode_slowly(value: Any, default: Callable[[Any], Any], option: int) -> bytes:
    def as_orjson(part: Any) -> Any:
        """Convert a value that only orjson supports to the JSON value that it writes."""
        return orjson.loads(orjson.dumps(part, default=default, option=option))

    try:
        plain = standard(value)
    except RecursionError:
        # Python's encoder nests deeper than Python itself; NaN is the price.
        plain = value
    try:
        return orjson.dumps(plain, default=default, option=option)
    except TypeError:
        text = json.dumps(plain, allow_nan=False, separators=(",", ":"), default=as_orjson)
        return text.encode()


def _plain_v04(value: Any) -> Any:
    """Convert a value unknown to orjson, or a date, to one that it supports.

    Raises:
        TypeError: As `_plain`.
    """
    if isinstance(value, datetime.datetime):
        return formatdate(calendar.timegm(value.utctimetuple()), usegmt=True)
    if isinstance(value, datetime.date):
        return formatdate(calendar.timegm(value.timetuple()), usegmt=True)
    return value.isoformat() if isinstance(value, datetime.time) else _plain(value)


def _plain(value: Any) -> Any:
    """Convert a value unknown to orjson to one that it supports.

    Raises:
        TypeError: Only `standard` can; it then needs the original value, with iterators unread.
    """
    if hasattr(value, "asnumpy"):
        return value.asnumpy()
    if isinstance(value, (np.ndarray, np.generic)):
        # Not supported by orjson itself: strides, types, arrays without dimensions.
        return _listed(value)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return _text(bytes(value))
    if isinstance(value, (set, frozenset)):
        return list(value)
    raise TypeError(f"values of type {type(value).__name__} have no JSON form")


def _listed(value: Any) -> Any:
    other = _BY_WAY_OF.get(value.dtype.char)
    return (value.astype(other) if other else value).tolist()


def standard(value: Any) -> Any:
    """Convert a value to JSON's own types, and to those that only orjson writes.

    Raises:
        TypeError: Part of it has no JSON form.
        RecursionError: It is nested too deeply, or contains itself.
    """
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, str):
        # Not str(value): a subclass may override __str__.
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {_key(key): standard(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset, Iterator)):
        return [standard(item) for item in value]
    if hasattr(value, "__html__"):
        return str(value.__html__())
    if hasattr(value, "asnumpy"):
        value = value.asnumpy()
    if isinstance(value, np.datetime64):
        return value
    if isinstance(value, (np.ndarray, np.generic)):
        return standard(_listed(value))
    if isinstance(value, (*_TEMPORAL, uuid.UUID, enum.Enum)) or is_dataclass(value):
        return value
    if hasattr(value, "items"):
        return {_key(key): standard(item) for key, item in value.items()}
    return _plain(value)


def _key(key: Any) -> Any:
    return key.item() if isinstance(key, np.generic) else key


def _text(data: bytes) -> str:
    """Decode bytes as UTF-8, or encode them in base64 if they are not UTF-8."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode("ascii")


def _accepts_image(accept: str) -> bool:
    return any(part.strip().lower().startswith("image/") for part in accept.split(","))


def image_bytes(output: Any) -> bytes:
    """Extract the encoded image from a service's answer: base64 or raw, alone or in a list.

    Raises:
        InvalidServiceOutput: The answer is something else.
    """
    while isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    if isinstance(output, str):
        output = output.encode()
    if not isinstance(output, (bytes, bytearray)):
        raise InvalidServiceOutput(
            "the service's answer is not one image (a base64 string or bytes) but a "
            f"{type(output).__name__}; ask without an image type in Accept to get it as JSON"
        )
    try:
        return base64.b64decode(output, validate=True)
    except binascii.Error:
        return bytes(output)
