"""Decode a request's body into the inputs of a service, by the model's signature.

Every client error raises InvalidRequest (or UnsupportedMedia), which names the input, the expected
and the actual value. Pure: no mxnet, no sockets.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

from mms.archive.signature import Signature
from mms.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from mms.quoting import quoted, quoted_names
from mms.wire.frames import Buffer
from mms.wire.messages import Request, RequestLimits
from mms.worker.form import Part, form_parts, in_utf8, is_form, parse_media_type
from mms.worker.json_text import check_elements, load_json, read_json
from mms.worker.literal import MalformedLiteral, read_literal

#: The default limits of a server.
DEFAULT_LIMITS = RequestLimits()
_DATA_URI = re.compile(rb"\s*data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)
_LINE_ENDS = b"\t\n\v\f\r"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN_CHARS = 60

Fields = Mapping[str, Part]


def decode_inputs(
    request: Request, signature: Signature, limits: RequestLimits = DEFAULT_LIMITS
) -> list[Any]:
    """Return one value per input of the signature.

    JSON inputs become lists; image inputs become the bytes of an encoded image.

    Raises:
        InvalidRequest: The body is malformed, or an input is missing or of the wrong type.
        UnsupportedMedia: The model does not accept the content type or charset.
        PayloadTooLarge: The body has more fields or elements than the limits allow.
    """
    media_type, parameters = parse_media_type(request.meta.content_type)
    if signature.takes_images:
        return _decode_images(request.body, media_type, parameters, signature, limits)
    return _decode_json_inputs(request.body, media_type, parameters, signature, limits)


def _decode_json_inputs(
    body: memoryview,
    media_type: str,
    parameters: Mapping[str, str],
    signature: Signature,
    limits: RequestLimits,
) -> list[Any]:
    # `curl -d '[...]'` labels JSON as a form by default; no field name begins with a bracket.
    is_json_in_disguise = media_type != "multipart/form-data" and _looks_like_json(body)
    if is_form(media_type) and not is_json_in_disguise:
        fields = _form_fields(body, media_type, parameters, limits)
        names = signature.input_names
        if not any(name in fields for name in names):
            raise _missing_input(names[0], fields)
        return [_json_field(name, fields, limits) for name in names]
    if media_type and not is_form(media_type) and not _is_json(media_type):
        raise UnsupportedMedia(
            f"content type {quoted(media_type, _SHOWN_CHARS)} is not supported for this model; "
            "send application/json, multipart/form-data or application/x-www-form-urlencoded"
        )
    charset = "" if is_form(media_type) else parameters.get("charset", "")
    return _json_document(in_utf8(body, charset, "the body"), signature, limits)


def _json_document(body: Buffer, signature: Signature, limits: RequestLimits) -> list[Any]:
    """Parse a JSON body: an object keyed by input names, or the value of a sole input."""
    names = signature.input_names
    if not body:
        raise InvalidRequest(f"the body is empty; send a JSON value for input {names[0]!r}")
    document = read_json(body, "the body", limits.max_json_elements)
    if isinstance(document, dict) and any(name in document for name in names):
        missing = [name for name in names if name not in document]
        if missing:
            raise InvalidRequest(f"input {missing[0]!r} is missing; the body has {_join(document)}")
        return [_as_list(name, document[name]) for name in names]
    if len(names) > 1:
        raise InvalidRequest(
            f"the model has {len(names)} inputs; send a JSON object with the keys {_join(names)}"
        )
    return [_as_list(names[0], document)]


def _json_field(name: str, fields: Fields, limits: RequestLimits) -> Any:
    if name not in fields:
        raise _missing_input(name, fields)
    part = fields[name]
    what = f"input {quoted(name, _SHOWN_CHARS)}"
    return json_value(name, bytes(in_utf8(part.value, part.charset, what)), limits)


def json_value(name: str, data: bytes, limits: RequestLimits = DEFAULT_LIMITS) -> Any:
    """Return the value of an input from its text: a list, or an object wrapped in a list.

    Raises:
        InvalidRequest: It is neither JSON nor a Python literal, or is neither list nor object.
        PayloadTooLarge: It has more elements than the limits allow.
    """
    return _as_list(name, parse_literal(name, data, limits))


def _as_list(name: str, value: Any) -> Any:
    """Wrap a bare object in a list; refuse the types that v0.4 refused."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return value
    if isinstance(value, tuple):
        return list(value)
    raise InvalidRequest(
        f"input {name!r} must be a list or an object, got {_kind(value)}: {_shown(value)}"
    )


