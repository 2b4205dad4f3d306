"""Read base64 as browsers, command lines and libraries write it. Pure.

Accepted besides the standard form: data URIs, the URL-safe alphabet, missing padding, line breaks
and spaces, quotes around the whole, a byte order mark.
"""

from __future__ import annotations

import base64
import re

_DATA_URI = re.compile(rb"data:[^,]{0,256};base64,", re.ASCII | re.IGNORECASE)
_BLANKS = b" \t\n\v\f\r"
_QUOTES = b"\"'"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_STANDARD = bytes.maketrans(b"-_", b"+/")


def decode_base64(text: bytes, may_lack_plus: bool = False) -> bytes:
    """Return the bytes that a base64 text stands for.

    Args:
        text: The text.
        may_lack_plus: Whether every ``+`` may have become a space, as in a URL-encoded form whose
            sender did not escape it.

    Raises:
        ValueError: It is not base64; the message says why.
    """
    text = text.removeprefix(_BYTE_ORDER_MARK).strip(_BLANKS)
    if text[:1] and text[:1] in _QUOTES and text[-1:] == text[:1]:
        text = text[1:-1].strip(_BLANKS)
    if match := _DATA_URI.match(text):
        text = text[match.end() :]
    compact = _without_blanks(text, may_lack_plus).translate(_STANDARD).rstrip(b"=")
    if len(compact) % 4 == 1:
        raise ValueError(f"{len(compact)} characters cannot be base64: is it cut short?")
    return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)


def _without_blanks(text: bytes, may_lack_plus: bool) -> bytes:
    lines = text.translate(None, b"\t\n\v\f\r")
    if b" " not in lines:
        return lines
    compact = lines.replace(b" ", b"")
    # Text that went through a form earlier may have lost its '+', too; then only the length tells.
    if may_lack_plus or (len(compact) % 4 and not len(lines) % 4):
        return lines.replace(b" ", b"+")
    return compact
