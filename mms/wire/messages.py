"""What the server and its workers tell each other. Below it are only errors and frames."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from mms.errors import MMSError
from mms.wire.documents import Document
from mms.wire.frames import MAX_MS_LEFT, Buffer

#: Header that says after how many bytes of a body in the Open Inference Protocol V2 its JSON ends,
#: and binary tensors begin.
V2_HEADER_LENGTH = "Inference-Header-Content-Length"


class Dialect(enum.IntEnum):
    """How a request is written and its answer expected. Values are part of the wire format."""

    PLAIN = 0  # inputs in, the bare result out
    V04 = 1  # the result in {"prediction": ...}
    V1 = 2  # as PLAIN, but the parameters of the query are inputs of 1.x handlers too
    OIP = 3  # the Open Inference Protocol V2


class Stage(enum.IntEnum):
    """Parts of a batch's time in the worker, in order."""

    DECODE = 0
    PREPROCESS = 1
    INFERENCE = 2
    POSTPROCESS = 3
    ENCODE = 4


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
        can_fork: Whether workers may be forked from it; False too if the service started threads.
        engine: Name and version of what runs the model.
        service: Name of the service's class, or of the handler.
        alone_reason: Why requests run one at a time whatever the batch size; "" if they do not.
        takes_tensors: Whether arrays can be put in as they are, and not only bodies.
        gives_tensors: Whether the network's arrays themselves can be had for an answer.
    """

    can_fork: bool
    engine: str
    service: str
    alone_reason: str
    takes_tensors: bool = False
    gives_tensors: bool = False


class RequestMeta(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a worker must know of a request besides its body.

    Attributes:
        request_id: Echoed to the client and put on every log line.
        dialect: How the body is written, and the answer is to be.
        content_type: Content-Type header as sent, or "".
        accept: Accept header as sent, or "".
        content_encoding: Content-Encoding header as sent, or ""; the body travels packed.
        headers: All headers, only for models that may look at them.
        query: Names and values of the query, likewise.
    """

    request_id: str
    dialect: Dialect
    content_type: str
    accept: str
    content_encoding: str = ""
    headers: dict[str, str] = {}
    query: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Serialise to what `decode` reads."""
        return _META.encode(self)

    @staticmethod
    def decode(data: Buffer) -> RequestMeta:
        """Read what `encode` wrote.

        Raises:
            ProtocolError: The bytes are something else.
        """
        return _META.decode(data)


_META: Document[RequestMeta] = Document(RequestMeta, "a request's meta holds something else")


# One is made for each request. Frozen ones take four times as long to make.
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
