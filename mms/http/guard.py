"""Access checks before every request that manages models or shows how they are managed.

Two kinds of caller are refused. Web pages: a browser on this machine can reach loopback ports for
any page that it shows (DNS rebinding, cross-site requests). They are recognized by headers that a
browser sets and a page cannot. And callers without the token, where a token is set. The same
`Guard` serves both ports, so that a route has the same checks on either.
"""

from __future__ import annotations

import functools
import hmac
import ipaddress
import re
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion10
from multidict import istr

from mms.config.settings import TOKEN_VARIABLE, ServerSettings
from mms.errors import ConfigError, Draining, Forbidden, InvalidRequest, Unauthorized
from mms.http.audit import Failures
from mms.http.cors import Cors

#: At 1,000 guesses per second, guessing 16 random letters and digits takes longer than the machine
#: lasts.
MIN_TOKEN_CHARS = 16
#: SageMaker's name for its containers. A page cannot rebind it: .local is not in DNS.
_SAGEMAKER_HOST = "model.aws.local"
#: RFC 9110, section 7.2: a name or an address, IPv6 in brackets, and optionally a port.
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_ORIGIN = re.compile(r"(https?)://(.+)", re.ASCII)
_DEFAULT_PORTS = {"http": "80", "https": "443"}
_MAX_PORT = 65535
#: Maximum number of accepted Host headers that are cached, so that the next request with one costs
#: a look-up only. Bounded, since a client may send any port and any address.
_MOST_KNOWN_HOSTS = 64
_FETCH_SITE = istr("Sec-Fetch-Site")

