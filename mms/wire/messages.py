"""The messages between the server and its workers. Imports only errors and frames."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from mms.errors import MMSError
from mms.wire.documents import Document
from mms.wire.frames import MAX_MS_LEFT, Buffer

#: Header with the length in bytes of the JSON part of an Open Inference Protocol V2 body; binary
#: tensors follow it.
V2_HEADER_LENGTH = "Inference-Header-Content-Length"


class Dialect(enum.IntEnum):
    """The format of a request and of its answer. Values are part of the wire format."""

    PLAIN = 0  # inputs in, the bare result out
    V04 = 1  # the result in {"prediction": ...}
    V1 = 2  # like PLAIN, but query parameters are inputs of 1.x handlers too
    OIP = 3  # the Open Inference Protocol V2
    INSTANCES = 4  # KServe's and TensorFlow Serving's V1: instances in, predictions out


class Stage(enum.IntEnum):
    """The stages of a batch in the worker, in order; each is timed."""

    DECODE = 0
    PREPROCESS = 1
    INFERENCE = 2
    POSTPROCESS = 3
    ENCODE = 4


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Resource limits of one request in a worker; see the settings of the same names.

    Attributes:
        max_decompressed_bytes: Maximum length of a body after its Content-Encoding is undone.
        max_decompression_ratio: Maximum expansion of a compressed body, in bytes per byte.
        max_form_bytes: Maximum length of a URL-encoded form.
        max_form_fields: Maximum number of fields in a form.
        max_json_elements: Maximum number of elements in a JSON document or a Python literal.
        max_image_pixels: Maximum number of pixels in an image, as stated in its header.
    """

    max_decompressed_bytes: int = 64 << 20
    max_decompression_ratio: int = 100
    max_form_bytes: int = 16 << 20
    max_form_fields: int = 256
    max_json_elements: int = 5_000_000
    max_image_pixels: int = 50_000_000


@dataclass(frozen=True, slots=True)
class EngineWish:
    """What an operator wants a network to run on; see the settings of the same names.

    Attributes:
        engine: ``auto`` or the name of an engine.
        precision: ``auto`` or the name of a precision.
        min_agreement: Lowest score of a candidate that may run.
        candidates: Path of a JSON file with candidates that were made when the model was loaded,
            their paths relative to its folder; "" for the manifest's.
        reason: Why such candidates could not be made; "" if they were, or were not needed.
        cache: Folder for compiled networks, so that they need not be compiled again; "" for none.
    """

    engine: str = "auto"
    precision: str = "auto"
    min_agreement: float = 0.98
    candidates: str = ""
    reason: str = ""
    cache: str = ""


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Everything a process needs to serve one version of one model.

    Attributes:
        model_name: Name clients use.
        version: Its version.
        folder: The unpacked archive.
        service_file: Service to use instead of the archive's, or "".
        handler: ``module:function`` of a 1.x archive, "" for any other.
        decode_input_request: Whether JSON and text bodies are decoded for a 1.x handler.
        gpu: Number of the GPU, None for the CPU.
        batch_size: Maximum number of requests joined in one forward pass.
        max_response_bytes: Maximum length of an answer.
        log_level: Level below which the worker drops log records.
        server_pid: Process that the worker must not outlive.
        may_fork: Whether workers are forked from this process, which then never serves.
        memory_limit: Bytes that the process may allocate; 0 is no limit.
        limits: Resource limits of one request.
        is_strict: Whether likely mistakes in the service are errors, see `mms.worker.slips`.
        wish: What the network shall run on.
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
    wish: EngineWish = EngineWish()


@dataclass(frozen=True, slots=True)
class Ready:
    """The report of a process that has loaded its model.

    Attributes:
        can_fork: Whether workers may be forked from it; False too if the service started threads.
        engine: Name and version of the engine that runs the model.
        service: Name of the service's class, or of the handler.
        alone_reason: Why requests run one at a time whatever the batch size; "" if they do not.
        takes_tensors: Whether the model accepts arrays as they are, and not only bodies.
        gives_tensors: Whether an answer can consist of the network's own output arrays.
        precision: Precision that the network is computed in; "" if not known, as for handlers.
        agreement: Recorded score of the candidate that runs; None if the network itself does.
        engine_reason: Why this engine and precision run and not what was wanted; "" if they are.
    """

    can_fork: bool
    engine: str
    service: str
    alone_reason: str
    takes_tensors: bool = False
    gives_tensors: bool = False
    precision: str = ""
    agreement: float | None = None
    engine_reason: str = ""


class RequestMeta(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """What a worker needs to know about a request besides its body.

    Attributes:
        request_id: Echoed to the client and added to every log line.
        dialect: Format of the body and of the answer.
        content_type: Content-Type header as sent, or "".
        accept: Accept header as sent, or "".
        content_encoding: Content-Encoding header as sent, or ""; the body is still encoded.
        headers: All headers, only for models that may read them.
        query: Names and values of the query parameters, likewise.
    """

    request_id: str
    dialect: Dialect
    content_type: str
    accept: str
    content_encoding: str = ""
    headers: dict[str, str] = {}
    query: tuple[tuple[str, str], ...] = ()

    def encode(self) -> bytes:
        """Serialise for `decode`."""
        return _META.encode(self)

    @staticmethod
    def decode(data: Buffer) -> RequestMeta:
        """Parse the output of `encode`.

        Raises:
            ProtocolError: The bytes are not a serialised RequestMeta.
        """
        return _META.decode(data)


_META: Document[RequestMeta] = Document(RequestMeta, "a request's meta holds something else")


# One is created for each request. Frozen ones take four times as long to create.
@dataclass(slots=True)
class Request:
    """A request as the worker receives it."""

    meta: RequestMeta
    body: memoryview
    ms_left: int = MAX_MS_LEFT


@dataclass(slots=True)
class Answer:
    """The answer to one request, as the worker sends it and the client receives it.

    Attributes:
        body: The bytes to send, already encoded.
        content_type: Its MIME type.
        status: HTTP status, 200 unless the service chose another.
        headers: Further response headers set by the service.
        reason: Reason phrase if the service chose one, or "".
    """

    body: Buffer
    content_type: str = "application/json"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    reason: str = ""

    @property
    def is_plain(self) -> bool:
        """Whether the answer is 200 application/json without further headers."""
        return (
            self.status == 200
            and self.content_type == "application/json"
            and not self.headers
            and not self.reason
        )


@dataclass(frozen=True, slots=True)
class Result:
    """The answers to one batch, in request order, and the seconds each stage took."""

    answers: Sequence[Answer | MMSError]
    stage_seconds: tuple[float, float, float, float, float]
