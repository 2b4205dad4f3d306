"""The table from errors to HTTP statuses, and the body of error responses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import orjson
from aiohttp import web

from mms.errors import (
    ArchiveError,
    ConfigError,
    Conflict,
    DeadlineExceeded,
    DownloadFailed,
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


@dataclass(frozen=True, slots=True)
class Kind:
    """How an error is answered.

    Attributes:
        status: The HTTP status.
        type: The Java class that stands for it at the top level of the answer, as in 1.x.
    """

    status: int
    type: str


_BAD_REQUEST, _INTERNAL = "BadRequestException", "InternalServerException"

#: The nearest base class of an error decides. A start-up error only reaches a client when a model
#: is loaded on request.
KINDS: dict[type[MMSError], Kind] = {
    InvalidRequest: Kind(400, _BAD_REQUEST),
    Unauthorized: Kind(401, _BAD_REQUEST),
    Forbidden: Kind(403, _BAD_REQUEST),
    ModelNotFound: Kind(404, "ModelNotFoundException"),
    SlowClient: Kind(408, "RequestTimeoutException"),
    PayloadTooLarge: Kind(413, _BAD_REQUEST),
    Conflict: Kind(409, "ConflictStatusException"),
    UnsupportedMedia: Kind(415, _BAD_REQUEST),
    InferenceFailed: Kind(500, _INTERNAL),
    WorkerDied: Kind(500, _INTERNAL),
    ProtocolError: Kind(500, _INTERNAL),
    StartupError: Kind(500, _INTERNAL),
    ConfigError: Kind(400, _BAD_REQUEST),
    ArchiveError: Kind(400, "InvalidModelException"),
    DownloadFailed: Kind(400, "DownloadModelException"),
    StorageFull: Kind(507, _INTERNAL),
    Unavailable: Kind(503, "ServiceUnavailableException"),
    DeadlineExceeded: Kind(504, _INTERNAL),
    OutOfMemory: Kind(507, _INTERNAL),
    MMSError: Kind(500, _INTERNAL),
}

#: The types of what is no error of the tree: routes and methods that there are not.
_TYPES = {404: "ResourceNotFoundException", 405: "MethodNotAllowedException"}

#: Messages of a service's exceptions are truncated to this length; the log has more.
_MAX_MESSAGE_CHARS = 2048


def kind_of(error: MMSError) -> Kind:
    """Return how an error is answered."""
    if isinstance(error, RejectedByService):
        return Kind(error.status, _type_of(error.status))
    return next(KINDS[cls] for cls in type(error).__mro__ if cls in KINDS)


def status_of(error: MMSError) -> int:
    """Return the HTTP status of an error."""
    return kind_of(error).status


def _type_of(status: int) -> str:
    return _INTERNAL if status >= 500 else _BAD_REQUEST


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
    kind = kind_of(error)
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
            if error.detail.reason:
                message = f"{message}: {error.detail.reason}"[:_MAX_MESSAGE_CHARS]
    body = error_body(
        kind.status,
        type(error).__name__,
        error.code,
        message,
        request_id,
        details,
        in_v2,
        kind.type,
    )
    return _response(kind.status, body, headers)


def response(
    status: int,
    type_: str,
    code: str,
    message: str,
    request_id: str,
    headers: dict[str, str],
    in_v2: bool = False,
) -> web.Response:
    """Return the response to what is no error of the tree, such as an unknown route."""
    body = error_body(status, type_, code, message, request_id, in_v2=in_v2)
    return _response(status, body, headers)


def _response(status: int, body: bytes, headers: dict[str, str]) -> web.Response:
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


def error_body(
    status: int,
    type_: str,
    code: str,
    message: str,
    request_id: str,
    details: dict[str, str] | None = None,
    in_v2: bool = False,
    legacy_type: str = "",
) -> bytes:
    """Return the JSON document of an error response.

    Its top level has the fields that clients of MMS 1.x read.
    """
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
        "type": legacy_type or _TYPES.get(status) or _type_of(status),
        "message": message,
    }
    return _dump(document)


def _dump(document: dict[str, Any]) -> bytes:
    return orjson.dumps(document) + b"\n"
