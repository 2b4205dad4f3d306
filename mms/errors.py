"""Every error this project raises, in one tree.

The classes know no HTTP: ``mms.http.errors`` holds the one table to statuses. ``code`` is stable
(clients may depend on it) and ``str(error)`` is safe to show to anyone; what is not safe to show
goes into ``detail`` and the log.

::

    MMSError
    ├── StartupError            ends a command with one clear line and an exit status
    │   ├── ConfigError
    │   ├── EngineMissing
    │   ├── ArchiveError
    │   │   ├── ManifestError
    │   │   ├── SignatureError
    │   │   ├── ExportError
    │   │   ├── DownloadFailed
    │   │   └── StorageFull
    │   ├── ModelLoadFailed
    │   └── AddressInUse
    ├── InvalidRequest
    │   ├── InvalidInputShape
    │   └── UndecodableImage
    ├── SlowClient
    ├── PayloadTooLarge
    ├── UnsupportedMedia
    ├── ModelNotFound
    │   └── VersionNotFound
    ├── Conflict                what is asked for contradicts what is there
    ├── Forbidden               management: not from there, or not that
    ├── Unauthorized            management: no token, or a wrong one
    ├── InferenceFailed
    │   └── InvalidServiceOutput
    ├── RejectedByService       the service chose the status itself
    ├── WorkerDied
    ├── Unavailable
    │   ├── ModelNotReady
    │   ├── Draining
    │   ├── QueueFull
    │   ├── BufferFull          bytes of requests and answers, over all models
    │   └── TooManyConnections
    ├── DeadlineExceeded
    ├── OutOfMemory
    └── ProtocolError           a process of ours broke the frame format
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What the log says of a failure and, with debug errors on, the answer too.

    Attributes:
        stage: Where it happened: load, decode, preprocess, inference, postprocess or encode.
        type: Name of the exception's class.
        where: ``file:line`` of the innermost frame in the user's own code, or "".
        traceback: Traceback text, cut to the user's frames where it has any.
    """

    stage: str = ""
    type: str = ""
    where: str = ""
    traceback: str = ""


