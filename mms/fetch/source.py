"""What a place that archives are fetched from is asked and answers, be it HTTP or S3.

The seam between `download`, which knows files, and `http` and `s3`, which know networks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from mms.fetch.admission import Policy
from mms.fetch.location import Location

#: Bytes taken off the network at a time.
CHUNK_BYTES = 256 << 10
#: What a server may send as a validator: longer ones are not kept.
_MAX_VALIDATOR_CHARS = 512


class Interrupted(Exception):
    """The other end did not answer, or not to the end; another attempt may succeed.

    Attributes:
        starts_over: Whether what was received before is of no use to it.
    """

    def __init__(self, reason: str, starts_over: bool = False) -> None:
        super().__init__(reason)
        self.starts_over = starts_over


@dataclass(frozen=True, slots=True)
class Validator:
    """What a server says by which to tell whether a file has changed."""

    etag: str = ""
    last_modified: str = ""

    @property
    def strong(self) -> str:
        """The one that stands for the very same bytes, to go on in the middle; "" without one."""
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
    """How long to wait for the other end, in seconds.

    Attributes:
        connect_s: For a connection, its encryption included.
        read_s: For the next bytes.
    """

    connect_s: float = 10.0
    read_s: float = 30.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request.

    Attributes:
        location: What for; remote.
        offset: Bytes of it that are here already; the rest is asked for.
        validator: Of these bytes. With offset 0, of the whole file that is here already: it is
            only sent again if it has changed.
        policy: What may be connected to; None is anything.
        timeouts: How long to wait.
    """

    location: Location
    offset: int = 0
    validator: Validator = field(default_factory=Validator)
    policy: Policy | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)


@dataclass(frozen=True, slots=True)
class Answer:
    """A file on its way.

    Attributes:
        start: Where in the file `read` begins: what was asked for, or 0.
        total: Length of the whole file, if the other end says it.
        validator: Of this file.
        read: Gives the next bytes, none at the end. Raises Interrupted.
    """

    start: int
    total: int | None
    validator: Validator
    read: Callable[[], bytes]


#: Answers a request; None is "not changed". Raises Interrupted, DownloadFailed or Forbidden.
Source = Callable[[Ask], AbstractContextManager[Answer | None]]
