"""Decode a request's body into the inputs that a service gets, by the model's signature.

Every mistake of a client ends in InvalidRequest (or UnsupportedMedia), which names the input,
what was expected and what came. Pure: no mxnet, no sockets.
"""

from __future__ import annotations

import ast
import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

import multipart
import orjson

from mms.archive.signature import Signature
from mms.errors import InvalidRequest, UnsupportedMedia
from mms.protocol import Request

#: v0.4 clients send Python literals. The parser needs about a hundred times a literal's size and
#: recurses, so both are bounded; JSON, which is tried first, has neither problem.
MAX_LITERAL_BYTES = 1 << 20
MAX_LITERAL_DEPTH = 64
MAX_FORM_FIELDS = 256
_MAX_PART_HEADERS = 16
_DATA_URI = re.compile(rb"\s*data:[\w.+-]+/[\w.+-]+;base64,", re.ASCII)
_SHOWN_CHARS = 60

Fields = Mapping[str, bytes]


def decode_inputs(request: Request, signature: Signature) -> list[Any]:
    """Give one value per input of the signature.

    JSON inputs become lists; image inputs become the bytes of an encoded image.

    Raises:
        InvalidRequest: The body is malformed, or an input is missing or of the wrong kind.
        UnsupportedMedia: The content type is none that this model reads.
    """
    media_type, parameters = parse_media_type(request.meta.content_type)
    if signature.takes_images:
        return _decode_images(request.body, media_type, parameters, signature)
    return _decode_json_inputs(request.body, media_type, parameters, signature)


def parse_media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """Split a Content-Type header into its lower-case type and its parameters."""
    if ";" not in content_type:
        return content_type.strip().lower(), {}
    media_type, parameters = multipart.parse_options_header(content_type)
    return media_type.strip().lower(), parameters


def _decode_json_inputs(
    body: memoryview, media_type: str, parameters: Mapping[str, str], signature: Signature
) -> list[Any]:
    # `curl -d '[...]'` calls its JSON a form unless told otherwise; no field's name begins so.
    is_json_in_disguise = media_type != "multipart/form-data" and _looks_like_json(body)
    if is_form(media_type) and not is_json_in_disguise:
        fields = _form_fields(body, media_type, parameters)
        names = signature.input_names
        if not any(name in fields for name in names):
            raise _missing_input(names[0], fields)
        return [_json_field(name, fields) for name in names]
    if media_type and not is_form(media_type) and not _is_json(media_type):
        raise UnsupportedMedia(
            f"content type {media_type!r} is not supported for this model; send "
            "application/json, multipart/form-data or application/x-www-form-urlencoded"
        )
    return _json_document(body, signature)


def _json_document(body: memoryview, signature: Signature) -> list[Any]:
    """Read a JSON body: an object keyed by input names, or the value of a sole input."""
    names = signature.input_names
    if not body:
        raise InvalidRequest(f"the body is empty; send a JSON value for input {names[0]!r}")
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
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


def _json_field(name: str, fields: Fields) -> Any:
    if name not in fields:
        raise _missing_input(name, fields)
    return json_value(name, fields[name])


def json_value(name: str, data: bytes) -> Any:
    """Give the value of an input from its text: a list, or an object wrapped in one.

    Raises:
        InvalidRequest: It is neither JSON nor a Python literal, or holds something else.
    """
    return _as_list(name, parse_literal(name, data))


def _as_list(name: str, value: Any) -> Any:
    """Wrap a bare object; refuse what v0.4 refused too."""
    if isinstance(value, dict):
        return [value]
    if isinstance(value, list):
        return value
    if isinstance(value, tuple):
        return list(value)
    raise InvalidRequest(
        f"input {name!r} must be a list or an object, got {_kind(value)}: {_shown(value)}"
    )


