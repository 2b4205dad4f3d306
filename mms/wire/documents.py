"""JSON documents on the wire, typed. Imports nothing of ours but errors and frames."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from mms.errors import ProtocolError
from mms.wire.frames import Buffer

T = TypeVar("T")

#: Maximum length of a reason in a message: the decoder's may quote the document.
_MAX_REASON = 200


class Document(Generic[T]):
    """One kind of document.

    Args:
        type_: Type of its content, as msgspec understands it.
        complaint: Message for a document that holds something else.
    """

    def __init__(self, type_: Any, complaint: str) -> None:
        self._decode = msgspec.json.Decoder(type_).decode
        self._complaint = complaint

    def encode(self, value: Any) -> bytes:
        """Serialise a value for `decode`; lone surrogates are escaped."""
        try:
            return _encode(value)
        except UnicodeEncodeError:
            # UTF-8 cannot hold lone surrogates: clients send them in Python literals and (as
            # undecodable bytes) in headers, and error messages quote both.
            return _encode(_escaped(msgspec.to_builtins(value, enc_hook=_plain)))

    def decode(self, data: Buffer) -> T:
        """Parse a document.

        Raises:
            ProtocolError: The bytes are not such a document.
        """
        try:
            value: T = self._decode(data)
            return value
        except msgspec.ValidationError as error:
            raise ProtocolError(f"{self._complaint}: {str(error)[:_MAX_REASON]}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ProtocolError(f"a frame's JSON is broken: {error}") from None


def _plain(value: Any) -> Any:
    """Convert an instance of a subclass, such as NumPy's float64, to its base type."""
    if isinstance(value, str):
        # Not str(value): a subclass may override __str__.
        return str.__str__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, int):
        return int.__int__(value)
    raise TypeError(f"a {type(value).__name__} cannot be sent to another process")


def _escaped(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_escaped(key): _escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_escaped(item) for item in value]
    return value


_encode = msgspec.json.Encoder(enc_hook=_plain).encode
