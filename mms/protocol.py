"""Frames between the server process and its workers: a pure codec, bytes in, frames out.

Every frame is a header, a payload and nothing else, little-endian::

    header   u32 payload length | u8 type | u8 reserved | u16 count | u64 batch id
    BATCH    count x (u32 meta length | u32 body length | u32 ms left) | metas | bodies
    RESULT   5 x f64 stage seconds | count x (u8 kind | u8 reserved | u16 status |
             u32 meta length | u32 body length) | metas | bodies
    others   one JSON document

Request bodies cross unparsed, as the list of chunks they arrived in. Answers stand in the order
of their requests. Nothing is pickled.

Imports nothing of ours but errors.
"""

from __future__ import annotations

import enum
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import orjson

from mms.errors import ErrorDetail, MMSError, ProtocolError, RejectedByService, from_wire

Buffer = bytes | bytearray | memoryview

HEADER = struct.Struct("<IBBHQ")
REQUEST_ITEM = struct.Struct("<III")
ANSWER_ITEM = struct.Struct("<BBHII")
STAGE_TIMES = struct.Struct("<5d")

#: Bounds what a broken or hostile peer can make us allocate. Batches stay far below it.
MAX_PAYLOAD_BYTES = 1 << 30
#: Bodies of all answers in one frame; leaves room for its table and metas.
MAX_ANSWERS_BYTES = MAX_PAYLOAD_BYTES - (64 << 20)
#: Requests in one frame, by the width of the header's field.
MAX_COUNT = 0xFFFF
#: Both ends ask for this much socket buffer: with the default, a 1 MB body takes a third longer.
SOCKET_BUFFER_BYTES = 2 << 20
#: "No deadline" and the most that fits the field: 49 days.
MAX_MS_LEFT = 0xFFFFFFFF

#: Route of requests in the Open Inference Protocol V2, however they came.
V2_ROUTE = "v2_infer"
#: Header that says after how many bytes of such a body its JSON ends, and binary tensors begin.
V2_HEADER_LENGTH = "Inference-Header-Content-Length"


class FrameType(enum.IntEnum):
    """Who sends what. Values are part of the wire format."""

    LOAD = 1  # server -> process: what to load; the first frame it gets
    FORK = 2  # server -> loader: fork a worker onto the socket passed along
    BATCH = 3  # server -> worker
    STOP = 4  # server -> process: finish and exit
    CONFIGURE = 5  # server -> process: the most requests to join from now on
    READY = 16  # process -> server: loaded, or forked and serving
    FAILED = 17  # process -> server: could not load, with the error
    FORKED = 18  # loader -> server: pid of the new worker
    RESULT = 19  # worker -> server: the answers to one batch
    METRICS = 20  # worker -> server: what the service reported; goes before the RESULT
    ALONE = 21  # process -> server: why requests run one at a time from now on


class AnswerKind(enum.IntEnum):
    """How to read an answer."""

    JSON = 0  # 200, application/json, no meta
    CUSTOM = 1  # the meta holds content type and headers
    ERROR = 2  # the meta holds the error


class Stage(enum.IntEnum):
    """Parts of a batch's time in the worker, in order."""

    DECODE = 0
    PREPROCESS = 1
    INFERENCE = 2
    POSTPROCESS = 3
    ENCODE = 4


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame; the payload is a view of the bytes it came in."""

    type: FrameType
    count: int
    batch_id: int
    payload: memoryview


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What one request may cost in a worker; the settings of these names say more.

    Attributes:
        max_decompressed_bytes: Longest body after its Content-Encoding is undone.
        max_decompression_ratio: Most bytes that one byte of a compressed body may become.
        max_form_bytes: Longest URL-encoded form.
        max_form_fields: Most fields of a form.
        max_json_elements: Most elements of a JSON document or a Python literal.
        max_image_pixels: Most pixels of a picture, asked of its header.
    """

    max_decompressed_bytes: int = 64 << 20
    max_decompression_ratio: int = 100
    max_form_bytes: int = 16 << 20
    max_form_fields: int = 256
    max_json_elements: int = 5_000_000
    max_image_pixels: int = 50_000_000


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """All that a process must know to serve one version of one model.

    Attributes:
        model_name: Name clients use.
        version: Its version.
        folder: The unpacked archive.
        service_file: Service to use instead of the archive's, or "".
        handler: ``module:function`` of a 1.x archive, "" for any other.
        decode_input_request: Whether a 1.x handler gets JSON and text bodies decoded.
        gpu: Number of the GPU, None for the CPU.
        batch_size: Most requests joined in one forward pass.
        max_response_bytes: Longest answer that may be sent.
        log_level: Level below which the worker's records are dropped at once.
        server_pid: Process without which the worker must not live.
        may_fork: Whether workers are to be forked from this process, which then never serves.
        memory_limit: Bytes that the process may allocate; 0 is no limit.
        limits: What one request may cost.
        is_strict: Whether slips of the service's author are errors, see `mms.worker.slips`.
    """

    model_name: str
    version: str
    folder: str
    service_file: str
    handler: str
    decode_input_request: bool
    gpu: int | None
    batch_size: int
    max_response_bytes: int
    log_level: int
    server_pid: int
    may_fork: bool
    memory_limit: int = 0
    limits: RequestLimits = RequestLimits()
    is_strict: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """What a process says once it has loaded its model.

    Attributes:
        pid: Its own.
        can_fork: Whether workers may be forked from it; False too if the service started threads.
        engine: Name and version of what runs the model.
        service: Name of the service's class.
        alone_reason: Why requests run one at a time whatever the batch size; "" if they do not.
        load_seconds: Import, load and warm-up.
        takes_tensors: Whether arrays can be put in as they are, and not only bodies.
        gives_tensors: Whether the network's arrays themselves can be had for an answer.
    """

    pid: int
    can_fork: bool
    engine: str
    service: str
    alone_reason: str
    load_seconds: float
    takes_tensors: bool = False
    gives_tensors: bool = False


