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
    │   │   │   └── ConversionFailed
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
    ├── Conflict                the request conflicts with the server's state
    ├── Forbidden               management: caller or operation not allowed
    ├── Unauthorized            management: no token, or a wrong one
    ├── InferenceFailed
    │   └── InvalidServiceOutput
    ├── RejectedByService       the service chose the status itself
    ├── WorkerDied
    ├── Unavailable
    │   ├── ModelNotReady
    │   ├── Draining
    │   ├── QueueFull
    │   ├── BufferFull          byte limit for requests and answers, over all models
    │   └── TooManyConnections
    ├── DeadlineExceeded
    ├── OutOfMemory
    └── ProtocolError           one of the server's processes broke the frame format
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """Details of a failure for the log and, with debug errors on, for the answer too.

    Attributes:
        stage: Where it happened: load, decode, preprocess, inference, postprocess or encode.
        type: Name of the exception's class.
        where: ``file:line`` of the innermost frame in the user's own code, or "".
        traceback: Traceback, cut to the user's frames where it has any.
        reason: Type and message of the exception on one line, without frames of C++ code.
    """

    stage: str = ""
    type: str = ""
    where: str = ""
    traceback: str = ""
    reason: str = ""

    @property
    def cause(self) -> str:
        """The reason, followed by the line in the user's own code if there is one."""
        return f"{self.reason} ({self.where})" if self.reason and self.where else self.reason


class MMSError(Exception):
    """Base of the tree.

    Attributes:
        code: Stable name of the error, the same on the wire between our processes and to clients.
        is_fault_of_client: Whether the client could have avoided it; never logged as an error.
        detail: Details for the log only, if any.
    """

    code: ClassVar[str] = "internal_error"
    is_fault_of_client: ClassVar[bool] = False
    detail: ErrorDetail | None

    def __init__(self, message: str, detail: ErrorDetail | None = None) -> None:
        super().__init__(message)
        self.detail = detail


class StartupError(MMSError):
    """A command cannot continue; ``exit_status`` tells scripts why."""

    code = "startup_error"
    exit_status: ClassVar[int] = 1


class ConfigError(StartupError):
    """A flag, environment variable or file has an unknown setting or an invalid value."""

    code = "config_error"
    is_fault_of_client = True
    exit_status = 2


class EngineMissing(StartupError):
    """An engine, or a library that it needs, is not installed."""

    code = "engine_missing"
    exit_status = 3


class ArchiveError(StartupError):
    """A model archive cannot be read, checked or unpacked."""

    code = "invalid_archive"
    is_fault_of_client = True
    exit_status = 3


class ManifestError(ArchiveError):
    """MANIFEST.json lacks a required key or has an invalid value."""

    code = "invalid_manifest"


class SignatureError(ArchiveError):
    """signature.json lacks a required key or has an invalid value."""

    code = "invalid_signature"


class ExportError(ArchiveError):
    """The files passed to mxnet-model-export cannot be made into an archive."""

    code = "export_error"


class ConversionFailed(ExportError):
    """A network cannot be converted for another engine, or does not agree; MXNet still runs it.

    Attributes:
        node: Name of the node that has shown to be the reason; "" if it is not one node.
    """

    code = "conversion_failed"
    node: str = ""


class DownloadFailed(ArchiveError):
    """A model archive cannot be downloaded from its location or stored locally."""

    code = "download_failed"


class StorageFull(ArchiveError):
    """The disk has no space for a model archive, packed or unpacked."""

    code = "storage_full"
    is_fault_of_client = False


class ModelLoadFailed(StartupError):
    """The model's own code or parameters could not be loaded."""

    code = "load_failed"
    exit_status = 3


class AddressInUse(StartupError):
    """The port is in use, or the server is not permitted to bind to it."""

    code = "address_in_use"
    exit_status = 4


class InvalidRequest(MMSError):
    """The request body does not match the model's signature."""

    code = "invalid_request"
    is_fault_of_client = True


class InvalidInputShape(InvalidRequest, AssertionError):
    """An input's shape differs from the signature's.

    Also an AssertionError, which is what v0.4's ``check_input_shape`` raised.
    """

    code = "invalid_input_shape"


