"""The table from errors to gRPC status codes, and the details of a failed call."""

from __future__ import annotations

import math

import grpc

from mms.errors import (
    ArchiveError,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    Forbidden,
    InferenceFailed,
    InvalidRequest,
    MMSError,
    ModelNotFound,
    OutOfMemory,
    PayloadTooLarge,
    ProtocolError,
    RejectedByService,
    SlowClient,
    StartupError,
    StorageFull,
    Unauthorized,
    Unavailable,
    UnsupportedMedia,
    WorkerDied,
)

Code = grpc.StatusCode

#: The nearest base class of an error decides.
CODES: dict[type[MMSError], grpc.StatusCode] = {
    InvalidRequest: Code.INVALID_ARGUMENT,
    Unauthorized: Code.UNAUTHENTICATED,
    Forbidden: Code.PERMISSION_DENIED,
    ModelNotFound: Code.NOT_FOUND,
    SlowClient: Code.DEADLINE_EXCEEDED,
    PayloadTooLarge: Code.RESOURCE_EXHAUSTED,
    Conflict: Code.FAILED_PRECONDITION,
    UnsupportedMedia: Code.INVALID_ARGUMENT,
    InferenceFailed: Code.INTERNAL,
    WorkerDied: Code.INTERNAL,
    ProtocolError: Code.INTERNAL,
    StartupError: Code.INTERNAL,
    ConfigError: Code.INVALID_ARGUMENT,
    ArchiveError: Code.INVALID_ARGUMENT,
    StorageFull: Code.RESOURCE_EXHAUSTED,
    Unavailable: Code.UNAVAILABLE,
    DeadlineExceeded: Code.DEADLINE_EXCEEDED,
    OutOfMemory: Code.RESOURCE_EXHAUSTED,
    MMSError: Code.INTERNAL,
}

#: HTTP status of each code, as in google/rpc/code.proto: used in metrics, so that one query finds
#: the failures of both transports.
HTTP_STATUSES: dict[grpc.StatusCode, int] = {
    Code.OK: 200,
    Code.INVALID_ARGUMENT: 400,
    Code.FAILED_PRECONDITION: 400,
    Code.UNAUTHENTICATED: 401,
    Code.PERMISSION_DENIED: 403,
    Code.NOT_FOUND: 404,
    Code.ABORTED: 409,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.CANCELLED: 499,
    Code.INTERNAL: 500,
    Code.UNIMPLEMENTED: 501,
    Code.UNAVAILABLE: 503,
    Code.DEADLINE_EXCEEDED: 504,
}

#: For services that choose an HTTP status themselves.
_CODES_BY_STATUS = {
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    409: Code.ABORTED,
    413: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
    507: Code.RESOURCE_EXHAUSTED,
}
#: Clients accept 8 KB of metadata by default, and a character may take up to nine bytes of it.
_MAX_TEXT_CHARS = 800


def code_of(error: MMSError) -> grpc.StatusCode:
    """Return the status code of an error."""
    if isinstance(error, RejectedByService):
        default = Code.INVALID_ARGUMENT if error.status < 500 else Code.INTERNAL
        return _CODES_BY_STATUS.get(error.status, default)
    return next(CODES[cls] for cls in type(error).__mro__ if cls in CODES)


def status_of(error: MMSError) -> int:
    """Return the HTTP status as which an error is counted."""
    return error.status if isinstance(error, RejectedByService) else HTTP_STATUSES[code_of(error)]


def text_of(error: MMSError, debug: bool) -> str:
    """Return the message for the client.

    Args:
        error: The error.
        debug: Whether the message may show the service's exception and its line.
    """
    text = str(error)
    if debug and error.detail and isinstance(error, InferenceFailed):
        text = f"{text}: {error.detail.cause}" if error.detail.reason else text
    return text if len(text) <= _MAX_TEXT_CHARS else f"{text[:_MAX_TEXT_CHARS]}..."


def metadata_of(error: MMSError) -> list[tuple[str, str]]:
    """Return the trailing metadata: when to retry, for people and for gRPC's own retries."""
    if not isinstance(error, Unavailable):
        return []
    return [
        ("retry-after", str(math.ceil(error.retry_after_s))),
        ("grpc-retry-pushback-ms", str(math.ceil(error.retry_after_s * 1000))),
    ]