class MMSError(Exception):
    """Base of the tree.

    Attributes:
        code: Stable name of the error, the same on the wire between our processes and to clients.
        detail: What only the log may say, if anything.
    """

    code: ClassVar[str] = "internal_error"
    detail: ErrorDetail | None

    def __init__(self, message: str, detail: ErrorDetail | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class StartupError(MMSError):
    """A command cannot go on; ``exit_status`` tells scripts why."""

    code = "startup_error"
    exit_status: ClassVar[int] = 1


class ConfigError(StartupError):
    """A flag, variable or file sets something that does not exist or cannot be."""

    code = "config_error"
    exit_status = 2


class EngineMissing(StartupError):
    """MXNet or a library that it needs is not installed."""

    code = "engine_missing"
    exit_status = 3


class ArchiveError(StartupError):
    """A model archive cannot be read, checked or unpacked."""

    code = "invalid_archive"
    exit_status = 3


class ManifestError(ArchiveError):
    """MANIFEST.json lacks something or holds something else than it should."""

    code = "invalid_manifest"


class SignatureError(ArchiveError):
    """signature.json lacks something or holds something else than it should."""

    code = "invalid_signature"


class ExportError(ArchiveError):
    """The files given to mxnet-model-export do not make an archive."""

    code = "export_error"


class DownloadFailed(ArchiveError):
    """A model archive cannot be fetched from where it is, or not be kept here."""

    code = "download_failed"


class StorageFull(ArchiveError):
    """The disk has no room for a model archive, packed or unpacked."""

    code = "storage_full"


class ModelLoadFailed(StartupError):
    """The model's own code or parameters could not be loaded."""

    code = "load_failed"
    exit_status = 3


class AddressInUse(StartupError):
    """The port is taken or not ours to take."""

    code = "address_in_use"
    exit_status = 4


class InvalidRequest(MMSError):
    """The request's body is not what the model's signature asks for."""

    code = "invalid_request"


class InvalidInputShape(InvalidRequest, AssertionError):
    """An input's shape differs from the signature's.

    Also an AssertionError, which is what v0.4's ``check_input_shape`` raised.
    """

    code = "invalid_input_shape"


class UndecodableImage(InvalidRequest):
    """The bytes sent for an image input are no image that the decoder reads."""

    code = "undecodable_image"


class SlowClient(MMSError):
    """The client took too long to send its request."""

    code = "slow_client"


class PayloadTooLarge(MMSError):
    """The body is longer than the server or the model accepts."""

    code = "payload_too_large"


class UnsupportedMedia(MMSError):
    """The body's content type is none that the route reads."""

    code = "unsupported_media"


class ModelNotFound(MMSError):
    """No model has this name."""

    code = "model_not_found"


class VersionNotFound(ModelNotFound):
    """The model has no such version."""

    code = "version_not_found"


class Conflict(MMSError):
    """What is asked for contradicts what is there."""

    code = "conflict"


class Forbidden(MMSError):
    """The server does not do this, or not for this caller."""

    code = "forbidden"


class Unauthorized(MMSError):
    """The request brings no token, or one that is not valid here."""

    code = "unauthorized"


class InferenceFailed(MMSError):
    """The service raised an exception."""

    code = "inference_failed"


class InvalidServiceOutput(InferenceFailed):
    """The service answered something that cannot be sent, or not one answer per request."""

    code = "invalid_service_output"


class RejectedByService(MMSError):
    """The service raised PredictionException: the message and status are its own."""

    code = "rejected_by_service"

    def __init__(self, message: str, status: int, detail: ErrorDetail | None = None) -> None:
        super().__init__(message, detail)
        self.status = status


class WorkerDied(MMSError):
    """The worker process died with this request alone in it, now or within the last minute."""

    code = "worker_died"


class Unavailable(MMSError):
    """Base of the errors that a later attempt may not meet.

    Attributes:
        retry_after_s: When to try again, seconds.
    """

    code = "unavailable"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelNotReady(Unavailable):
    """The model is known but no worker can serve it now."""

    code = "model_not_ready"


class Draining(Unavailable):
    """The server or the model finishes what it has accepted and accepts no more."""

    code = "draining"


class QueueFull(Unavailable):
    """As many requests wait for the model as its queue holds."""

    code = "queue_full"


class BufferFull(Unavailable):
    """The server holds as many bytes of requests and answers as it may."""

    code = "buffer_full"


class TooManyConnections(Unavailable):
    """As many connections are open as the server takes."""

    code = "too_many_connections"


class DeadlineExceeded(MMSError):
    """No answer within the request's or the model's time limit."""

    code = "deadline_exceeded"


class OutOfMemory(MMSError):
    """The model ran out of host or device memory, or the server out of its own."""

    code = "out_of_memory"


class ProtocolError(MMSError):
    """Bytes on a worker's socket are no frame of ours."""

    code = "protocol_error"


def subclasses(root: type[MMSError] = MMSError) -> list[type[MMSError]]:
    """Return the whole tree below and with `root`, parents first."""
    return [root] + [leaf for child in root.__subclasses__() for leaf in subclasses(child)]


def from_wire(code: str, message: str, detail: ErrorDetail | None, status: int) -> MMSError:
    """Rebuild the error that a worker sent as code, message and detail.

    Args:
        code: ``MMSError.code`` of the error raised in the worker; an unknown one becomes
            InferenceFailed.
        message: Text safe to show.
        detail: What only the log may say.
        status: HTTP status chosen by the service; only RejectedByService has one.
    """
    if code == RejectedByService.code:
        return RejectedByService(message, status, detail)
    return _from_workers().get(code, InferenceFailed)(message, detail)


@functools.cache
def _from_workers() -> dict[str, type[MMSError]]:
    """Return what a worker may have raised, by code; found once, since walking the tree is slow."""
    # Where two have a code, the first one in the tree counts.
    found = [cls for cls in subclasses() if not issubclass(cls, Unavailable)]
    return {cls.code: cls for cls in reversed(found)}
