"""Request an archive from an HTTP server.

Redirects are followed here, one by one, so that each URL is checked before anything is sent to it.
Addresses are checked where sockets are made: a name is resolved once, and what is checked is the
very address that is connected to next. Proxies are those of the environment (``https_proxy``,
``no_proxy``), certificates those of the system (``SSL_CERT_FILE``, ``SSL_CERT_DIR``).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, NoReturn
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mms.errors import ArchiveError, DownloadFailed
from mms.fetch.location import Location, is_remote, parse_location, shown
from mms.fetch.source import CHUNK_BYTES, Answer, Ask, Interrupted, make_validator
from mms.version import __version__

_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
#: Longest header that is read. Locations of signed URLs and cookies can exceed aiohttp's 8 KiB.
_MAX_HEADER_BYTES = 32 << 10
#: Statuses below 500 of a transient failure.
_TRANSIENT = (408, 425, 429)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_HINTS = {
    401: "the server requires credentials",
    403: "the server denies access; a signed URL may have expired",
    404: "there is no such file",
    410: "the file is gone",
}


@contextlib.asynccontextmanager
async def open_http(ask: Ask) -> AsyncIterator[Answer | None]:
    """Send a request, follow its redirects, and yield the answer; None means "not modified".

    Raises:
        Interrupted: The server cannot be reached, breaks off, or reports a transient failure.
        DownloadFailed: It refuses, or its response cannot be used.
        Forbidden: The policy does not permit the URL, a redirect's target, or an address.
    """
    location = ask.location
    for _ in range(_MAX_REDIRECTS + 1):
        async with _request(location, ask) as response:
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None:
                yield _answer(response, ask)
                return
        location = _redirected(location, target, ask)
    raise DownloadFailed(f"{ask.location.shown}: more than {_MAX_REDIRECTS} redirects")


def _redirected(location: Location, target: str, ask: Ask) -> Location:
    """Return where a redirect leads, if it may be followed."""
    # Bytes that are not UTF-8 must not reach a log or a reply as lone surrogates.
    text = target.encode(errors="surrogateescape").decode(errors="replace")
    try:
        url = urljoin(location.url, text).partition("#")[0]
        following = parse_location(url) if is_remote(url) else None
    except (ValueError, ArchiveError):
        following = None
    if following is None or following.scheme == "s3":
        raise DownloadFailed(
            f"{ask.location.shown}: redirected to {shown(text)}, which is not an http:// or "
            "https:// URL"
        )
    if location.scheme == "https" and following.scheme == "http":
        raise DownloadFailed(
            f"{ask.location.shown}: redirected from https:// to {following.shown}, which is not "
            "encrypted"
        )
    if ask.policy:
        ask.policy.check_url(following.url)
    return _with_user(following, location)


def _with_user(location: Location, former: Location) -> Location:
    """Keep a user name and password for the same server, and for no other."""
    old, new = urlsplit(former.url), urlsplit(location.url)
    user, _, host = old.netloc.rpartition("@")
    if not user or (old.scheme, host) != (new.scheme, new.netloc):
        return location
    return parse_location(new._replace(netloc=old.netloc).geturl())


@contextlib.asynccontextmanager
async def _request(location: Location, ask: Ask) -> AsyncIterator[aiohttp.ClientResponse]:
    """Send one request on a connection of its own, and yield the response, its body unread."""
    parts = urlsplit(location.url)
    user, _, netloc = parts.netloc.rpartition("@")
    headers = {
        "User-Agent": f"mxnet-model-server/{__version__}",
        # Ranges and lengths are those of the file itself only without a content encoding.
        "Accept-Encoding": "identity",
        **_conditions(ask),
    }
    if user:
        headers["Authorization"] = _basic(user)
    proxy = _proxy(parts, ask)
    proxy_headers = _proxy_headers(proxy) if proxy else {}
    context: ssl.SSLContext | bool = True
    if parts.scheme == "https":
        # Not aiohttp's own, which knows the environment of its import.
        context = ssl.create_default_context()
    else:
        headers |= proxy_headers
    timeouts = ask.timeouts
    async with contextlib.AsyncExitStack() as stack:
        with _network_errors(ask):
            session = await stack.enter_async_context(_session(parts.hostname or "", ask))
            sending = session.get(
                URL(parts._replace(netloc=_dotted(netloc)).geturl(), encoded=True),
                headers=headers,
                allow_redirects=False,
                ssl=context,
                proxy="http://" + proxy.netloc.rpartition("@")[2] if proxy else None,
                proxy_headers=proxy_headers or None,
            )
            # In all: a byte now and then resets the session's own timeout.
            response = await asyncio.wait_for(sending, timeouts.connect_s + timeouts.read_s)
            stack.callback(response.close)
        yield response


@contextlib.asynccontextmanager
async def _session(host: str, ask: Ask) -> AsyncIterator[aiohttp.ClientSession]:
    """Yield what sends requests to a host, at addresses that the policy permits."""

    def make_socket(address: Any) -> socket.socket:
        family, kind, protocol, _, socket_address = address
        if ask.policy:
            ask.policy.check_address(host, str(socket_address[0]))
        return socket.socket(family, kind, protocol)

    async def send_once(
        request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType
    ) -> aiohttp.ClientResponse:
        # aiohttp repeats a request whose connection breaks; attempts are counted in one place.
        with _network_errors(ask):
            return await send(request)

    connector = aiohttp.TCPConnector(
        resolver=_Resolver(),
        use_dns_cache=False,
        force_close=True,
        # One address after another: a race would swallow that the policy forbids one of them.
        happy_eyeballs_delay=None,
        socket_factory=make_socket,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=CHUNK_BYTES,
        max_field_size=_MAX_HEADER_BYTES,
        middlewares=(send_once,),
        timeout=aiohttp.ClientTimeout(
            sock_connect=ask.timeouts.connect_s, sock_read=ask.timeouts.read_s
        ),
    ) as session:
        yield session


class _Resolver(AbstractResolver):
    """Resolves names in the thread of the download.

    aiohttp's own uses threads that are waited for at exit, and with them a name server that hangs.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=found_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST,
            )
            for found_family, _, protocol, _, address in socket.getaddrinfo(
                host, port, family, socket.SOCK_STREAM
            )
        ]

    async def close(self) -> None:
        """Do nothing: nothing is kept."""


