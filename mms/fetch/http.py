"""Ask an HTTP server for an archive.

Built on the standard library's `http.client`, because each connection has to be looked at before
it is made: a name is resolved once, its addresses are checked, and one of these very addresses is
connected to, for each redirect anew. Proxies are those of the environment (``https_proxy``,
``no_proxy``), certificates those of the system (``SSL_CERT_FILE``, ``SSL_CERT_DIR``).
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import NoReturn
from urllib.parse import SplitResult, unquote, urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from mms.errors import ArchiveError, DownloadFailed
from mms.fetch.admission import Policy
from mms.fetch.location import Location, is_remote, parse_location, shown
from mms.fetch.source import CHUNK_BYTES, Answer, Ask, Interrupted, make_validator
from mms.version import __version__

_MAX_REDIRECTS = 10
_REDIRECTS = (301, 302, 303, 307, 308)
_PORTS = {"http": 80, "https": 443}
#: Statuses of a server that may answer otherwise in a moment: busy, or unwell.
_PASSING = (408, 425, 429)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_HINTS = {
    401: "it asks for credentials",
    403: "it refuses; a signed URL may have expired",
    404: "there is no such file",
    410: "the file is gone",
}


@contextlib.contextmanager
def open_http(ask: Ask) -> Iterator[Answer | None]:
    """Send a request, follow its redirects, and return the answer; None is "not changed".

    Raises:
        Interrupted: The server cannot be reached, breaks off, or is unwell.
        DownloadFailed: It refuses, or what it answers cannot be used.
        Forbidden: The policy does not permit the URL, a redirect's target, or an address.
    """
    location = ask.location
    for _ in range(_MAX_REDIRECTS + 1):
        with contextlib.ExitStack() as stack:
            response = _request(location, ask, stack)
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None:
                yield _answer(response, ask)
                return
        location = _redirected(location, target, ask)
    raise DownloadFailed(f"{ask.location.shown}: redirected more than {_MAX_REDIRECTS} times")


def _redirected(location: Location, target: str, ask: Ask) -> Location:
    """Return where a redirect leads, if one may go there."""
    # Header bytes arrive as Latin-1; what is meant is UTF-8, and quoted like a URL that is typed.
    text = target.encode("latin-1").decode(errors="replace")
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
            f"{ask.location.shown}: redirected from https:// to {following.shown}, which anybody "
            "on the way could change"
        )
    if ask.policy:
        ask.policy.check_url(following.url)
    return _with_user(following, location)


def _with_user(location: Location, former: Location) -> Location:
    """Take a user name and password along to the same server, and to no other."""
    old, new = urlsplit(former.url), urlsplit(location.url)
    user, _, host = old.netloc.rpartition("@")
    if not user or (old.scheme, host) != (new.scheme, new.netloc):
        return location
    return parse_location(new._replace(netloc=old.netloc).geturl())


def _request(location: Location, ask: Ask, stack: contextlib.ExitStack) -> http.client.HTTPResponse:
    """Connect, ask, and read the answer's head."""
    with _network_errors(ask):
        route = _connect(location, ask, stack)
        headers = {
            "Host": route.host_header,
            "User-Agent": f"mxnet-model-server/{__version__}",
            "Accept": "*/*",
            # Ranges and lengths are those of the file itself only where nothing packs it.
            "Accept-Encoding": "identity",
            "Connection": "close",
            **route.headers,
            **_conditions(ask),
        }
        route.connection.request("GET", route.target, headers=headers)
        response = route.connection.getresponse()
    stack.callback(response.close)
    return response


def _conditions(ask: Ask) -> dict[str, str]:
    if ask.offset:
        return {"Range": f"bytes={ask.offset}-", "If-Range": ask.validator.strong}
    named = {
        "If-None-Match": ask.validator.etag,
        "If-Modified-Since": ask.validator.last_modified,
    }
    return {name: value for name, value in named.items() if value}


def _answer(response: http.client.HTTPResponse, ask: Ask) -> Answer | None:
    status, where = response.status, ask.location.shown
    if status == 304:
        return None
    if status == 416 and ask.offset:
        raise Interrupted("the file has become shorter meanwhile", starts_over=True)
    if status in _PASSING or status >= 500:
        raise Interrupted(f"the server answers {status}")
    if status not in (200, 206):
        raise DownloadFailed(f"{where}: {_HINTS.get(status, 'the server answers')} ({status})")
    packed = response.headers.get("Content-Encoding", "identity").lower()
    if packed != "identity":
        raise DownloadFailed(f"{where}: the server sends it packed ({packed[:50]}), unasked")
    start, total = 0, response.length
    if status == 206:
        start, total = _range(response, ask)
    headers = response.headers
    validator = make_validator(headers.get("ETag"), headers.get("Last-Modified"))
    return Answer(start, total, validator, partial(_read, response, ask))


def _range(response: http.client.HTTPResponse, ask: Ask) -> tuple[int, int | None]:
    """Return where a part begins and how long the whole is."""
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if match is None or not ask.offset or int(match[1]) != ask.offset:
        raise Interrupted("the server answers another part than was asked for", starts_over=True)
    return ask.offset, None if match[2] == "*" else int(match[2])


