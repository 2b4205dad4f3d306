"""Request ids: the client's own, or one that is unique across server processes."""

from __future__ import annotations

import itertools
import os
import re

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestIds:
    """Generates ids from a random part and a counter."""

    def __init__(self) -> None:
        self._prefix = os.urandom(6).hex()
        self._numbers = itertools.count(1)

    def of(self, *sent: str | None) -> str:
        """Return the first valid id of those sent by the client, or a new one."""
        for text in sent:
            if text is not None and _REQUEST_ID.fullmatch(text):
                return text
        return f"{self._prefix}-{next(self._numbers):x}"