def _conditions(ask: Ask) -> dict[str, str]:
    if ask.offset:
        return {"Range": f"bytes={ask.offset}-", "If-Range": ask.validator.strong}
    named = {
        "If-None-Match": ask.validator.etag,
        "If-Modified-Since": ask.validator.last_modified,
    }
    return {name: value for name, value in named.items() if value}


def _answer(response: aiohttp.ClientResponse, ask: Ask) -> Answer | None:
    status, where = response.status, ask.location.shown
    if status == 304:
        return None
    if status == 416 and ask.offset:
        raise Interrupted("the file is shorter than before", starts_over=True)
    if status in _TRANSIENT or status >= 500:
        raise Interrupted(f"the server responded with status {status}")
    if status not in (200, 206):
        raise DownloadFailed(f"{where}: {_HINTS.get(status, 'unexpected status')} ({status})")
    encoding = response.headers.get("Content-Encoding", "identity").lower()
    if encoding != "identity":
        encoding = encoding[:50].encode(errors="replace").decode()
        raise DownloadFailed(f"{where}: unexpected Content-Encoding {encoding!r}")
    start, total = _range(response, ask) if status == 206 else (0, response.content_length)
    headers = response.headers
    validator = make_validator(headers.get("ETag"), headers.get("Last-Modified"))
    return Answer(start, total, validator, partial(_read, response, ask))


