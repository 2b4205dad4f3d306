"""The request and response interface that the HTTP and S3 sources share.

The seam between `download`, which knows files, and `http` and `s3`, which know networks.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field

from mms.fetch.admission import Policy
from mms.fetch.location import Location

#: Bytes read at a time.
CHUNK_BYTES = 256 << 10
#: What a server may send as a validator: longer ones are not kept.
_MAX_VALIDATOR_CHARS = 512


class Interrupted(Exception):
    """A transient failure: the peer did not answer, or not to the end. Another attempt may succeed.

    Attributes:
        starts_over: Whether it cannot resume from what was received before.
    """

    def __init__(self, reason: str, starts_over: bool = False) -> None:
        super().__init__(reason)
        self.starts_over = starts_over


@dataclass(frozen=True, slots=True)
class Validator:
    """What a server says to tell one version of a file from another."""

    etag: str = ""
    last_modified: str = ""

    @property
    def strong(self) -> str:
        """The one that stands for the very same bytes, as resuming needs; "" without one."""
        return self.last_modified if not self.etag or self.etag.startswith("W/") else self.etag


def make_validator(etag: str | None, last_modified: str | None) -> Validator:
    """Return the validator in an answer's headers."""
    values = [
        value if value and len(value) <= _MAX_VALIDATOR_CHARS and value.isprintable() else ""
        for value in (etag, last_modified)
    ]
    return Validator(*values)


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for the peer, in seconds.

    Attributes:
        connect_s: For a connection, its TLS handshake included.
        read_s: For the next bytes; for all headers of a response, both together.
    """

    connect_s: float = 10.0
    read_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        location: What to request; remote.
        offset: Bytes of it that are here already; the rest is requested.
        validator: Of these bytes. With offset 0, of the whole file that is here already: it is
            only sent again if it has changed.
        policy: What may be connected to; None permits everything.
        timeouts: How long to wait.
    """

    location: Location
    offset: int = 0
    validator: Validator = field(default_factory=Validator)
    policy: Policy | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response whose body is the file, or its rest.

    Attributes:
        start: Where in the file `read` begins: the offset that was requested, or 0.
        total: Length of the whole file, if the peer says it.
        validator: Of this file.
        read: Returns the next bytes, and none at the end, or where the peer stopped before
            `total`. Raises Interrupted.
    """

    start: int
    total: int | None
    validator: Validator
    read: Callable[[], Awaitable[bytes]]


#: Answers a request; None means "not modified". Raises Interrupted, DownloadFailed or Forbidden.
Source = Callable[[Ask], AbstractAsyncContextManager[Answer | None]]
