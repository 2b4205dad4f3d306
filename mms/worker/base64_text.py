"""Read base64 as browsers, command lines and libraries write it. Pure.

Accepted besides the standard form: data URIs, the URL-safe alphabet, missing padding, line breaks
and spaces, quotes around the whole, a byte order mark.
"""

from __future__ import annotations

import base64
import re

_DATA_URI = re.compile(rb"\s*data:[^,]{0,256};base64,", re.ASCII | re.IGNORECASE)
_LINE_ENDS = b"\t\n\v\f\r"
_BLANKS = b" " + _LINE_ENDS
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
    text = text.removeprefix(_BYTE_ORDER_MARK)
    bare = text.strip(_BLANKS)
    if bare[:1] and bare[:1] in _QUOTES and bare[-1:] == bare[:1]:
        text = bare[1:-1]
    if match := _DATA_URI.match(text):
        text = text[match.end() :]
    compact = _without_blanks(text, may_lack_plus).translate(_STANDARD).rstrip(b"=")
    if len(compact) % 4 == 1:
        raise ValueError(f"{len(compact)} characters cannot be base64: is it cut short?")
    return base64.b64decode(compact + b"=" * (-len(compact) % 4), validate=True)


def _without_blanks(text: bytes, may_lack_plus: bool) -> bytes:
    """Return text without line ends; a space is dropped, or was a ``+``."""
    lines = text.translate(None, _LINE_ENDS)
    if b" " not in lines:
        return lines
    inner = lines.strip(b" ")
    compact = inner.replace(b" ", b"")
    # Text that went through a form earlier may have lost its '+', too; then only the length tells.
    if not may_lack_plus and (len(compact) % 4 == 0 or len(inner) % 4):
        return compact
    # A '+' at either end may have become a space that looks like padding of the field.
    has_lost_ends = len(lines) % 4 == 0 or len(inner) % 4 == 1
    return (lines if has_lost_ends else inner).replace(b" ", b"+")
