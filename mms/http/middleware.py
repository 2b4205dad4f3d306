"""What happens to every request: it gets an id, is measured, and its errors become answers."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from multidict import istr

from mms import log
from mms.errors import BufferFull, MMSError, OutOfMemory, Unavailable
from mms.http.connection import hold_of
from mms.http.errors import error_response, is_v2, response
from mms.serving.budget import SMALL_BYTES
from mms.serving.request_ids import RequestIds
from mms.telemetry.counters import ServableMetrics, ServerMetrics

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

logger = logging.getLogger("mms.http")
access_logger = logging.getLogger("mms.access")

_HTTP_CODES = {404: "route_not_found", 405: "method_not_allowed", 413: "payload_too_large"}

#: Found in headers without being made lower-case first.
_ID_HEADER = istr("X-Request-Id")


@dataclass(slots=True)
class Call:
    """What goes with a request on its way.

    Attributes:
        id: The client's own, or one of ours.
        route: Name of the route.
        metrics: Counters of the model that is asked, left here by the handler.
    """

    id: str
    route: str
    metrics: ServableMetrics | None = None


CALL = web.RequestKey("call", Call)


def make_middleware(
    metrics: ServerMetrics,
    debug_errors: bool,
    access_log: bool,
    check: Callable[[web.Request], None] | None = None,
) -> Any:
    """Return the one middleware of the application.

    Args:
        metrics: Counts what belongs to no model.
        debug_errors: Whether answers may say what a service raised.
        access_log: Whether to log a line per request.
        check: Raises for a request that no handler may see; here and not a middleware of its own,
            which would cost every request a coroutine more.
    """
    ids = RequestIds()

    def fail(request: web.Request, error: MMSError) -> web.StreamResponse:
        """Return the answer to a request that failed, which holds no bytes any more."""
        hold_of(request).release()
        call = request[CALL]
        if isinstance(error, BufferFull):
            (call.metrics or metrics).rejected[error.code] += 1
        answer = error_response(error, call.id, debug_errors, is_v2(request.path))
        _log_error(error, answer.status)
        return answer

    # aiohttp passes the next handler by keyword, so its name is part of the interface.
    @web.middleware
    async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.monotonic()
        request_id = ids.of(request.headers.get(_ID_HEADER))
        call = request[CALL] = Call(request_id, request.match_info.route.name or "unknown")
        log.request_id.set(request_id)
        answer: web.StreamResponse | None = None
        status = 499  # nginx's number for "the client left"
        try:
            if check is not None:
                check(request)
            answer = await handler(request)
            status = answer.status
            # Not isinstance: these classes are abstract ones, which makes that slow.
            if type(answer) is web.Response:
                _count_answer(request, answer)
        except MMSError as error:
            answer = fail(request, error)
            status = answer.status
        except MemoryError:
            answer = fail(request, OutOfMemory("the server is out of memory; try again later"))
            status = answer.status
        except web.HTTPException as error:
            answer = _http_error(error, request, request_id)
            status = answer.status
        except asyncio.CancelledError:
            raise
        except Exception:
            logger.exception("a bug: %s %s", request.method, request.path)
            status = 500
            answer = response(
                500,
                "InternalError",
                "internal_error",
                "an internal error; see the server's log",
                request_id,
                {"X-Request-Id": request_id},
                in_v2=is_v2(request.path),
            )
        finally:
            if call.metrics is None:
                metrics.requests[call.route, status] += 1
            else:
                call.metrics.requests[call.route, status] += 1
                call.metrics.duration.observe(time.monotonic() - started)
            if access_log:
                access_logger.info(
                    '%s "%s %s" %d %.1fms',
                    request.remote,
                    request.method,
                    request.path,
                    status,
                    (time.monotonic() - started) * 1000,
                )
        return answer

    return measure


def _count_answer(request: web.Request, answer: web.Response) -> None:
    """Count a large answer that no model gave: metrics, descriptions.

    Raises:
        BufferFull: It does not fit beside what is held.
    """
    size = len(answer.body) if isinstance(answer.body, bytes) else 0
    if size > SMALL_BYTES:
        hold_of(request).replace(size)


def _log_error(error: MMSError, status: int) -> None:
    # A failing service has logged its traceback from the worker under the same request id.
    # Overload and start-up make thousands of 503s, which the metrics count.
    is_ours = status >= 500 and not isinstance(error, Unavailable)
    level = logging.WARNING if is_ours else logging.DEBUG
    logger.log(level, "answered %d: %s", status, error)


def _http_error(
    error: web.HTTPException, request: web.Request, request_id: str
) -> web.StreamResponse:
    """Put aiohttp's own errors into our shape; its redirects and such stay what they are."""
    if error.status < 400:
        error.headers["X-Request-Id"] = request_id
        raise error
    headers = {"X-Request-Id": request_id}
    message = error.reason
    if isinstance(error, web.HTTPNotFound):
        message = f"there is no route {request.path[:200]!r}; GET / lists them"
    elif isinstance(error, web.HTTPMethodNotAllowed):
        headers["Allow"] = ", ".join(sorted(error.allowed_methods))
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
