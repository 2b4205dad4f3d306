"""Decode a request's body into the inputs of a service, by the model's signature.

Every client error raises InvalidRequest (or UnsupportedMedia), which names the input, the expected
and the actual value. Pure: no mxnet, no sockets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from mms.quoting import quoted
from mms.wire.frames import Buffer
from mms.wire.messages import Request, RequestLimits
from mms.worker.array_body import array_type, decode_array, decode_arrays
from mms.worker.envelope import object_as_input, values_of
from mms.worker.form import Part, form_fields, in_utf8, is_form, is_json, parse_media_type
from mms.worker.image_body import decode_images
from mms.worker.json_text import check_elements, load_json, read_json, unmarked
from mms.worker.literal import MalformedLiteral, read_literal
from mms.worker.names import kind_of, missing_input, shown

#: The default limits of a server.
DEFAULT_LIMITS = RequestLimits()
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SHOWN_CHARS = 60

Fields = Mapping[str, Part]


def decode_inputs(
    request: Request,
    signature: Signature,
    limits: RequestLimits = DEFAULT_LIMITS,
    takes_arrays: bool = False,
) -> list[Any]:
    """Return one value per input of the signature.

    JSON inputs become lists, or arrays if the service takes them and the body holds some; image
    inputs become the bytes of an encoded image.

    Args:
        request: The request.
        signature: The model's signature.
        limits: Limits on what it may cost.
        takes_arrays: Whether the service makes arrays of its inputs itself, so that no input can
            be an object.

    Raises:
        InvalidRequest: The body is malformed, or an input is missing or of the wrong type.
        UnsupportedMedia: The model does not accept the content type or charset.
        PayloadTooLarge: The body has more fields or elements than the limits allow.
    """
    media_type, parameters = parse_media_type(request.meta.content_type)
    if signature.takes_images:
        return decode_images(request.body, media_type, parameters, signature, limits)
    return _decode_values(request.body, media_type, parameters, signature, limits, takes_arrays)


def _decode_values(
    body: memoryview,
    media_type: str,
    parameters: Mapping[str, str],
    signature: Signature,
    limits: RequestLimits,
    takes_arrays: bool,
) -> list[Any]:
    if is_json(media_type):
        text = in_utf8(body, parameters.get("charset", ""), "the body")
        return _json_document(text, signature, limits, takes_arrays)
    kind = array_type(media_type, body)
    if kind is not None:
        return decode_arrays(kind, body, parameters, signature, limits, takes_arrays)
    # `curl -d '[...]'` labels JSON as a form by default; no field name begins with a bracket.
    is_json_in_disguise = media_type != "multipart/form-data" and _looks_like_json(body)
    if is_form(media_type) and not is_json_in_disguise:
        fields = form_fields(body, media_type, parameters, limits)
        return [_field(spec, fields, signature, limits, takes_arrays) for spec in signature.inputs]
    if media_type and not is_form(media_type):
        raise UnsupportedMedia(
            f"content type {quoted(media_type, _SHOWN_CHARS)} is not supported for this model; "
            "send application/json, multipart/form-data, application/x-www-form-urlencoded, "
            "application/jsonlines, text/csv or application/x-npy"
        )
    charset = "" if media_type else parameters.get("charset", "")
    return _json_document(in_utf8(body, charset, "the body"), signature, limits, takes_arrays)


def _json_document(
    body: Buffer, signature: Signature, limits: RequestLimits, takes_arrays: bool
) -> list[Any]:
    """Parse a JSON body: an object keyed by input names, or the value of a sole input."""
    names = signature.input_names
    if not body:
        raise InvalidRequest(f"the body is empty; send a JSON value for input {names[0]!r}")
    document = read_json(body, "the body", limits.max_json_elements)
    if isinstance(document, dict) and any(name in document for name in names):
        for name in names:
            if name not in document:
                raise missing_input(name, document, "the body", names)
        values = [document[name] for name in names]
    elif len(names) > 1 or (takes_arrays and _has_objects(document)):
        values = values_of(document, names)
    else:
        values = [document]
    return [as_list(*pair, takes_arrays) for pair in zip(names, values, strict=True)]


def _has_objects(document: Any) -> bool:
    """Return whether a document is an object, or a list that begins with one."""
    first = document[0] if isinstance(document, list) and document else document
    return isinstance(first, dict)


def _field(
    spec: TensorSpec,
    fields: Fields,
    signature: Signature,
    limits: RequestLimits,
    takes_arrays: bool,
) -> Any:
    name = spec.name
    if name not in fields:
        raise missing_input(name, fields, "the form", signature.input_names)
    part = fields[name]
    what = f"input {quoted(name, _SHOWN_CHARS)}"
    kind = array_type(part.media_type, part.value)
    if kind is not None:
        parameters = {"charset": part.charset}
        return decode_array(kind, part.value, parameters, spec, what, limits, takes_arrays)
    text = bytes(in_utf8(part.value, part.charset, what))
    return as_list(name, parse_literal(name, text, limits), takes_arrays)


def json_value(name: str, data: bytes, limits: RequestLimits = DEFAULT_LIMITS) -> Any:
    """Return the value of an input from its text: a list, or an object wrapped in a list.

    Raises:
        InvalidRequest: It is neither JSON nor a Python literal, or is neither list nor object.
        PayloadTooLarge: It has more elements than the limits allow.
    """
    return as_list(name, parse_literal(name, data, limits))


def as_list(name: str, value: Any, takes_arrays: bool = False) -> Any:
    """Wrap a bare object in a list; refuse the types that v0.4 refused.

    Raises:
        InvalidRequest: It is neither list nor object, or an object where only arrays are taken.
    """
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        if takes_arrays:
            raise object_as_input(name, value)
        return [value]
    if isinstance(value, tuple):
        return list(value)
    raise InvalidRequest(
        f"input {name!r} must be a list or an object, got {kind_of(value)}: {shown(value)}"
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
        text = _text(data)
    try:
        return read_literal(text, what, limits.max_json_elements)
    except MalformedLiteral:
        raise InvalidRequest(
            f"{what} is neither JSON nor a Python literal: {shown(text)}"
        ) from None


def _text(data: bytes) -> str:
    try:
        return str(unmarked(data), "utf-8", "replace")
    except UnicodeDecodeError:
        return data.decode(errors="replace")


def _looks_like_json(body: memoryview) -> bool:
    head = bytes(body[:16]).removeprefix(_BYTE_ORDER_MARK)
    return head.lstrip()[:1] in (b"[", b"{")
