"""What a measured load sends, over and over, and how it tells a right answer."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Iterator

#: Stands in a body where each request is to carry what no other does.
TOKEN = b"@request--token@"
_STATUS_200 = b"HTTP/1.1 200 "


def tokens() -> Iterator[bytes]:
    """Return tokens as long as TOKEN, no two alike, those of other processes included."""
    first = secrets.randbits(32)
    return (b"%08x%08x" % (first, number) for number in itertools.count())


class Requests:
    """The requests of all clients of a load.

    Without TOKEN in it, all are the same. With it, each has a token in its place, and a right
    answer has the same one: neither a swapped nor a stale answer passes.

    Args:
        request: On the wire.
        answer: Part of every right answer.
    """

    def __init__(self, request: bytes, answer: bytes = b"") -> None:
        self._request = request
        self._answer = answer
        self._tokens = tokens() if TOKEN in request else None

    def next(self) -> tuple[bytes, bytes]:
        """Return a request, and its token, which is empty for those that have none."""
        if self._tokens is None:
            return self._request, b""
        token = next(self._tokens)
        return self._request.replace(TOKEN, token), token

    def is_right(self, answer: bytes, token: bytes) -> bool:
        """Tell whether an answer is that to the request with this token."""
        return answer.startswith(_STATUS_200) and token in answer and self._answer in answer
