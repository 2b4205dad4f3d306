"""Cross-origin requests (CORS): which web pages of other origins may read what this server answers.

Off unless `cors_allowed_origin` is set. 0.4 sent ``Access-Control-Allow-Origin: *`` always, 1.x
what its three settings say; their names are 1.x's. A page that may read the answers of the
management API could replace the models, so ``*`` does not count there: an origin must be named.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web

from mms.config.settings import ServerSettings
from mms.errors import ConfigError
from mms.http.response import FastResponse

_ANY = "*"
#: RFC 6454: a scheme, a host and optionally a port, without a path. Apps have schemes of their own.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@\\]+", re.ASCII)
#: RFC 9110: what a method or a header may be called, and a list of such names.
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+", re.ASCII)
_TOKENS = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, \t-]+", re.ASCII)
#: What 0.4 answered where no methods are set.
_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Cors:
    """Answers preflight requests, and adds the headers of CORS to all answers.

    Args:
        settings: The server's.
        is_management: Whether it is for the management API, where ``*`` does not count.

    Attributes:
        origins: The origins whose pages may read answers.
        takes_any: Whether the pages of all origins may.

    Raises:
        ConfigError: An origin, a method or a header is malformed.
    """

    def __init__(self, settings: ServerSettings, is_management: bool = False) -> None:
        listed = [_origin(text) for text in settings.cors_allowed_origin]
        self.takes_any = _ANY in listed and not is_management
        self.origins = frozenset(listed) - {_ANY}
        methods = _names(settings.cors_allowed_methods, "cors_allowed_methods")
        headers = _names(settings.cors_allowed_headers, "cors_allowed_headers")
        self._lists: dict[str, str] = {}
        if methods:
            self._lists[hdrs.ACCESS_CONTROL_ALLOW_METHODS] = methods
        if headers:
            self._lists[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = headers

    @property
    def is_on(self) -> bool:
        """Whether any page may read answers."""
        return self.takes_any or bool(self.origins)

    def install(self, app: web.Application) -> None:
        """Add this to an application that is on, after the middleware that counts calls."""
        if self.is_on:
            app.middlewares.append(self._middleware())
            app.on_response_prepare.append(self._add)

    def headers_of(self, origin: str | None) -> dict[str, str]:
        """Return the headers of an answer.

        Args:
            origin: The page's, as sent; None if no page asks or it is not known.
        """
        if self.takes_any:
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: _ANY, **self._lists}
        if len(self.origins) == 1:
            # Always, as 1.x: the answer is then the same whoever asks, and caches may keep it.
            (only,) = self.origins
            return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: only, **self._lists}
        if not self.origins:
            return {}
        varies: dict[str, str] = {hdrs.VARY: hdrs.ORIGIN}
        if origin is None or not self._is_allowed(origin):
            return varies
        # Browsers send it in lower case, and a letter that is none once lowered must not go out.
        return {hdrs.ACCESS_CONTROL_ALLOW_ORIGIN: origin.lower(), **varies, **self._lists}

    def _is_allowed(self, origin: str | None) -> bool:
        return origin is not None and (self.takes_any or origin.lower() in self.origins)

    def _middleware(self) -> Any:
        # aiohttp passes the next handler by keyword, so its name is part of the interface.
        @web.middleware
        async def share(request: web.Request, handler: Handler) -> web.StreamResponse:
            origin = request.headers.get(hdrs.ORIGIN)
            if (
                request.method == hdrs.METH_OPTIONS
                and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers
                and self._is_allowed(origin)
            ):
                return self._preflight(request)
            answer = await handler(request)
            if isinstance(answer, FastResponse):
                answer.add_headers(self.headers_of(origin))
            return answer

        return share

    def _preflight(self, request: web.Request) -> web.Response:
        """Return the permission that a browser asks for before the page's own request."""
        headers = {hdrs.ALLOW: _METHODS, hdrs.ACCESS_CONTROL_ALLOW_METHODS: _METHODS}
        asked = request.headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "")
        if _TOKENS.fullmatch(asked):
            headers[hdrs.ACCESS_CONTROL_ALLOW_HEADERS] = asked
        return web.Response(headers=headers)

    async def _add(self, request: web.Request, answer: web.StreamResponse) -> None:
        """aiohttp: add the headers to an answer; those set by operators replace a preflight's."""
        for name, value in self.headers_of(request.headers.get(hdrs.ORIGIN)).items():
            if name == hdrs.VARY:
                answer.headers.add(name, value)
            else:
                answer.headers[name] = value


def _origin(text: str) -> str:
    origin = text.lower().rstrip("/")
    if origin != _ANY and not _ORIGIN.fullmatch(origin):
        raise ConfigError(
            f"cors_allowed_origin: expected an origin such as https://page.example, or *, got "
            f"{text[:100]!r}"
        )
    return origin


def _names(texts: tuple[str, ...], key: str) -> str:
    for text in texts:
        if not _TOKEN.fullmatch(text):
            raise ConfigError(f"{key}: expected names separated by commas, got {text[:100]!r}")
    return ", ".join(texts)