# Of these two one is made for each request, here and in the worker. Frozen ones take four times as
# long to make.
@dataclass(slots=True)
class RequestMeta:
    """What a worker must know of a request besides its body.

    Attributes:
        request_id: Echoed to the client and put on every log line.
        route: Name of the route asked, which decides the shape of the answer.
        content_type: Content-Type header as sent, or "".
        accept: Accept header as sent, or "".
        content_encoding: Content-Encoding header as sent, or ""; the body travels packed.
        headers: All headers, only for models that may look at them.
        query: Names and values of the query, likewise.
    """

    request_id: str
    route: str
    content_type: str
    accept: str
    content_encoding: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    query: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Serialise to what `decode` reads."""
        texts = (
            self.request_id,
            self.route,
            self.content_type,
            self.accept,
            self.content_encoding,
        )
        if not (self.headers or self.query):
            return _dump_json(texts)
        return _dump_json((*texts, self.headers, self.query))

    @classmethod
    def decode(cls, data: Buffer) -> RequestMeta:
        """Read what `encode` wrote.

        Raises:
            ProtocolError: The bytes are something else.
        """
        values = _load_json(data)
        if not isinstance(values, list) or len(values) not in (5, 7):
            raise ProtocolError("request meta is not a list of five texts, or seven values")
        if not all(isinstance(text, str) for text in values[:5]):
            raise ProtocolError("request meta holds something else than texts")
        if len(values) == 5:
            return cls(*values)
        request_id, route, content_type, accept, encoding, headers, query = values
        if not isinstance(headers, dict) or not isinstance(query, list):
            raise ProtocolError("request meta holds no headers and query")
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in query):
            raise ProtocolError("request meta holds no headers and query")
        pairs = tuple((str(name), str(value)) for name, value in query)
        return cls(request_id, route, content_type, accept, encoding, headers, pairs)


@dataclass(slots=True)
class Request:
    """A request as the worker gets it."""

    meta: RequestMeta
    body: memoryview
    ms_left: int = MAX_MS_LEFT


@dataclass(slots=True)
class Answer:
    """What a worker answers to one request, and what a client gets.

    Attributes:
        body: The bytes to send, already encoded.
        content_type: Its MIME type.
        status: HTTP status, 200 unless the service chose another.
        headers: Further response headers set by the service.
        reason: The status's phrase if the service chose one, or "".
    """

    body: Buffer
    content_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the answer is 200 application/json with nothing further."""
        return (
            self.status == 200
            and self.content_type == "application/json"
            and not self.headers
            and not self.reason
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The answers to one batch, in its order, and the seconds each stage took for the batch."""

    answers: Sequence[Answer | MMSError]
    stage_seconds: tuple[float, float, float, float, float]


def encode_control(type_: FrameType, document: Any = None) -> bytes:
    """Build a frame whose payload is one JSON document; dataclasses become objects."""
    payload = _dump_json(document)
    return HEADER.pack(len(payload), type_, 0, 0, 0) + payload


def decode_control(frame: Frame) -> Any:
    """Return the JSON document of a control frame.

    Raises:
        ProtocolError: The payload is no JSON.
    """
    return _load_json(frame.payload)


def decode_load(frame: Frame) -> LoadSpec:
    """Return the LoadSpec of a LOAD frame.

    Raises:
        ProtocolError: It holds something else.
    """
    document = _fields(frame, LoadSpec)
    try:
        return LoadSpec(**{**document, "limits": RequestLimits(**document["limits"])})
    except TypeError:
        raise ProtocolError("a frame that should hold limits holds something else") from None


def decode_ready(frame: Frame) -> Ready:
    """Return the Ready of a READY frame.

    Raises:
        ProtocolError: It holds something else.
    """
    return Ready(**_fields(frame, Ready))


def _fields(frame: Frame, cls: type[Any]) -> dict[str, Any]:
    document = decode_control(frame)
    names = {f.name for f in fields(cls)}
    if not isinstance(document, dict) or set(document) != names:
        raise ProtocolError(f"a frame that should hold a {cls.__name__} holds something else")
    return document


def encode_batch(
    batch_id: int, items: Sequence[tuple[bytes, Sequence[Buffer], int, int]]
) -> list[Buffer]:
    """Build a BATCH frame as a list of buffers for one gathering write.

    Args:
        batch_id: Comes back in the RESULT.
        items: (encoded meta, body chunks, body length, milliseconds left) of each request.
            Chunks are passed on uncopied.
    """
    head = bytearray(HEADER.size)
    metas = []
    chunks: list[Buffer] = []
    length = 0
    for meta, body, body_length, ms_left in items:
        head += REQUEST_ITEM.pack(len(meta), body_length, min(max(ms_left, 0), MAX_MS_LEFT))
        metas.append(meta)
        chunks.extend(body)
        length += len(meta) + body_length
    payload_length = len(head) - HEADER.size + length
    if payload_length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a batch of {payload_length} bytes does not fit a frame")
    if len(items) > MAX_COUNT:
        raise ProtocolError(f"a batch of {len(items)} requests does not fit a frame")
    HEADER.pack_into(head, 0, payload_length, FrameType.BATCH, 0, len(items), batch_id)
    return [b"".join((head, *metas)), *chunks]


def decode_batch(frame: Frame) -> list[Request]:
    """Return the requests of a BATCH frame; bodies are views of the frame.

    Raises:
        ProtocolError: The lengths do not add up.
    """
    payload = frame.payload
    table_end = frame.count * REQUEST_ITEM.size
    if table_end > len(payload):
        raise ProtocolError("a batch is shorter than its table")
    table = list(REQUEST_ITEM.iter_unpack(payload[:table_end]))
    meta_at = table_end
    body_at = meta_at + sum(meta_length for meta_length, _, _ in table)
    requests = []
    for meta_length, body_length, ms_left in table:
        meta = RequestMeta.decode(payload[meta_at : meta_at + meta_length])
        requests.append(Request(meta, payload[body_at : body_at + body_length], ms_left))
        meta_at += meta_length
        body_at += body_length
    if body_at != len(payload):
        raise ProtocolError("the lengths in a batch do not add up to its payload")
    return requests


def encode_result(batch_id: int, result: Result) -> list[Buffer]:
    """Build a RESULT frame as a list of buffers for one gathering write."""
    head = bytearray(HEADER.size) + STAGE_TIMES.pack(*result.stage_seconds)
    metas = []
    bodies: list[Buffer] = []
    length = 0
    for answer in result.answers:
        kind, status, meta, body = _encode_answer(answer)
        head += ANSWER_ITEM.pack(kind, 0, status, len(meta), len(body))
        metas.append(meta)
        bodies.append(body)
        length += len(meta) + len(body)
    payload_length = len(head) - HEADER.size + length
    if payload_length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"answers of {payload_length} bytes do not fit a frame")
    HEADER.pack_into(head, 0, payload_length, FrameType.RESULT, 0, len(metas), batch_id)
    return [b"".join((head, *metas)), *bodies]


def decode_result(frame: Frame) -> Result:
    """Return the answers of a RESULT frame; bodies are views of the frame.

    Raises:
        ProtocolError: The lengths do not add up or a field has a value it cannot have.
    """
    payload = frame.payload
    table_end = STAGE_TIMES.size + frame.count * ANSWER_ITEM.size
    if table_end > len(payload):
        raise ProtocolError("a result is shorter than its table")
    stage_seconds = STAGE_TIMES.unpack_from(payload)
    # A NaN would spread through every mean that it enters.
    if not all(0.0 <= seconds < math.inf for seconds in stage_seconds):
        raise ProtocolError(f"a result has impossible stage times: {stage_seconds}")
    table = list(ANSWER_ITEM.iter_unpack(payload[STAGE_TIMES.size : table_end]))
    meta_at = table_end
    body_at = meta_at + sum(item[3] for item in table)
    answers: list[Answer | MMSError] = []
    for kind, _, status, meta_length, body_length in table:
        body = payload[body_at : body_at + body_length]
        if kind == AnswerKind.JSON:
            answers.append(Answer(body))
        else:
            meta = payload[meta_at : meta_at + meta_length]
            answers.append(_decode_answer(kind, status, meta, body))
        meta_at += meta_length
        body_at += body_length
    if body_at != len(payload):
        raise ProtocolError("the lengths in a result do not add up to its payload")
    return Result(answers, stage_seconds)


class FrameDecoder:
    """Cut a byte stream into frames.

    A frame that arrives in one piece is not copied; one that arrives in many is joined once.
    """

    def __init__(self) -> None:
        self._chunks: list[Buffer] = []
        self._buffered = 0
        self._needed = HEADER.size

    @property
    def is_at_boundary(self) -> bool:
        """Whether the stream may end here without a frame being cut off."""
        return self._buffered == 0

    def feed(self, data: Buffer) -> list[Frame]:
        """Take the stream's next bytes and return the frames that they complete.

        Raises:
            ProtocolError: A header is impossible. The stream cannot be read any further.
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
                # Checked before the payload is there: what is no frame must not be waited for.
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
        ProtocolError: The header is impossible.
    """
    length, type_, _, count, batch_id = HEADER.unpack(header)
    if length > MAX_PAYLOAD_BYTES:
        raise ProtocolError(f"a frame claims {length} bytes")
    return _frame_type(type_), count, batch_id, length


def error_document(error: MMSError) -> dict[str, Any]:
    """Return an error as code, message and detail, for an answer's meta or a FAILED frame."""
    detail = error.detail or ErrorDetail()
    return {
        "code": error.code,
        "message": str(error),
        "stage": detail.stage,
        "type": detail.type,
        "where": detail.where,
        "traceback": detail.traceback,
    }


def error_from_document(document: Any, status: int = 0) -> MMSError:
    """Rebuild what `error_document` described.

    Raises:
        ProtocolError: It describes no error.
    """
    if not isinstance(document, dict) or not all(
        isinstance(document.get(key), str)
        for key in ("code", "message", "stage", "type", "where", "traceback")
    ):
        raise ProtocolError("an error from a worker lacks its fields")
    detail = ErrorDetail(
        document["stage"], document["type"], document["where"], document["traceback"]
    )
    return from_wire(document["code"], document["message"], detail, status)


def _encode_answer(answer: Answer | MMSError) -> tuple[int, int, bytes, Buffer]:
    if isinstance(answer, MMSError):
        status = answer.status if isinstance(answer, RejectedByService) else 0
        return AnswerKind.ERROR, status, _dump_json(error_document(answer)), b""
    if answer.is_plain:
        return AnswerKind.JSON, 200, b"", answer.body
    meta = _dump_json((answer.content_type, answer.headers, answer.reason))
    return AnswerKind.CUSTOM, answer.status, meta, answer.body


def _decode_answer(kind: int, status: int, meta: Buffer, body: Buffer) -> Answer | MMSError:
    document = _load_json(meta)
    if kind == AnswerKind.ERROR:
        return error_from_document(document, status)
    if kind != AnswerKind.CUSTOM:
        raise ProtocolError(f"an answer has the unknown kind {kind}")
    if not isinstance(document, list) or len(document) != 3:
        raise ProtocolError("an answer's meta is not content type, headers and reason")
    content_type, headers, reason = document
    if (
        not isinstance(content_type, str)
        or not isinstance(reason, str)
        or not isinstance(headers, dict)
        or not all(isinstance(value, str) for value in headers.values())
    ):
        raise ProtocolError("an answer's meta is not content type, headers and reason")
    return Answer(body, content_type, status, headers, reason)


def _frame_type(value: int) -> FrameType:
    try:
        return FrameType(value)
    except ValueError:
        raise ProtocolError(f"a frame has the unknown type {value}") from None


def _dump_json(document: Any) -> bytes:
    try:
        return orjson.dumps(document)
    except TypeError:
        # Half a surrogate pair, which UTF-8 cannot hold: clients send them in Python literals and
        # (as bytes that are no text) in headers, and messages of errors quote both.
        if isinstance(document, dict):
            return orjson.dumps({key: _mend(value) for key, value in document.items()})
        if isinstance(document, (list, tuple)):
            return orjson.dumps([_mend(value) for value in document])
        raise


def _mend(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, dict):
        return {_mend(key): _mend(item) for key, item in value.items()}
    return value


def _load_json(data: Buffer) -> Any:
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise ProtocolError(f"a frame's JSON is broken: {error}") from None
