"""HTTP/1.1 as bytes: requests to send, and where an answer ends."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_END_OF_HEAD = b"\r\n\r\n"
_LENGTH = b"\r\ncontent-length:"
_CHUNKED = b"\r\ntransfer-encoding: chunked"
_STATUS = slice(9, 12)
_WITHOUT_BODY = (b"204", b"304")


class NoLength(ValueError):
    """Nothing says where an answer ends."""


def encode_request(
    method: str,
    path: str,
    body: bytes = b"",
    content_type: str = "application/json",
    host: str = "127.0.0.1",
    more: str = "",
) -> bytes:
    """Return a request as bytes on the wire.

    Args:
        method: Of the request.
        path: Of the request, with the query.
        body: Sent with its length.
        content_type: Of the body.
        host: Host header.
        more: Further header lines, each with its line end.
    """
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {content_type}\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def answer_length(received: bytes) -> int:
    """Return the length of the answer that `received` begins with, or 0 until it is complete.

    Raises:
        NoLength: The answer has neither a length nor chunks.
    """
    end = received.find(_END_OF_HEAD)
    if end < 0:
        return 0
    head = received[:end].lower()
    body = end + len(_END_OF_HEAD)
    at = head.find(_LENGTH)
    if at >= 0:
        whole = body + int(head[at + len(_LENGTH) :].split(b"\r\n", 1)[0])
        return whole if len(received) >= whole else 0
    if _CHUNKED in head:
        return _end_of_chunks(received, body)
    if head[_STATUS] in _WITHOUT_BODY:
        return body
    raise NoLength("an answer without a length")


def _end_of_chunks(received: bytes, at: int) -> int:
    while (line_end := received.find(b"\r\n", at)) >= 0:
        size = int(received[at:line_end].partition(b";")[0], 16)
        if not size:
            # Trailers, if there are any, end as a head does.
            end = received.find(_END_OF_HEAD, line_end)
            return end + len(_END_OF_HEAD) if end >= 0 else 0
        at = line_end + size + 2 * len(b"\r\n")
    return 0


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer with a length; header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def decode(cls, answer: bytes) -> Reply:
        """Return the parts of a whole answer."""
        head, _, body = answer.partition(_END_OF_HEAD)
        first, *lines = head.decode().split("\r\n")
        pairs = (line.partition(":") for line in lines)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        return cls(int(first.split()[1]), headers, body)

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The error's code, or "" if the answer is none of our errors."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return str(self.json()["error"]["code"])
        return ""
