"""Routes that run a model: ``/predictions/{model}`` and v0.4's ``/{model}/predict``."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from aiohttp import hdrs, web
from multidict import istr

from mms.config.settings import ServerSettings
from mms.errors import InvalidRequest
from mms.http.body import content_encoding, read_body
from mms.http.connection import hold_of
from mms.http.context import CONTEXT
from mms.http.middleware import CALL
from mms.http.response import answer_response
from mms.wire.frames import Buffer
from mms.wire.messages import V2_HEADER_LENGTH, Dialect, RequestMeta

# Looked up for every request; `istr` saves lower-casing them each time.
TIMEOUT_HEADER = istr("X-Request-Timeout-Ms")
#: "high" runs before all other queued requests for the model.
PRIORITY_HEADER = istr("X-Request-Priority")


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    for path, name in (
        ("/predictions/{model}", "predictions"),
        ("/predictions/{model}/{version}", "predictions_version"),
    ):
        resource = app.router.add_resource(path, name=name)
        resource.add_route("POST", predict)
        # 1.x clients also use GET.
        resource.add_route("GET", predict)
        # `curl -T` sends PUT.
        resource.add_route("PUT", predict)
    app.router.add_post("/{model}/predict", predict_as_v04, name="legacy_predict")


async def predict(request: web.Request) -> web.StreamResponse:
    """Run a model and return its bare result."""
    match = request.match_info
    return await answer(request, match["model"], match.get("version"))


async def predict_as_v04(request: web.Request) -> web.StreamResponse:
    """Run a model and return its result in ``{"prediction": ...}``, as 0.4 did."""
    return await answer(request, request.match_info["model"], dialect=Dialect.V04)


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
    """
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
