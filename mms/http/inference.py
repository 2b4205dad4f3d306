"""Routes that ask a model: ``/predictions/{model}`` and v0.4's ``/{model}/predict``."""

from __future__ import annotations

from aiohttp import hdrs, web
from multidict import istr

from mms.errors import Draining, InvalidRequest
from mms.http.body import content_encoding, read_body
from mms.http.connection import hold_of
from mms.http.context import CONTEXT, Context
from mms.http.middleware import CALL
from mms.http.response import answer_response
from mms.serving.registry import Model
from mms.serving.servable import Servable
from mms.wire.messages import V2_HEADER_LENGTH, Dialect, RequestMeta

# Looked up for every request; as `istr` they need not be made lower-case each time.
TIMEOUT_HEADER = istr("X-Request-Timeout-Ms")
#: "high" goes before everything else that waits for the model.
PRIORITY_HEADER = istr("X-Request-Priority")
#: Whichever is on its way when the server stops gets its answer; who comes later is told when.
_RETRY_WHEN_DRAINING_S = 5.0


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    for path, name in (
        ("/predictions/{model}", "predictions"),
        ("/predictions/{model}/{version}", "predictions_version"),
    ):
        resource = app.router.add_resource(path, name=name)
        resource.add_route("POST", predict)
        # 1.x asks its handlers with GET, too.
        resource.add_route("GET", predict)
        # What `curl -T` sends.
        resource.add_route("PUT", predict)
    app.router.add_post("/{model}/predict", predict_as_v04, name="legacy_predict")


async def predict(request: web.Request) -> web.StreamResponse:
    """Answer with the model's bare result."""
    context, match = request.app[CONTEXT], request.match_info
    model = find_model(context, match["model"])
    return await predict_with(request, context, model, match.get("version"))


async def predict_as_v04(request: web.Request) -> web.StreamResponse:
    """Answer with the model's result in ``{"prediction": ...}``, as 0.4 did."""
    context = request.app[CONTEXT]
    model = find_model(context, request.match_info["model"])
    return await predict_with(request, context, model, dialect=Dialect.V04)


async def predict_with(
    request: web.Request,
    context: Context,
    model: Model,
    version: str | None = None,
    dialect: Dialect = Dialect.PLAIN,
) -> web.StreamResponse:
    """Answer a request with a version of a model, by default as its traffic is split.

    Args:
        request: The request.
        context: What handlers share.
        model: Who answers.
        version: The version asked for, if any.
        dialect: How the body is written, and the answer is to be.

    Raises:
        MMSError: Whatever kept the model from answering.
    """
    servable = _choose(model, request) if version is None else model.version(version)
    call = request[CALL]
    call.metrics = servable.metrics
    if context.is_draining:
        raise Draining("the server is stopping", _RETRY_WHEN_DRAINING_S)
    settings = context.settings
    timeout_s = _timeout_s(request)
    encoding = content_encoding(request)
    chunks, size = await read_body(
        request, settings.max_request_bytes, settings.body_timeout, is_packed=True
    )
    if servable.is_gone:
        # Replaced or unregistered while the body came: nobody need notice.
        servable = _successor(request, context, servable)
        call.metrics = servable.metrics
    meta = _encode_meta(request, call.id, dialect, encoding, servable)
    is_urgent = request.headers.get(PRIORITY_HEADER, "").lower() == "high"
    copy_to = model.versions.get(model.traffic.shadow) if version is None else None
    asking = servable.infer(meta, chunks, size, timeout_s, is_urgent)
    if copy_to is None or copy_to is servable:
        answer = await asking
    else:
        answer = await context.shadows.answer(asking, copy_to, meta, chunks, size)
    hold_of(request).replace(len(answer.body))
    return answer_response(request, answer, call.id)


def find_model(context: Context, name: str) -> Model:
    """Return a model for a request.

    Raises:
        ModelNotFound: No model has this name.
        ModelNotReady: The server has not read all its archives yet.
    """
    return context.registry.find(name, context.is_started)


def _choose(model: Model, request: web.Request) -> Servable:
    header = model.traffic.sticky_header
    return model.choose(request.headers.get(header) if header else None)


def _successor(request: web.Request, context: Context, servable: Servable) -> Servable:
    model = context.registry.model(servable.name)
    if request.match_info.get("version") is None and servable.version not in model.versions:
        return _choose(model, request)
    return model.version(servable.version)


def _encode_meta(
    request: web.Request, id_: str, dialect: Dialect, encoding: str, servable: Servable
) -> bytes:
    """Return what the worker must know of a request besides its body."""
    headers = request.headers
    meta = RequestMeta(
        id_,
        dialect,
        headers.get(hdrs.CONTENT_TYPE, ""),
        headers.get(hdrs.ACCEPT, ""),
        encoding,
    )
    if servable.wants_headers:
        # Others do not pay for them. The names are no plain strings, which encode fast.
        meta.headers = {str(name): headers[name] for name in headers}
        meta.query = tuple(request.query.items())
    elif dialect is Dialect.OIP and V2_HEADER_LENGTH in headers:
        meta.headers = {V2_HEADER_LENGTH: headers[V2_HEADER_LENGTH]}
    return meta.encode()


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
