"""Check what a handler sets besides the body: headers, content type, status, reason phrase.

HTTP/1.1 has one byte stream per connection. A length, a transfer coding or a line break from a
handler would shift the boundary between its answer and the next one, so only the server sets
these, and everything else is checked here, before the answer leaves the worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeGuard

from mms.errors import InvalidServiceOutput

#: Accepted by common clients and proxies; the server's own limit on request headers is the same.
MAX_HEADER_BYTES = 16 << 10
MAX_HEADERS = 100
_MAX_REASON_CHARS = 256
#: Framing (RFC 9112), hop-by-hop (RFC 9110, section 7.6.1), and headers that the server sets.
#: MMS 1.x overwrote the first ones, too. Proxy-* is dropped as well.
_OURS = frozenset(
    (
        "connection",
        "content-length",
        "date",
        "inference-header-content-length",
        "keep-alive",
        "server",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    )
)
_OURS_PREFIX = "proxy-"
_CONTENT_TYPE = "content-type"
#: RFC 9110, section 5.6.2.
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
#: RFC 9110, section 5.5: visible text, spaces and tabs; no other controls.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: Statuses without a body by definition; a client would read one as the next answer's head.
_WITHOUT_BODY = (204, 205, 304)


def checked_headers(given: Mapping[Any, Any]) -> tuple[dict[str, str], str]:
    """Return the headers that may be sent, and the content type ("" if none was set).

    Names ignore case; of several spellings, the last one set counts.

    Raises:
        InvalidServiceOutput: A name or a value cannot be sent, or a limit is exceeded.
    """
    if len(given) > MAX_HEADERS:
        raise InvalidServiceOutput(
            f"the handler set {len(given)} headers, more than the {MAX_HEADERS} allowed"
        )
    found: dict[str, tuple[str, str]] = {}
    size = 0
    for raw_name, raw_value in given.items():
        name, value = str(raw_name), str(raw_value).strip(" \t")
        if not _TOKEN.fullmatch(name):
            raise InvalidServiceOutput(
                f"the handler set a header named {name[:100]!r}, which HTTP does not allow"
            )
        key = name.lower()
        if key in _OURS or key.startswith(_OURS_PREFIX):
            continue
        check_text(value, f"the header {name[:100]}")
        size += len(name) + len(value.encode())
        found.pop(key, None)
        found[key] = (name, value)
    if size > MAX_HEADER_BYTES:
        raise InvalidServiceOutput(
            f"the handler set headers of {size} bytes, more than the {MAX_HEADER_BYTES} allowed"
        )
    content_type = found.pop(_CONTENT_TYPE, ("", ""))[1]
    return dict(found.values()), content_type


def check_text(text: str, what: str) -> None:
    """Refuse a string that cannot be sent in the head of an answer.

    Raises:
        InvalidServiceOutput: It contains control characters or lone surrogates.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        is_clean = False
    else:
        is_clean = _CONTROL.search(text) is None
    if not is_clean:
        raise InvalidServiceOutput(
            f"the handler set {what} to {text[:100]!r}, which contains characters that HTTP does "
            "not allow there"
        )


def checked_status(status: object) -> int:
    """Return a final HTTP status.

    Raises:
        InvalidServiceOutput: It is not a valid status, or an interim one (1xx).
    """
    if not is_final_status(status):
        raise InvalidServiceOutput(
            f"the handler set the status {_short(status)}; it must be an integer from 200 to 999"
        )
    return int(status)


def is_final_status(status: object) -> TypeGuard[int]:
    """Return whether an answer can have this status; from 600 they are the model's own."""
    return isinstance(status, int) and not isinstance(status, bool) and 200 <= status <= 999


def checked_reason(phrase: object) -> str:
    """Return the reason phrase of a status on one line; "" for the standard one.

    Raises:
        InvalidServiceOutput: It cannot be sent in the head of an answer.
    """
    reason = " ".join(str(phrase or "").split())[:_MAX_REASON_CHARS]
    check_text(reason, "the reason phrase")
    return reason


def allows_body(status: int) -> bool:
    """Return whether an answer with this status has a body."""
    return status not in _WITHOUT_BODY


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."