def _read(response: http.client.HTTPResponse, ask: Ask) -> bytes:
    with _network_errors(ask):
        # read1 gives what is there; read would wait for a whole chunk, and with it a server that
        # sends a byte now and then would seem to be dead.
        return response.read1(CHUNK_BYTES)


@dataclass(frozen=True, slots=True)
class _Route:
    """A connection, and how to ask on it."""

    connection: http.client.HTTPConnection
    target: str
    host_header: str
    headers: dict[str, str]


def _connect(location: Location, ask: Ask, stack: contextlib.ExitStack) -> _Route:
    parts = urlsplit(location.url)
    user, _, netloc = parts.netloc.rpartition("@")
    headers = {"Authorization": _basic(user)} if user else {}
    target = parts.path + (f"?{parts.query}" if parts.query else "")
    proxy = _proxy(parts, ask)
    if proxy is None:
        connection = _direct(parts, ask, stack)
    elif parts.scheme == "https":
        connection = _tunnel(parts, proxy, ask, stack)
    else:
        connection = _to_proxy(proxy, ask, stack)
        connection.connect()
        target = f"http://{netloc}{target}"
        headers |= _proxy_headers(proxy)
    connection.sock.settimeout(ask.timeouts.read_s)
    return _Route(connection, target, netloc, headers)


def _direct(
    parts: SplitResult, ask: Ask, stack: contextlib.ExitStack
) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    sock = stack.enter_context(_dial(host, port, ask.policy, ask.timeouts.connect_s))
    if parts.scheme == "https":
        sock = stack.enter_context(_encrypted(sock, host))
    connection = http.client.HTTPConnection(host, port)
    # A connection that has its socket makes none of its own.
    connection.sock = sock
    return connection


def _dial(host: str, port: int, policy: Policy | None, timeout_s: float) -> socket.socket:
    """Connect to a host, at an address that was checked: nothing resolves it a second time."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        if policy:
            policy.check_address(host, str(address[0]))
    error = OSError("the name has no address")
    for family, kind, protocol, _, address in found:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(timeout_s)
            sock.connect(address)
        except OSError as failure:
            sock.close()
            error = failure
        else:
            return sock
    raise error


def _encrypted(sock: socket.socket, host: str) -> ssl.SSLSocket:
    return ssl.create_default_context().wrap_socket(sock, server_hostname=host)


def _proxy(parts: SplitResult, ask: Ask) -> SplitResult | None:
    """Return the proxy to go through, if there is one."""
    if ask.policy and not ask.policy.allow_private:
        # A proxy would resolve the name itself, so that nobody could check where it connects.
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
        # Its port is no number; said below.
        pass
    raise DownloadFailed(
        f"{ask.location.shown}: {parts.scheme}_proxy must be an http:// URL, not {shown(url)}"
    )


def _to_proxy(
    proxy: SplitResult, ask: Ask, stack: contextlib.ExitStack
) -> http.client.HTTPConnection:
    connection = http.client.HTTPConnection(
        proxy.hostname or "", proxy.port or 80, timeout=ask.timeouts.connect_s
    )
    stack.callback(connection.close)
    return connection


def _tunnel(
    parts: SplitResult, proxy: SplitResult, ask: Ask, stack: contextlib.ExitStack
) -> http.client.HTTPConnection:
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    connection = _to_proxy(proxy, ask, stack)
    connection.set_tunnel(host, port, headers=_proxy_headers(proxy))
    connection.connect()
    connection.sock = stack.enter_context(_encrypted(connection.sock, host))
    return connection


def _proxy_headers(proxy: SplitResult) -> dict[str, str]:
    user = proxy.netloc.rpartition("@")[0]
    return {"Proxy-Authorization": _basic(user)} if user else {}


def _basic(user: str) -> str:
    """Return the header for ``name:password`` as it stands in a URL."""
    return "Basic " + base64.b64encode(unquote(user).encode()).decode()


@contextlib.contextmanager
def _network_errors(ask: Ask) -> Iterator[None]:
    """Say what went wrong on the way, without a word of what the other end sent."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise DownloadFailed(
            f"{ask.location.shown}: the server's certificate is not trusted: "
            f"{error.verify_message}; SSL_CERT_FILE names a file with further authorities"
        ) from None
    except (OSError, http.client.HTTPException, UnicodeError) as error:
        _interrupt(error, ask)


def _interrupt(error: Exception, ask: Ask) -> NoReturn:
    if isinstance(error, TimeoutError):
        timeouts = ask.timeouts
        reason = f"no answer within {timeouts.connect_s:g} s to connect, {timeouts.read_s:g} s more"
    elif isinstance(error, socket.gaierror):
        reason = "the host's name cannot be resolved"
    elif isinstance(error, http.client.RemoteDisconnected):
        reason = "the server closed the connection without an answer"
    elif isinstance(error, http.client.IncompleteRead):
        reason = "the connection was cut"
    elif isinstance(error, OSError):
        reason = error.strerror or str(error)
    else:
        reason = f"what answers there is no HTTP server ({type(error).__name__})"
    raise Interrupted(reason) from None
