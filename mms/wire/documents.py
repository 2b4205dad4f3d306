"""JSON documents on the wire. Imports nothing of ours but errors and frames."""

from __future__ import annotations

from typing import Any

import orjson

from mms.errors import ProtocolError
from mms.wire.frames import Buffer


def dump(document: Any) -> bytes:
    """Serialise to what `load` reads; dataclasses become objects, lone surrogates are escaped."""
    try:
        return orjson.dumps(document)
    except TypeError:
        # Half a surrogate pair, which UTF-8 cannot hold: clients send them in Python literals and
        # (as bytes that are no text) in headers, and messages of errors quote both.
        if isinstance(document, dict):
            return orjson.dumps({key: _escaped(value) for key, value in document.items()})
        if isinstance(document, (list, tuple)):
            return orjson.dumps([_escaped(value) for value in document])
        raise


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    return value


def load(data: Buffer) -> Any:
    """Parse a document.

    Raises:
        ProtocolError: The bytes are no JSON.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"a frame's JSON is broken: {error}") from None
