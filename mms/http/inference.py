"""Routes that run a model: ``/predictions/{model}`` and v0.4's ``/{model}/predict``."""

from __future__ import annotations

import re
from collections.abc import Coroutine, Sequence
from typing import Any

from aiohttp import hdrs, web
from multidict import istr

from mms.config.settings import ServerSettings
from mms.errors import InvalidRequest
from mms.http.body import content_encoding, read_body
from mms.http.connection import hold_of
from mms.http.context import CONTEXT
from mms.http.middleware import CALL, Handler
from mms.http.response import answer_response
from mms.serving.registry import DEFAULT_VERSION, Registry
from mms.wire.frames import Buffer
from mms.wire.messages import V2_HEADER_LENGTH, Dialect, RequestMeta

# Looked up for every request; `istr` saves lower-casing them each time.
TIMEOUT_HEADER = istr("X-Request-Timeout-Ms")
#: "high" runs before all other queued requests for the model.
PRIORITY_HEADER = istr("X-Request-Priority")
#: What 1.x passes to handlers, whatever the method.
_METHODS_OF_HANDLERS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})
_NUMBER = re.compile(r"v?[0-9][0-9.]*", re.ASCII)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    for path, name, handler in (
        ("/predictions/{model}", "predictions", predict),
        # Whatever else stands in the path may name a version.
        ("/predictions/{model}/{version:.+}", "predictions_version", predict_version),
    ):
        # 1.x clients also use GET, and `curl -T` sends PUT.
        add_for_models(app, path, name, handler, ("POST", "GET", "PUT"))
    add_for_models(app, "/{model}/predict", "legacy_predict", predict_as_v04)


def add_for_models(
    app: web.Application, path: str, name: str, handler: Handler, methods: Sequence[str] = ("POST",)
) -> None:
    """Add a route that runs a model: for some methods, and for handlers of 1.x for most others.

    Args:
        app: The inference application.
        path: Its path.
        name: Its name.
        handler: Calls `answer`, which checks the other methods.
        methods: The methods for all models.
    """

    async def answer_others(request: web.Request) -> web.StreamResponse:
        if request.method not in _METHODS_OF_HANDLERS:
            raise web.HTTPMethodNotAllowed(request.method, methods)
        return await handler(request)

    resource = app.router.add_resource(path, name=name)
    for method in methods:
        resource.add_route(method, handler)
    resource.add_route(hdrs.METH_ANY, answer_others)


async def predict(request: web.Request) -> web.StreamResponse:
    """Run a model and return its bare result."""
    return await answer(request, request.match_info["model"])


async def predict_version(request: web.Request) -> web.StreamResponse:
    """Run a version of a model and return its bare result."""
    match = request.match_info
    version = _version(request.app[CONTEXT].registry, match["model"], match["version"])
    return await answer(request, match["model"], version)


async def predict_as_v04(request: web.Request) -> web.StreamResponse:
    """Run a model and return its result in ``{"prediction": ...}``, as 0.4 did."""
    return await answer(request, request.match_info["model"], dialect=Dialect.V04)


def _version(registry: Registry, name: str, rest: str) -> str | None:
    """Return the version that the rest of a path names, None if it names none.

    1.x has no versions in its paths and ignores the rest, which its handlers cannot see either. So
    does this for a handler of which no version has a name, unless the rest looks like a version:
    the answer of another one would be wrong.
    """
    rest = rest.rstrip("/")
    if name in registry:
        versions = registry.model(name).versions
        only = versions.get(DEFAULT_VERSION) if len(versions) == 1 else None
        if only and only.wants_headers and not (rest in versions or _NUMBER.fullmatch(rest)):
            return None
    return rest


def _check_method(request: web.Request, model: str) -> None:
    """Refuse a method that only handlers of 1.x are asked by, if the model is none.

    Raises:
        HTTPMethodNotAllowed: The model does not take it.
    """
    registry, routes = request.app[CONTEXT].registry, request.match_info.route.resource or ()
    allowed = {route.method for route in routes} - {hdrs.METH_ANY}
    is_for_all = request.method in allowed or model not in registry
    if not (is_for_all or registry.get(model).wants_headers):
        raise web.HTTPMethodNotAllowed(request.method, allowed)


async def answer(
    request: web.Request,
    model: str,
    version: str | None = None,
    dialect: Dialect = Dialect.PLAIN,
) -> web.StreamResponse:
    """Run a model on a request and return the response.

    Args:
        request: The request.
        model: Name of the model.
        version: The requested version, if any.
        dialect: Format of the request and response bodies.

    Raises:
        MMSError: The request failed.
        HTTPMethodNotAllowed: The model does not take the method.
    """
    if request.method != hdrs.METH_POST:
        _check_method(request, model)
    context, call = request.app[CONTEXT], request[CALL]
    query = _Query(request, context.settings, model, version, dialect)
    return answer_response(request, await context.dataplane.predict(call, query), call.id)


class _Query:
    """A prediction requested over HTTP (`dataplane.Query`)."""

    __slots__ = (
        "_dialect", "_encoding", "_request", "_settings", "hold", "is_urgent", "model",
        "timeout_s", "version",
    )  # fmt: skip

    def __init__(
        self,
        request: web.Request,
        settings: ServerSettings,
        model: str,
        version: str | None,
        dialect: Dialect,
    ) -> None:
        self._request = request
        self._settings = settings
        self._dialect = dialect
        self._encoding = ""
        self.hold = hold_of(request)
        self.model = model
        self.version = version
        self.is_urgent = False
        self.timeout_s: float | None = None

    def header(self, name: str) -> str | None:
        """Return a header's value."""
        return self._request.headers.get(name)

    def read(self) -> Coroutine[Any, Any, tuple[list[Buffer], int]]:
        """Return the body, after checking the headers that describe it."""
        request, settings = self._request, self._settings
        self.timeout_s = _timeout_s(request)
        self.is_urgent = request.headers.get(PRIORITY_HEADER, "").lower() == "high"
        self._encoding = content_encoding(request)
        return read_body(request, settings.max_request_bytes, settings.body_timeout, is_packed=True)

    def meta(self, id_: str, wants_headers: bool) -> RequestMeta:
        """Return the metadata of the request for the worker."""
        headers = self._request.headers
        meta = RequestMeta(
            id_,
            self._dialect,
            headers.get(hdrs.CONTENT_TYPE, ""),
            headers.get(hdrs.ACCEPT, ""),
            self._encoding,
        )
        if wants_headers:
            # Only for services that use them. The names are `istr`; plain strings encode faster.
            meta.headers = {str(name): headers[name] for name in headers}
            meta.query = tuple(self._request.query.items())
        elif self._dialect is Dialect.OIP and V2_HEADER_LENGTH in headers:
            meta.headers = {V2_HEADER_LENGTH: headers[V2_HEADER_LENGTH]}
        return meta


def _timeout_s(request: web.Request) -> float | None:
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return None
    # isdecimal alone also accepts other scripts' digits; the length bounds the number.
    if not (text.isascii() and text.isdecimal() and len(text) <= 10 and int(text) > 0):
        raise InvalidRequest(
            f"{TIMEOUT_HEADER} must be a positive integer (milliseconds), got {text[:20]!r}"
        )
    return int(text) / 1000
