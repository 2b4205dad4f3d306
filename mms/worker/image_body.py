"""Decode a request's body into encoded images, one per input of the signature. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mms.archive.signature import Signature
from mms.errors import InvalidRequest
from mms.wire.frames import Buffer
from mms.wire.messages import RequestLimits
from mms.worker.base64_text import decode_base64
from mms.worker.form import Part, form_fields, in_utf8, is_json
from mms.worker.json_text import read_json
from mms.worker.names import joined, kind_of, missing_input

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
#: The key under which TensorFlow Serving and KServe expect the base64 of binary data.
BASE64_KEY = "b64"
#: A name that their clients often give the only input.
_USUAL_NAME = "image_bytes"


def decode_images(
    body: memoryview,
    media_type: str,
    parameters: Mapping[str, str],
    signature: Signature,
    limits: RequestLimits,
) -> list[bytes]:
    """Return the bytes of one encoded image per input.

    Raises:
        InvalidRequest: The body is malformed, or an image is missing or not base64.
        UnsupportedMedia: The charset of its text is unknown.
        PayloadTooLarge: It has more fields or elements than the limits allow.
    """
    names = signature.input_names
    is_urlencoded = media_type == "application/x-www-form-urlencoded"
    # curl --data-binary and careless clients label an image as a form, too.
    if media_type == "multipart/form-data" or (is_urlencoded and _is_text(body)):
        fields = form_fields(body, media_type, parameters, limits)
        return [_field(name, fields, is_urlencoded) for name in names]
    if is_json(media_type):
        return _json_images(in_utf8(body, parameters.get("charset", ""), "the body"), names, limits)
    if len(names) > 1:
        raise InvalidRequest(
            f"the model has {len(names)} image inputs; send multipart/form-data with a file for "
            f"each of {joined(names)}"
        )
    if not body:
        raise InvalidRequest(f"the body is empty; send an image for input {names[0]!r}")
    return [bytes(body)]


def image_value(name: str, data: bytes, may_lack_plus: bool = False) -> bytes:
    """Return the encoded image for an input from its bytes, which may be base64 text.

    Args:
        name: The input's name, for messages.
        data: The bytes.
        may_lack_plus: As for `decode_base64`.

    Raises:
        InvalidRequest: It is empty, or text that is not base64.
    """
    if not data:
        raise InvalidRequest(f"the image for input {name!r} is empty")
    # No image format starts like base64 text; a file part may contain either.
    if _is_text(data.removeprefix(_BYTE_ORDER_MARK)):
        return _from_base64(name, data, may_lack_plus)
    return data


def images_of_instance(instance: Any, names: tuple[str, ...], where: str) -> list[bytes]:
    """Return the images of one instance of the V1 protocol.

    It is base64 text, ``{"b64": TEXT}``, or an object with one of both for each input.

    Args:
        instance: Parsed JSON.
        names: The inputs.
        where: Its name, for messages.

    Raises:
        InvalidRequest: It is something else.
    """
    if len(names) == 1 and (isinstance(instance, str) or _is_wrapped(instance)):
        return [_json_image(names[0], instance)]
    if not isinstance(instance, dict):
        raise InvalidRequest(
            f'{where} must be base64 text or {{"{BASE64_KEY}": TEXT}}, or an object with the keys '
            f"{joined(names)}, got {kind_of(instance)}"
        )
    if len(names) == 1 and names[0] not in instance and _USUAL_NAME in instance:
        return [_json_image(names[0], instance[_USUAL_NAME])]
    for name in names:
        if name not in instance:
            raise missing_input(name, instance, where)
    return [_json_image(name, instance[name]) for name in names]


def _field(name: str, fields: Mapping[str, Part], may_lack_plus: bool) -> bytes:
    if name not in fields:
        raise missing_input(name, fields, "the form")
    return image_value(name, fields[name].value, may_lack_plus)


def _json_images(text: Buffer, names: tuple[str, ...], limits: RequestLimits) -> list[bytes]:
    document = read_json(text, "the body", limits.max_json_elements)
    if isinstance(document, list) and len(document) == len(names):
        return [_json_image(name, value) for name, value in zip(names, document, strict=True)]
    if isinstance(document, dict) and not any(name in document for name in names):
        instances = document.get("instances")
        if isinstance(instances, list):
            if len(instances) != 1:
                raise InvalidRequest(
                    f"the body has {len(instances)} instances, and this route takes one request; "
                    "send several to /v1/models/MODEL:predict"
                )
            return images_of_instance(instances[0], names, "instances[0]")
        document = document.get("inputs", document)
    if isinstance(document, (str, dict)):
        return images_of_instance(document, names, "the body")
    raise InvalidRequest(
        f"send the images in base64 as a JSON object with the keys {joined(names)}, "
        f"got {kind_of(document)}"
    )


def _json_image(name: str, value: Any) -> bytes:
    if _is_wrapped(value):
        value = value[BASE64_KEY]
    if not isinstance(value, str):
        raise InvalidRequest(
            f"the image for input {name!r} must be a base64 string, got {kind_of(value)}"
        )
    return _from_base64(name, value.encode(errors="replace"))


def _is_wrapped(value: Any) -> bool:
    return isinstance(value, dict) and list(value) == [BASE64_KEY]


def _from_base64(name: str, text: bytes, may_lack_plus: bool = False) -> bytes:
    try:
        image = decode_base64(text, may_lack_plus)
    except ValueError as error:
        raise InvalidRequest(
            f"the image for input {name!r} is neither an image file nor base64: {error}"
        ) from None
    if not image:
        raise InvalidRequest(f"the image for input {name!r} is empty")
    return image


def _is_text(data: bytes | memoryview) -> bool:
    """Return whether bytes are ASCII text, as base64 and forms are; images never are."""
    head = bytes(data[:512])
    return all(32 <= byte < 127 or byte in (9, 10, 13) for byte in head)