def parse_literal(name: str, data: bytes, limits: RequestLimits = DEFAULT_LIMITS) -> Any:
    """Parse a form field: JSON, or a Python literal as v0.4 clients send it.

    Bytes that are not UTF-8 become the replacement character, as in v0.4.

    Args:
        name: The input's name, for messages.
        data: The field's bytes.
        limits: Limit on the number of elements.

    Raises:
        InvalidRequest: It is neither, or nested too deeply.
        PayloadTooLarge: It has more elements than the limits allow.
    """
    what = f"input {quoted(name, _SHOWN_CHARS)}"
    try:
        check_elements(data, what, limits.max_json_elements)
        return load_json(data)
    except (ValueError, PayloadTooLarge) as error:
        # Only the literal parser can tell the content of single quotes from elements.
        if isinstance(error, PayloadTooLarge) and b"'" not in data:
            raise
        text = data.removeprefix(_BYTE_ORDER_MARK).decode(errors="replace")
    try:
        return read_literal(text, what, limits.max_json_elements)
    except MalformedLiteral:
        raise InvalidRequest(
            f"{what} is neither JSON nor a Python literal: {_shown(text)}"
        ) from None


def _decode_images(
    body: memoryview,
    media_type: str,
    parameters: Mapping[str, str],
    signature: Signature,
    limits: RequestLimits,
) -> list[Any]:
    names = signature.input_names
    if media_type == "multipart/form-data":
        fields = _form_fields(body, media_type, parameters, limits)
        return [_image_field(name, fields) for name in names]
    # curl --data-binary and careless clients label an image as a form, too.
    if media_type == "application/x-www-form-urlencoded" and _is_text(body):
        fields = _form_fields(body, media_type, parameters, limits)
        return [_image_field(name, fields) for name in names]
    if _is_json(media_type):
        text = in_utf8(body, parameters.get("charset", ""), "the body")
        values = _json_images(text, names, limits)
        return [_decode_base64(name, value) for name, value in zip(names, values, strict=True)]
    if len(names) > 1:
        raise InvalidRequest(
            f"the model has {len(names)} image inputs; send multipart/form-data with a file for "
            f"each of {_join(names)}"
        )
    if not body:
        raise InvalidRequest(f"the body is empty; send an image for input {names[0]!r}")
    return [bytes(body)]


def _json_images(body: Buffer, names: tuple[str, ...], limits: RequestLimits) -> list[Any]:
    document = read_json(body, "the body", limits.max_json_elements)
    if isinstance(document, dict):
        for name in names:
            if name not in document:
                raise InvalidRequest(f"input {name!r} is missing; the body has {_join(document)}")
        return [document[name] for name in names]
    if isinstance(document, str) and len(names) == 1:
        return [document]
    if isinstance(document, list) and len(document) == len(names):
        return document
    raise InvalidRequest(
        f"send the images in base64 as a JSON object with the keys {_join(names)}, "
        f"got {_kind(document)}"
    )


def _image_field(name: str, fields: Fields) -> bytes:
    if name not in fields:
        raise _missing_input(name, fields)
    return image_value(name, fields[name].value)


def image_value(name: str, data: bytes) -> bytes:
    """Return the encoded image for an input from its bytes, which may be base64 text.

    Raises:
        InvalidRequest: It is empty, or text that is not base64.
    """
    if not data:
        raise InvalidRequest(f"the image for input {name!r} is empty")
    # No image format starts like base64 text; a file part may contain either.
    return _decode_base64(name, data) if _is_text(data) else data


def _decode_base64(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        value = value.encode(errors="replace")
    if not isinstance(value, bytes):
        raise InvalidRequest(
            f"the image for input {name!r} must be a base64 string, got {_kind(value)}"
        )
    match = _DATA_URI.match(value)
    text = value[match.end() :] if match else value
    try:
        # URL-encoded forms turn '+' into ' '; base64 itself never contains a space within a line.
        compact = text.replace(b" ", b"+").translate(None, _LINE_ENDS)
        image = base64.b64decode(compact, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(
            f"the image for input {name!r} is neither an image file nor base64: {error}"
        ) from None
    if not image:
        raise InvalidRequest(f"the image for input {name!r} is empty")
    return image


def _form_fields(
    body: memoryview, media_type: str, parameters: Mapping[str, str], limits: RequestLimits
) -> dict[str, Part]:
    """Return the first part of each name; v0.4 ignored repeated and unknown ones."""
    fields: dict[str, Part] = {}
    for part in form_parts(body, media_type, parameters, limits):
        fields.setdefault(part.name, part)
    return fields


def _missing_input(name: str, fields: Mapping[str, Any]) -> InvalidRequest:
    got = f"the form has {_join(fields)}" if fields else "the form has no fields"
    return InvalidRequest(f"input {name!r} is missing; {got}")


def _is_json(media_type: str) -> bool:
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def _looks_like_json(body: memoryview) -> bool:
    head = bytes(body[:16]).removeprefix(_BYTE_ORDER_MARK)
    return head.lstrip()[:1] in (b"[", b"{")


def _is_text(data: bytes | memoryview) -> bool:
    """Return whether bytes are ASCII text, as base64 and forms are; images never are."""
    head = bytes(data[:512])
    return all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), type(value).__name__)


def _join(names: Any) -> str:
    return quoted_names(names, _SHOWN_CHARS)


def _shown(value: Any) -> str:
    text = value[: _SHOWN_CHARS + 1] if isinstance(value, str) else quoted(value, _SHOWN_CHARS)
    return f"{text[:_SHOWN_CHARS]}..." if len(text) > _SHOWN_CHARS + 3 else text