def parse_literal(name: str, data: bytes) -> Any:
    """Read a form field: JSON, or a Python literal as v0.4 clients send it.

    Args:
        name: The input's name, for the messages.
        data: The field's bytes.

    Raises:
        InvalidRequest: It is neither, or a literal too large or too deep to read safely.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        reason = str(error)
    if len(data) > MAX_LITERAL_BYTES:
        raise InvalidRequest(
            f"input {name!r} is not valid JSON ({reason}), and with {len(data)} bytes too large "
            f"to be read as a Python literal (limit {MAX_LITERAL_BYTES}); send JSON"
        )
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"input {name!r} is not UTF-8 text (byte {error.start})") from None
    if _bracket_depth(text) > MAX_LITERAL_DEPTH:
        raise InvalidRequest(
            f"input {name!r} is nested deeper than {MAX_LITERAL_DEPTH} levels; send JSON"
        )
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise InvalidRequest(
            f"input {name!r} is neither JSON nor a Python literal: {_shown(text)}"
        ) from None


def _bracket_depth(text: str) -> int:
    """Bound the recursion of a parser: brackets, and the unary operators that nest likewise."""
    depth = deepest = 0
    for char in text:
        if char in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth -= 1
    run = max((len(match) for match in re.findall(r"(?:[-+~]\s*)+", text)), default=0)
    return deepest + run


def _decode_images(
    body: memoryview, media_type: str, parameters: Mapping[str, str], signature: Signature
) -> list[Any]:
    names = signature.input_names
    if media_type == "multipart/form-data":
        fields = _form_fields(body, media_type, parameters)
        return [_image_field(name, fields) for name in names]
    # curl --data-binary and clients without a thought for types call an image a form, too.
    if media_type == "application/x-www-form-urlencoded" and _is_text(body):
        fields = _form_fields(body, media_type, parameters)
        return [_image_field(name, fields) for name in names]
    if _is_json(media_type):
        values = _json_images(body, names)
        return [_decode_base64(name, value) for name, value in zip(names, values, strict=True)]
    if len(names) > 1:
        raise InvalidRequest(
            f"the model has {len(names)} image inputs; send multipart/form-data with a file for "
            f"each of {_join(names)}"
        )
    if not body:
        raise InvalidRequest(f"the body is empty; send an image for input {names[0]!r}")
    return [bytes(body)]


def _json_images(body: memoryview, names: tuple[str, ...]) -> list[Any]:
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
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
    return image_value(name, fields[name])


def image_value(name: str, data: bytes) -> bytes:
    """Give the encoded image for an input from its bytes, which may be base64 text.

    Raises:
        InvalidRequest: It is empty, or text that is no base64.
    """
    if not data:
        raise InvalidRequest(f"the image for input {name!r} is empty")
    # No image format starts like base64 text; a file part may hold either.
    return _decode_base64(name, data) if _is_text(data) else data


def _decode_base64(name: str, value: Any) -> bytes:
    if isinstance(value, str):
        value = value.encode()
    if not isinstance(value, bytes):
        raise InvalidRequest(
            f"the image for input {name!r} must be base64 text, got {_kind(value)}"
        )
    match = _DATA_URI.match(value)
    text = value[match.end() :] if match else value
    try:
        # urlencoded forms turn '+' into ' '; base64 itself never holds a space within a line.
        compact = b"".join(text.replace(b" ", b"+").split())
        image = base64.b64decode(compact, validate=True)
    except binascii.Error as error:
        raise InvalidRequest(
            f"the image for input {name!r} is neither an image file nor base64: {error}"
        ) from None
    if not image:
        raise InvalidRequest(f"the image for input {name!r} is empty")
    return image


def is_form(media_type: str) -> bool:
    """Whether a body of this type consists of named fields."""
    return media_type in ("multipart/form-data", "application/x-www-form-urlencoded")


def _form_fields(
    body: memoryview, media_type: str, parameters: Mapping[str, str]
) -> dict[str, bytes]:
    """Give the first value of each field; v0.4 ignored repeated and unknown ones."""
    fields: dict[str, bytes] = {}
    for name, _, value in form_parts(body, media_type, parameters):
        fields.setdefault(name, value)
    return fields


def form_parts(
    body: memoryview, media_type: str, parameters: Mapping[str, str]
) -> list[tuple[str, str, bytes]]:
    """Give (name, content type, value) of each field of a form, in its order.

    Only files have a content type; that of any other field is "".

    Raises:
        InvalidRequest: The form is malformed or has too many fields.
    """
    if media_type == "multipart/form-data":
        return _multipart_parts(body, parameters)
    try:
        # Latin-1 carries any byte through unchanged, percent-encoded or not; given bytes, parse_qsl
        # takes ASCII only.
        pairs = parse_qsl(
            str(body, "latin-1"),
            keep_blank_values=True,
            encoding="latin-1",
            max_num_fields=MAX_FORM_FIELDS,
        )
    except ValueError:
        raise InvalidRequest(f"the form has more than {MAX_FORM_FIELDS} fields") from None
    return [
        (key.encode("latin-1").decode(errors="replace"), "", value.encode("latin-1"))
        for key, value in pairs
    ]


def _multipart_parts(
    body: memoryview, parameters: Mapping[str, str]
) -> list[tuple[str, str, bytes]]:
    boundary = parameters.get("boundary", "")
    # RFC 2046 section 5.1.1 allows 70 characters; long ones have burnt CPU in other servers.
    if not 1 <= len(boundary) <= 70:
        raise InvalidRequest(
            "the multipart body has no boundary of 1 to 70 characters in its Content-Type; let "
            "the client library set that header"
        )
    parts: list[tuple[str, str, bytes]] = []
    name = type_ = ""
    chunks: list[bytes] = []
    try:
        with multipart.PushMultipartParser(
            boundary,
            content_length=len(body),
            max_segment_count=MAX_FORM_FIELDS,
            max_header_count=_MAX_PART_HEADERS,
        ) as parser:
            for event in parser.parse(bytes(body)):
                if isinstance(event, multipart.MultipartSegment):
                    name, chunks = event.name, []
                    # Of a mere field 1.x took no notice of the type.
                    is_file = event.filename is not None
                    type_ = parse_media_type(event.header("Content-Type", ""))[0] * is_file
                elif event:
                    chunks.append(bytes(event))
                else:
                    parts.append((name, type_, b"".join(chunks)))
    except multipart.MultipartError as error:
        raise InvalidRequest(f"the multipart body is malformed: {error}") from None
    except UnicodeError:
        raise InvalidRequest("the multipart body has a part header that is not UTF-8") from None
    return parts


def _missing_input(name: str, fields: Mapping[str, Any]) -> InvalidRequest:
    got = f"the form has {_join(fields)}" if fields else "the form has no fields"
    return InvalidRequest(f"input {name!r} is missing; {got}")


def _is_json(media_type: str) -> bool:
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def _looks_like_json(body: memoryview) -> bool:
    return bytes(body[:16]).lstrip()[:1] in (b"[", b"{")


def _is_text(data: bytes | memoryview) -> bool:
    """Whether bytes are ASCII text as far as base64 and forms go; images never are."""
    head = bytes(data[:512])
    return all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean"}
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), type(value).__name__)


def _join(names: Any) -> str:
    shown = [repr(str(name)[:_SHOWN_CHARS]) for name in list(names)[:8]]
    return ", ".join(shown) + (", ..." if len(names) > 8 else "") if shown else "nothing"


def _shown(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:
        return "a number of thousands of digits"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."
