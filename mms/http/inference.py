"""Routes that ask a model: ``/predictions/{model}`` and v0.4's ``/{model}/predict``."""

from __future__ import annotations

from aiohttp import web

from mms.errors import Draining, InvalidRequest
from mms.http.body import read_body
from mms.http.context import CONTEXT, Context
from mms.http.middleware import ID_KEY, METRICS_KEY
from mms.http.response import answer_response
from mms.protocol import RequestMeta
from mms.serving.servable import Servable

TIMEOUT_HEADER = "X-Request-Timeout-Ms"
#: Whichever is on its way when the server stops gets its answer; who comes later is told when.
_RETRY_WHEN_DRAINING_S = 5.0


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_post("/predictions/{model}", predict, name="predictions")
    app.router.add_post("/predictions/{model}/{version}", predict, name="predictions_version")
    # The name tells the worker to wrap the answer as v0.4 did.
    app.router.add_post("/{model}/predict", predict, name="legacy_predict")


async def predict(request: web.Request) -> web.StreamResponse:
    """Answer with the model's bare result; v0.4's route with ``{"prediction": ...}``."""
    context = request.app[CONTEXT]
    match = request.match_info
    servable = context.registry.get(match["model"], match.get("version"))
    request[METRICS_KEY] = servable.metrics
    return await infer(request, context, servable, match.route.name or "")


async def infer(
    request: web.Request, context: Context, servable: Servable, route: str
) -> web.StreamResponse:
    """Pass a request on to a model and give the response for its answer.

    Raises:
        MMSError: Whatever kept the model from answering.
    """
    if context.is_draining:
        raise Draining("the server is stopping", _RETRY_WHEN_DRAINING_S)
    settings = context.settings
    timeout_s = _timeout_s(request)
    chunks, size = await read_body(request, settings.max_request_bytes, settings.body_timeout)
    request_id = request[ID_KEY]
    headers = request.headers
    meta = RequestMeta(
        request_id, route, headers.get("Content-Type", ""), headers.get("Accept", "")
    )
    answer = await servable.infer(meta.encode(), chunks, size, timeout_s)
    return answer_response(request, answer, request_id)


def _timeout_s(request: web.Request) -> float | None:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    # isdecimal alone also takes other scripts' digits; the length bounds the number.
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) > 0):
        raise InvalidRequest(
            f"{TIMEOUT_HEADER} must be a whole number of milliseconds above 0, got {text[:20]!r}"
        )
    return int(text) / 1000
