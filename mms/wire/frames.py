"""Frames between the server process and its workers: headers, limits, stream decoding.

Every frame is a header, a payload and nothing else, little-endian::

    header   u32 payload length | u8 type | u8 reserved | u16 count | u64 batch id
    BATCH    count x (u32 meta length | u32 body length | u32 ms left) | metas | bodies
    RESULT   5 x f64 stage seconds | count x (u8 kind | u8 reserved | u16 status |
             u32 meta length | u32 body length) | metas | bodies
    others   one JSON document

Request bodies cross unparsed, as the list of chunks they arrived in. Answers are in the order
of their requests. Nothing is pickled.

Imports nothing of ours but errors.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass

from mms.errors import ProtocolError

Buffer = bytes | bytearray | memoryview

HEADER = struct.Struct("<IBBHQ")

#: Bounds the memory that a broken or hostile peer can make us allocate. Batches stay far below.
MAX_PAYLOAD_BYTES = 1 << 30
#: Limit for the bodies of all answers in one frame; leaves room for its table and metas.
MAX_ANSWERS_BYTES = MAX_PAYLOAD_BYTES - (64 << 20)
#: Maximum number of requests in one frame, from the width of the header's field.
MAX_COUNT = 0xFFFF
#: Socket buffer that both ends request: with the default, a 1 MB body takes a third longer.
SOCKET_BUFFER_BYTES = 2 << 20
#: "No deadline", and the largest value that fits the field: 49 days.
MAX_MS_LEFT = 0xFFFFFFFF


class FrameType(enum.IntEnum):
    """The types of frame and their direction. Values are part of the wire format."""

    LOAD = 1  # server -> process: the LoadSpec; the first frame it receives
    FORK = 2  # server -> loader: fork a worker onto the socket passed along
    BATCH = 3  # server -> worker
    STOP = 4  # server -> process: finish and exit
    CONFIGURE = 5  # server -> process: the new batch size
    READY = 16  # process -> server: loaded, or forked and serving
    FAILED = 17  # process -> server: could not load, with the error
    FORKED = 18  # loader -> server: pid of the new worker
    RESULT = 19  # worker -> server: the answers to one batch
    METRICS = 20  # worker -> server: metrics the service reported; precedes the RESULT
    ALONE = 21  # process -> server: why requests run one at a time from now on


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame; the payload is a view of the bytes it came in."""

    type: FrameType
    count: int
    batch_id: int
    payload: memoryview


class FrameDecoder:
    """Decodes a byte stream into frames.

    A frame that arrives in one piece is not copied; one that arrives in several is joined once.
    """

    def __init__(self) -> None:
        self._chunks: list[Buffer] = []
        self._buffered = 0
        self._needed = HEADER.size

    @property
    def is_at_boundary(self) -> bool:
        """Whether the stream may end here without truncating a frame."""
        return self._buffered == 0

    def feed(self, data: Buffer) -> list[Frame]:
        """Consume the stream's next bytes and return the frames they complete.

        Raises:
            ProtocolError: A header is invalid. The stream cannot be read any further.
        """
        frames = []
        self._chunks.append(data)
        self._buffered += len(data)
        while self._buffered >= self._needed:
            view = memoryview(b"".join(self._chunks) if len(self._chunks) > 1 else self._chunks[0])
            at = 0
            while len(view) - at >= HEADER.size:
                length, type_, _, count, batch_id = HEADER.unpack_from(view, at)
                if length > MAX_PAYLOAD_BYTES:
                    raise ProtocolError(f"a frame claims {length} bytes")
                # Checked before the payload arrives: never wait for the rest of an invalid frame.
                frame_type = _frame_type(type_)
                end = at + HEADER.size + length
                if end > len(view):
                    self._needed = end - at
                    break
                payload = view[at + HEADER.size : end]
                frames.append(Frame(frame_type, count, batch_id, payload))
                at = end
            else:
                self._needed = HEADER.size
            rest = view[at:]
            self._chunks = [rest] if rest else []
            self._buffered = len(rest)
        return frames


def read_header(header: Buffer) -> tuple[FrameType, int, int, int]:
    """Return (type, count, batch id, payload length) of a frame header.

    Raises:
        ProtocolError: The header is invalid.
    """
    length, type_, _, count, batch_id = HEADER.unpack(header)
    if length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a frame claims {length} bytes")
    return _frame_type(type_), count, batch_id, length


def _frame_type(value: int) -> FrameType:
    try:
        return FrameType(value)
    except ValueError:
        raise ProtocolError(f"a frame has the unknown type {value}") from None