def _range(response: aiohttp.ClientResponse, ask: Ask) -> tuple[int, int | None]:
    """Return where a part begins and how long the whole is."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or not ask.offset or int(match[1]) != ask.offset:
        raise Interrupted("the server sent a range that was not requested", starts_over=True)
    return ask.offset, None if match[2] == "*" else int(match[2])


async def _read(response: aiohttp.ClientResponse, ask: Ask) -> bytes:
    content = response.content
    with _network_errors(ask):
        try:
            return await content.readany()
        except aiohttp.ClientPayloadError as error:
            # The connection broke. aiohttp raises before it gives what had come by then.
            content.set_exception(None)  # type: ignore[arg-type] # means "no exception"
            rest = content.read_nowait()
            content.set_exception(error)
            # The end, if the length tells that it is not the real one.
            if rest or response.content_length is not None:
                return rest
            raise


def _dotted(netloc: str) -> str:
    """Return a host and port, with four numbers for an IPv4 address that is another form.

    The system knows forms such as 2130706433, and aiohttp refuses them.
    """
    host, colon, port = netloc.partition(":")
    with contextlib.suppress(OSError):
        if host.replace(".", "").isdigit():
            host = socket.inet_ntoa(socket.inet_aton(host))
    return f"{host}{colon}{port}"


def _proxy(parts: SplitResult, ask: Ask) -> SplitResult | None:
    """Return the proxy of the environment for a URL, if there is one."""
    if ask.policy and not ask.policy.allow_private:
        # A proxy resolves the name itself, so that nobody could check where it connects.
        return None
    url = getproxies().get(parts.scheme)
    if not url or proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    url = url if "://" in url else f"http://{url}"
    try:
        proxy = urlsplit(url)
        if proxy.scheme == "http" and proxy.hostname and proxy.port != 0:
            return proxy
    except ValueError:
        # Its port is not a number; reported below.
        pass
    raise DownloadFailed(
        f"{ask.location.shown}: {parts.scheme}_proxy must be an http:// URL, not {shown(url)}"
    )


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    user = proxy.netloc.rpartition("@")[0]
    return {"Proxy-Authorization": _basic(user)} if user else {}


def _basic(user: str) -> str:
    """Return the header for ``name:password`` as it stands in a URL."""
    return "Basic " + base64.b64encode(unquote(user).encode()).decode()


@contextlib.contextmanager
def _network_errors(ask: Ask) -> Iterator[None]:
    """Say what went wrong on the network, without a word of what the peer sent."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        reason = getattr(error.certificate_error, "verify_message", "")
        raise DownloadFailed(
            f"{ask.location.shown}: the server's certificate is not trusted: {reason}; "
            "SSL_CERT_FILE names a file with further authorities"
        ) from None
    except aiohttp.InvalidURL:
        raise DownloadFailed(f"{ask.location.shown}: the URL's host is not valid") from None
    except (aiohttp.ClientError, OSError, asyncio.TimeoutError) as error:
        _interrupt(error, ask)


def _interrupt(error: Exception, ask: Ask) -> NoReturn:
    if isinstance(error, asyncio.TimeoutError):
        timeouts = ask.timeouts
        reason = f"no answer within {timeouts.connect_s:g} s to connect, {timeouts.read_s:g} s more"
    elif isinstance(error, aiohttp.ClientConnectorDNSError):
        reason = "the host's name cannot be resolved"
    elif isinstance(error, aiohttp.ClientConnectorSSLError):
        details = getattr(error.os_error, "reason", None) or type(error.os_error).__name__
        reason = f"the TLS handshake failed ({details})"
    elif isinstance(error, aiohttp.ServerDisconnectedError):
        reason = "the server closed the connection without an answer"
    elif isinstance(error, aiohttp.ClientPayloadError):
        reason = "the connection was cut"
    elif isinstance(error, aiohttp.ClientHttpProxyError):
        reason = f"the proxy refused the tunnel with status {error.status}"
    elif isinstance(error, aiohttp.ClientResponseError):
        reason = "the response is not valid HTTP"
    elif isinstance(error, OSError) and error.errno and error.errno > 0:
        reason = os.strerror(error.errno)
    else:
        reason = f"the connection failed ({type(error).__name__})"
    raise Interrupted(reason) from None
