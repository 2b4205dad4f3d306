"""Parse forms, URL-encoded or multipart, in time linear in their size. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from encodings.aliases import aliases

import multipart
import numpy as np

from mms.errors import InvalidRequest, PayloadTooLarge, UnsupportedMedia
from mms.wire.frames import Buffer
from mms.wire.messages import RequestLimits

_MAX_PART_HEADERS = 16
#: RFC 2046 section 5.1.1; long ones have cost other servers much CPU time.
_MAX_BOUNDARY_CHARS = 70
#: Bytes decoded at once, which bounds the memory for the positions of escapes.
_STEP_BYTES = 1 << 20
_NO_DIGIT = 255
_HEX_VALUES = np.full(256, _NO_DIGIT, np.uint8)
for _value, _digits in enumerate(zip(b"0123456789abcdef", b"0123456789ABCDEF", strict=True)):
    _HEX_VALUES[list(_digits)] = _value

_UTF_8 = frozenset({"utf_8", "ascii"})
#: Text codecs that take linear time. Others in Python do not (punycode, idna), or are not for text.
_CODECS = frozenset(
    {
        *_UTF_8, "utf_16", "utf_16_be", "utf_16_le", "utf_32", "utf_32_be", "utf_32_le", "latin_1",
        *(f"iso8859_{part}" for part in range(2, 17)), *(f"cp125{page}" for page in range(9)),
        "koi8_r", "koi8_u", "mac_roman", "shift_jis", "cp932", "euc_jp", "gb2312", "gbk",
        "gb18030", "big5", "euc_kr", "cp949",
    }
)  # fmt: skip
#: For any other name, `codecs` would search for a module and cache the name for ever.
_CODEC_NAMES = {name: name for name in _CODECS} | {
    alias: name for alias, name in aliases.items() if name in _CODECS
}


@dataclass(frozen=True, slots=True)
class Part:
    """One field of a form.

    Attributes:
        name: Its name.
        media_type: Lower-case media type of a file; "" for any other field.
        value: Its bytes.
        charset: Charset of its text, as sent; "" if the form does not state one.
    """

    name: str
    media_type: str
    value: bytes
    charset: str


def parse_media_type(content_type: str) -> tuple[str, dict[str, str]]:
    """Split a Content-Type header into its lower-case media type and its parameters."""
    if ";" not in content_type:
        return content_type.strip().lower(), {}
    media_type, parameters = multipart.parse_options_header(content_type)
    return media_type.strip().lower(), parameters


def is_form(media_type: str) -> bool:
    """Whether a body of this type consists of named fields."""
    return media_type in ("multipart/form-data", "application/x-www-form-urlencoded")


def is_json(media_type: str) -> bool:
    """Whether a body of this type is a JSON document."""
    return media_type in ("application/json", "text/json") or media_type.endswith("+json")


def form_fields(
    body: memoryview, media_type: str, parameters: Mapping[str, str], limits: RequestLimits
) -> dict[str, Part]:
    """Return the first part of each name; v0.4 ignored repeated and unknown ones.

    Raises:
        InvalidRequest: The form is malformed.
        PayloadTooLarge: It is too long, or has too many fields.
    """
    fields: dict[str, Part] = {}
    for part in form_parts(body, media_type, parameters, limits):
        fields.setdefault(part.name, part)
    return fields


def form_parts(
    body: memoryview,
    media_type: str,
    parameters: Mapping[str, str],
    limits: RequestLimits,
    is_1x: bool = False,
) -> list[Part]:
    """Return the fields of a form, in order.

    Args:
        body: The form.
        media_type: Its media type.
        parameters: Parameters of its media type.
        limits: Limits on its length and the number of its fields.
        is_1x: Whether the fields are those that 1.x saw. URL-encoded ones are valid UTF-8, and a
            last name without ``=`` is none. A file without a type is application/octet-stream.

    Raises:
        InvalidRequest: The form is malformed.
        PayloadTooLarge: It is too long, or has too many fields.
    """
    if media_type == "multipart/form-data":
        return _multipart_parts(body, parameters, limits, is_1x)
    return _urlencoded_parts(body, parameters.get("charset", ""), limits, is_1x)


def in_utf8(data: Buffer, charset: str, what: str) -> Buffer:
    """Transcode text to UTF-8.

    Without a charset it is returned unchanged: the JSON reader has its own rules for that.

    Args:
        data: The text.
        charset: Its charset as sent, "" if unknown.
        what: Its name, for messages.

    Raises:
        UnsupportedMedia: The charset is unknown.
        InvalidRequest: The text is not in that charset.
    """
    if not charset:
        return data
    codec = _CODEC_NAMES.get(charset.strip().lower().replace("-", "_").replace(" ", "_"))
    if codec is None:
        raise UnsupportedMedia(
            f"{what} has the unknown charset {charset[:60]!r}; send UTF-8 instead"
        )
    try:
        text = str(data, codec)
    except UnicodeDecodeError as error:
        raise InvalidRequest(
            f"{what} is not in its charset {charset[:60]!r} (byte {error.start}); send UTF-8"
        ) from None
    return data if codec in _UTF_8 else text.encode(errors="surrogatepass")


def _urlencoded_parts(
    body: memoryview, charset: str, limits: RequestLimits, is_1x: bool
) -> list[Part]:
    if len(body) > limits.max_form_bytes:
        raise PayloadTooLarge(
            f"the form is longer than max_form_bytes ({limits.max_form_bytes}); start the server "
            "with --max-form-bytes to allow more, or send multipart/form-data or JSON"
        )
    data = bytes(body)
    if data.count(b"&") >= limits.max_form_fields:
        raise _too_many_fields(limits)
    fields = data.split(b"&")
    if is_1x and b"=" not in fields[-1]:
        fields.pop()
    parts = []
    for field in fields:
        if field:
            name, _, value = field.replace(b"+", b" ").partition(b"=")
            text = unquoted(name).decode(errors="replace")
            value = unquoted(value)
            if is_1x:
                value = value.decode(errors="replace").encode()
            parts.append(Part(text, "", value, charset))
    return parts


def unquoted(data: bytes) -> bytes:
    """Decode percent escapes; malformed ones are kept."""
    if b"%" not in data:
        return data
    steps = []
    at = 0
    while at < len(data):
        end = at + _STEP_BYTES
        # Never split an escape.
        cut = data.rfind(b"%", end - 2, end)
        end = end if cut < 0 or end >= len(data) else cut
        steps.append(_unquoted_step(np.frombuffer(data, np.uint8)[at:end]))
        at = end
    return b"".join(steps)


def _unquoted_step(data: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bytes:
    at = np.flatnonzero(data[:-2] == ord("%"))
    high, low = _HEX_VALUES[data[at + 1]], _HEX_VALUES[data[at + 2]]
    is_escape = (high != _NO_DIGIT) & (low != _NO_DIGIT)
    at = at[is_escape]
    result = data.copy()
    result[at] = high[is_escape] << 4 | low[is_escape]
    is_left = np.ones(len(data), np.bool_)
    is_left[at + 1] = is_left[at + 2] = False
    return result[is_left].tobytes()


def _multipart_parts(
    body: memoryview, parameters: Mapping[str, str], limits: RequestLimits, is_1x: bool
) -> list[Part]:
    boundary = parameters.get("boundary", "")
    if not 1 <= len(boundary) <= _MAX_BOUNDARY_CHARS:
        raise InvalidRequest(
            f"the multipart body has no boundary of 1 to {_MAX_BOUNDARY_CHARS} characters in its "
            "Content-Type; let the client library set that header"
        )
    parts: list[Part] = []
    chunks: list[bytes] = []
    segment: multipart.MultipartSegment | None = None
    try:
        with multipart.PushMultipartParser(
            boundary, content_length=len(body), max_header_count=_MAX_PART_HEADERS
        ) as parser:
            for event in parser.parse(bytes(body)):
                if isinstance(event, multipart.MultipartSegment):
                    if len(parts) == limits.max_form_fields:
                        raise _too_many_fields(limits)
                    segment, chunks = event, []
                elif event:
                    chunks.append(bytes(event))
                elif segment is not None:
                    parts.append(_part(segment, b"".join(chunks), is_1x))
    except multipart.MultipartError as error:
        raise InvalidRequest(f"the multipart body is malformed: {error}") from None
    except UnicodeError:
        raise InvalidRequest("the multipart body has a part header that is not UTF-8") from None
    return parts


def _part(segment: multipart.MultipartSegment, value: bytes, is_1x: bool) -> Part:
    default = "application/octet-stream" if is_1x else ""
    media_type, parameters = parse_media_type(segment.header("Content-Type", default))
    if segment.filename is None:
        # 1.x ignored the media type of fields that are not files.
        media_type = ""
    return Part(segment.name, media_type, value, parameters.get("charset", ""))


def _too_many_fields(limits: RequestLimits) -> PayloadTooLarge:
    return PayloadTooLarge(
        f"the form has more than max_form_fields ({limits.max_form_fields}) fields; start the "
        "server with --max-form-fields to allow more"
    )
