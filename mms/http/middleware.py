"""The middleware of every request: a call of the data plane, with errors mapped to responses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web
from multidict import istr

from mms.errors import MMSError, OutOfMemory
from mms.http.connection import hold_of
from mms.http.errors import error_response, is_v2, response
from mms.serving.budget import SMALL_BYTES
from mms.serving.dataplane import CLIENT_LEFT, Call, DataPlane

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger("mms.http")

_HTTP_CODES = {404: "route_not_found", 405: "method_not_allowed", 413: "payload_too_large"}

#: `istr` saves lower-casing it for each look-up.
_ID_HEADER = istr("X-Request-Id")

CALL = web.RequestKey("call", Call)


def make_middleware(
    dataplane: DataPlane,
    debug_errors: bool,
    check: Callable[[web.Request], None] | None = None,
) -> Any:
    """Return the application's only middleware.

    Args:
        dataplane: Counts and logs calls.
        debug_errors: Whether responses may show a service's exception.
        check: Raises for a request that no handler may see; not a middleware of its own, which
            would cost every request another coroutine.
    """

    # aiohttp passes the next handler by keyword, so its name is part of the interface.
    @web.middleware
    async def answer_call(request: web.Request, handler: Handler) -> web.StreamResponse:
        route = request.match_info.route.name or "unknown"
        call = request[CALL] = dataplane.begin(route, request.headers.get(_ID_HEADER))
        status = CLIENT_LEFT
        failure: MMSError | None = None
        try:
            if check is not None:
                check(request)
            answer = await handler(request)
            # Not isinstance: these classes are abstract ones, which makes that slow.
            if type(answer) is web.Response:
                answer.headers[_ID_HEADER] = call.id
                _count_answer(request, answer)
            status = answer.status
        except MMSError as error:
            answer, failure = _refuse(request, error, debug_errors), error
            status = answer.status
        except MemoryError:
            failure = OutOfMemory("the server is out of memory; try again later")
            answer = _refuse(request, failure, debug_errors)
            status = answer.status
        except web.HTTPException as error:
            answer = _http_error(error, request, call.id)
            status = answer.status
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("a bug: %s %s", request.method, request.path)
            answer = _internal_error(request, call.id)
            status = answer.status
        finally:
            dataplane.end(call, status, failure)
            if dataplane.logs_access:
                who, what = str(request.remote), f"{request.method} {request.path}"
                dataplane.log_access(call, status, who, what)
            # Its traceback refers to this frame: see `Servable.infer`.
            failure = None
        return answer

    return answer_call


def _refuse(request: web.Request, error: MMSError, debug: bool) -> web.StreamResponse:
    """Return the response to a failed request, whose buffered bytes are released."""
    hold_of(request).release()
    return error_response(error, request[CALL].id, debug, is_v2(request.path))


def _internal_error(request: web.Request, request_id: str) -> web.StreamResponse:
    return response(
        500,
        "InternalError",
        "internal_error",
        "an internal error; see the server's log",
        request_id,
        {"X-Request-Id": request_id},
        in_v2=is_v2(request.path),
    )


def _count_answer(request: web.Request, answer: web.Response) -> None:
    """Count a large response that is not a model's: metrics, descriptions.

    Raises:
        BufferFull: It does not fit into the budget.
    """
    size = len(answer.body) if isinstance(answer.body, bytes) else 0
    if size > SMALL_BYTES:
        hold_of(request).replace(size)


def _http_error(
    error: web.HTTPException, request: web.Request, request_id: str
) -> web.StreamResponse:
    """Convert aiohttp's own errors to our format; return redirects and the like unchanged."""
    if error.status < 400:
        error.headers["X-Request-Id"] = request_id
        raise error
    headers = {"X-Request-Id": request_id}
    message = error.reason
    if isinstance(error, web.HTTPNotFound):
        message = f"there is no route {request.path[:200]!r}; GET / lists them"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = ", ".join(sorted({*error.allowed_methods, hdrs.METH_OPTIONS}))
        if request.method == hdrs.METH_OPTIONS:
            # Any route may be asked for its methods, as in 0.4.
            return web.Response(headers=headers)
        message = f"{request.method} is not allowed here; allowed: {headers['Allow']}"
    code = _HTTP_CODES.get(error.status, "http_error")
    return response(
        error.status,
        type(error).__name__,
        code,
        message,
        request_id,
        headers,
        in_v2=is_v2(request.path),
    )
