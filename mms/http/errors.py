"""The table from errors to HTTP statuses, and the body of error responses."""

from __future__ import annotations

import math
from typing import Any

import orjson
from aiohttp import web

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

#: The nearest base class of an error decides. A start-up error only reaches a client when a model
#: is loaded on request.
STATUSES: dict[type[MMSError], int] = {
    InvalidRequest: 400,
    Unauthorized: 401,
    Forbidden: 403,
    ModelNotFound: 404,
    SlowClient: 408,
    PayloadTooLarge: 413,
    Conflict: 409,
    UnsupportedMedia: 415,
    InferenceFailed: 500,
    WorkerDied: 500,
    ProtocolError: 500,
    StartupError: 500,
    ConfigError: 400,
    ArchiveError: 400,
    StorageFull: 507,
    Unavailable: 503,
    DeadlineExceeded: 504,
    OutOfMemory: 507,
    MMSError: 500,
}

#: The error types in responses of MMS 1.x, by status.
_LEGACY_TYPES = {
    400: "BadRequestException",
    404: "ModelNotFoundException",
    405: "MethodNotAllowedException",
    409: "ConflictStatusException",
    413: "RequestEntityTooLargeException",
    503: "ServiceUnavailableException",
    507: "InsufficientStorageException",
}

#: Messages of a service's exceptions are truncated to this length; the log has more.
_MAX_MESSAGE_CHARS = 2048


def status_of(error: MMSError) -> int:
    """Return the HTTP status of an error."""
    if isinstance(error, RejectedByService):
        return error.status
    return next(STATUSES[cls] for cls in type(error).__mro__ if cls in STATUSES)


def is_v2(path: str) -> bool:
    """Return whether a path belongs to KServe's protocols V1 or V2 (their errors differ)."""
    return path == "/v2" or path.startswith(("/v1/", "/v2/"))


def error_response(
    error: MMSError, request_id: str, debug: bool, in_v2: bool = False
) -> web.Response:
    """Return the response to a failed request.

    Args:
        error: The error.
        request_id: The request's id.
        debug: Whether the response may show the service's exception, its stage and its line.
        in_v2: Whether it has the format of the Open Inference Protocol V2.
    """
    status = status_of(error)
    headers = {"X-Request-Id": request_id}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, Unauthorized):
        headers["WWW-Authenticate"] = "Bearer"
    message = str(error)
    details: dict[str, str] = {}
    if error.detail and isinstance(error, InferenceFailed):
        details = {"stage": error.detail.stage}
        if debug:
            details |= {"exception": error.detail.type, "where": error.detail.where}
            last_line = error.detail.traceback.rsplit("\n", 1)[-1]
            message = f"{message}: {last_line}" if last_line else message
            message = message[:_MAX_MESSAGE_CHARS]
    return response(
        status, type(error).__name__, error.code, message, request_id, headers, details, in_v2
    )


def response(
    status: int,
    type_: str,
    code: str,
    message: str,
    request_id: str,
    headers: dict[str, str],
    details: dict[str, str] | None = None,
    in_v2: bool = False,
) -> web.Response:
    """Return an error response; its top level has the fields that clients of MMS 1.x read."""
    return web.Response(
        status=status,
        body=error_body(status, type_, code, message, request_id, details, in_v2),
        content_type="application/json",
        headers=headers,
    )


def error_body(
    status: int,
    type_: str,
    code: str,
    message: str,
    request_id: str,
    details: dict[str, str] | None = None,
    in_v2: bool = False,
) -> bytes:
    """Return the JSON document of an error response."""
    if in_v2:
        where = (details or {}).get("where")
        text = f"{message} ({where})" if where else message
        return _dump({"error": text})
    document: dict[str, Any] = {
        "error": {
            "code": code,
            "type": type_,
            "message": message,
            "request_id": request_id,
            **(details or {}),
        },
        "code": status,
        "type": "ResourceNotFoundException"
        if code == "route_not_found"
        else _LEGACY_TYPES.get(status, "InternalServerException"),
        "message": message,
    }
    return _dump(document)


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document) + b"\n"