Route = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Guard:
    """Checks requests before their handlers see them.

    Args:
        settings: The server's; `allowed_hosts` adds names to the default ones.
        token: Required by `check_token` as ``Authorization: Bearer``; not required if empty.
        failures: Counts wrong tokens, writes them to the audit log, and slows guessing down.

    Raises:
        ConfigError: The token is too short to be safe from guessing.
    """

    def __init__(
        self, settings: ServerSettings, token: str = "", failures: Failures | None = None
    ) -> None:
        if token and len(token) < MIN_TOKEN_CHARS:
            raise ConfigError(
                f"the token in {TOKEN_VARIABLE} is shorter than {MIN_TOKEN_CHARS} characters; "
                "generate one with: openssl rand -hex 16"
            )
        self._token = _bytes(token)
        self._failures = Failures() if failures is None else failures
        listed = {name.lower() for name in settings.allowed_hosts}
        self._takes_any = "*" in listed
        self._listed = frozenset(_name_of(name) for name in listed)
        own = {"localhost", settings.host.lower(), settings.management_host.lower()}
        if settings.multi_model:
            own.add(_SAGEMAKER_HOST)
        self._names = self._listed | own
        self._pages = Cors(settings).origins
        self._known: set[str] = set()

    @property
    def asks_for_token(self) -> bool:
        """Whether a token is set."""
        return bool(self._token)

    def check_page(self, request: web.Request) -> None:
        """Refuse requests that only a web page of another site would send.

        Raises:
            Forbidden: Host is not a name of this server, or Origin or Sec-Fetch-Site is another.
            InvalidRequest: There is no Host header where HTTP requires one.
        """
        if self._takes_any:
            return
        headers = request.headers
        host = headers.get(hdrs.HOST)
        if host not in self._known:
            self._check_host(host, request)
        if hdrs.ORIGIN in headers or _FETCH_SITE in headers:
            self._check_origin(request, host or "")

    def check_host(self, request: web.Request) -> None:
        """Refuse requests that are sent to another name than this server's.

        Raises:
            Forbidden: Host is not a name of this server.
            InvalidRequest: There is no Host header where HTTP requires one.
        """
        host = request.headers.get(hdrs.HOST)
        if host not in self._known and not self._takes_any:
            self._check_host(host, request)

    async def check_token(self, request: web.Request) -> None:
        """Refuse a request without the token, after a delay that grows with each failure.

        Raises:
            Unauthorized: It has no token, or a wrong one.
        """
        if not self._token:
            return
        scheme, _, sent = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        is_bearer = scheme.lower() == "bearer"
        # Compared as bytes, since headers may contain non-ASCII characters.
        if is_bearer and hmac.compare_digest(_bytes(sent.strip()), self._token):
            return
        what = "wrong token" if is_bearer else "no token"
        await self._failures.record(
            request.remote or "", f"{what} for {request.method} {request.path[:200]!r}"
        )
        raise Unauthorized(f"send Authorization: Bearer with the token in {TOKEN_VARIABLE}")

    def managed(self, handler: Route) -> Route:
        """Wrap a handler in the checks of the management API.

        For routes that change or list models on the inference port.
        """

        @functools.wraps(handler)
        async def guarded(request: web.Request) -> web.StreamResponse:
            self.check_page(request)
            await self.check_token(request)
            return await handler(request)

        return guarded

    def _check_host(self, host: str | None, request: web.Request) -> None:
        if host is None:
            # Health checks of load balancers use HTTP/1.0 without Host; no browser does.
            if request.version <= HttpVersion10:
                return
            raise InvalidRequest("the request has no Host header")
        name = _name_of(host)
        if not name:
            raise Forbidden(f"the Host header {host[:100]!r} is malformed")
        if not (name in self._names or _is_address(name)):
            raise Forbidden(
                f"the Host header names {name[:100]!r}, which is not this server; start it with "
                "--allowed-hosts to add a name"
            )
        if len(self._known) < _MOST_KNOWN_HOSTS:
            self._known.add(host)

    def _check_origin(self, request: web.Request, host: str) -> None:
        headers = request.headers
        origin = headers.get(hdrs.ORIGIN)
        if origin is not None:
            if origin.lower() in self._pages or self._is_listed(origin):
                # The operator has allowed this origin, whether same-site or not.
                return
            if _normal_origin(origin) != _normal_origin(f"{request.scheme}://{host}"):
                raise Forbidden(
                    "requests from web pages of other origins are refused; start the server with "
                    "--cors-allowed-origin to permit one"
                )
        if headers.get(_FETCH_SITE, "none") not in ("none", "same-origin"):
            raise Forbidden("requests from web pages of other sites are refused")

    def _is_listed(self, origin: str) -> bool:
        found = _ORIGIN.fullmatch(origin)
        return found is not None and _name_of(found[2]) in self._listed


def make_guard_middleware(guard: Guard, is_draining: Callable[[], bool]) -> Any:
    """Return a middleware that guards every path of an application, even without a route.

    Args:
        guard: Checks the requests.
        is_draining: Returns whether changes are refused because the server is stopping.
    """

    # aiohttp passes the next handler by keyword, so its name is part of the interface.
    @web.middleware
    async def check(request: web.Request, handler: Route) -> web.StreamResponse:
        guard.check_page(request)
        await guard.check_token(request)
        if request.method in ("POST", "PUT") and is_draining():
            raise Draining("the server is stopping")
        return await handler(request)

    return check


def _bytes(text: str) -> bytes:
    """Return the original bytes of a header or a variable, UTF-8 or not."""
    return text.encode(errors="surrogateescape")


def _name_of(host: str) -> str:
    """Return the name or address in a Host header, in lower case; "" if it is malformed."""
    found = _HOST.fullmatch(host)
    if found is None or int(found[2] or 0) > _MAX_PORT:
        return ""
    return found[1].strip("[]").lower()


def _normal_origin(origin: str) -> tuple[str, str, str] | None:
    """Return scheme, name and port of an origin (RFC 6454); None if it is not a web page's."""
    found = _ORIGIN.fullmatch(origin)
    name = _name_of(found[2]) if found else ""
    if found is None or not name:
        return None
    host = _HOST.fullmatch(found[2])
    port = host[2] if host and host[2] else _DEFAULT_PORTS[found[1]]
    return found[1], name, port.lstrip("0")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