class UndecodableImage(InvalidRequest):
    """The bytes sent for an image input are not an image that can be decoded."""

    code = "undecodable_image"


class SlowClient(MMSError):
    """The client took too long to send its request."""

    code = "slow_client"
    is_fault_of_client = True


class PayloadTooLarge(MMSError):
    """The body is longer than the server or the model accepts."""

    code = "payload_too_large"
    is_fault_of_client = True


class UnsupportedMedia(MMSError):
    """The route does not accept the body's content type, content encoding or charset."""

    code = "unsupported_media"
    is_fault_of_client = True


class ModelNotFound(MMSError):
    """No model has this name."""

    code = "model_not_found"
    is_fault_of_client = True


class VersionNotFound(ModelNotFound):
    """The model has no such version."""

    code = "version_not_found"


class Conflict(MMSError):
    """The request conflicts with the current state of the server."""

    code = "conflict"
    is_fault_of_client = True


class Forbidden(MMSError):
    """The server does not allow this operation, or not for this caller."""

    code = "forbidden"
    is_fault_of_client = True


class Unauthorized(MMSError):
    """The request has no token, or one that is not valid here."""

    code = "unauthorized"
    is_fault_of_client = True


class InferenceFailed(MMSError):
    """The service raised an exception."""

    code = "inference_failed"


class InvalidServiceOutput(InferenceFailed):
    """The service returned a value that cannot be sent, or not one answer per request."""

    code = "invalid_service_output"


class RejectedByService(MMSError):
    """The service raised PredictionException with a message and status of its own."""

    code = "rejected_by_service"
    is_fault_of_client = True

    def __init__(self, message: str, status: int, detail: ErrorDetail | None = None) -> None:
        super().__init__(message, detail)
        self.status = status


class WorkerDied(MMSError):
    """The worker process died with this request alone in it, now or within the last minute."""

    code = "worker_died"


class Unavailable(MMSError):
    """Base of the retryable errors.

    Attributes:
        retry_after_s: Seconds to wait before a retry.
    """

    code = "unavailable"

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ModelNotReady(Unavailable):
    """The model is known but no worker can serve it now."""

    code = "model_not_ready"


class Draining(Unavailable):
    """The server or the model finishes accepted requests and accepts no more."""

    code = "draining"


class QueueFull(Unavailable):
    """The model's queue is full."""

    code = "queue_full"


class BufferFull(Unavailable):
    """The server has reached its byte limit for requests and answers in memory."""

    code = "buffer_full"


class TooManyConnections(Unavailable):
    """The server has reached its limit of open connections."""

    code = "too_many_connections"


class DeadlineExceeded(MMSError):
    """No answer within the request's or the model's time limit."""

    code = "deadline_exceeded"


class OutOfMemory(MMSError):
    """The model ran out of host or device memory, or the server ran out of memory."""

    code = "out_of_memory"


class ProtocolError(MMSError):
    """The bytes on a worker's socket are not a valid frame."""

    code = "protocol_error"


def subclasses(root: type[MMSError] = MMSError) -> list[type[MMSError]]:
    """Return `root` and all its descendants, parents first."""
    return [root] + [leaf for child in root.__subclasses__() for leaf in subclasses(child)]


def from_wire(code: str, message: str, detail: ErrorDetail | None, status: int) -> MMSError:
    """Rebuild the error that a worker sent as code, message and detail.

    Args:
        code: ``MMSError.code`` of the error raised in the worker; an unknown one becomes
            InferenceFailed.
        message: Safe to show.
        detail: Details for the log only.
        status: HTTP status chosen by the service; only RejectedByService has one.
    """
    if code == RejectedByService.code:
        return RejectedByService(message, status, detail)
    return _from_workers().get(code, InferenceFailed)(message, detail)


@functools.cache
def _from_workers() -> dict[str, type[MMSError]]:
    """Return the errors a worker can send, by code; cached, since walking the tree is slow."""
    # Where two classes share a code, the first one in the tree counts.
    found = [cls for cls in subclasses() if not issubclass(cls, Unavailable)]
    return {cls.code: cls for cls in reversed(found)}
