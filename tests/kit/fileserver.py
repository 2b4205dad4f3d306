"""A real HTTP server for downloads, which can also do what such servers do when they are unwell."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import http.server
import ipaddress
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_BLOCK_BYTES = 16 << 10


@dataclass
class File:
    """A file, and how it is sent.

    Attributes:
        content: All of it.
        etag: Its validator, or "".
        last_modified: Its other validator, or "".
        cuts: Bytes after which the next answers break off, one each.
        knows_ranges: Whether a part may be asked for.
    """

    content: bytes
    etag: str = '"v1"'
    last_modified: str = ""
    cuts: list[int] = field(default_factory=list)
    knows_ranges: bool = True


@dataclass(frozen=True)
class Seen:
    """A request that came in."""

    method: str
    path: str
    headers: Message


class FileServer:
    """The server.

    Attributes:
        files: What it serves, by path.
        odd: Handlers that answer by themselves, by path.
        seen: The requests so far.
        connections: How often somebody has connected.
        closing: Set when the server is about to end; handlers that wait, wait for this.
    """

    def __init__(self, address: str = "127.0.0.1", certificate: Path | None = None) -> None:
        self.files: dict[str, File] = {}
        self.odd: dict[str, Callable[[Handler], None]] = {}
        self.seen: list[Seen] = []
        self.connections = 0
        self.closing = threading.Event()
        owner = self

        class Bound(Handler):
            files_server = owner

        self._server = _Server((address, 0), Bound)
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            # The handshake is the handler's, so that a client who refuses us ends nothing else.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self.port = int(self._server.server_address[1])
        scheme = "https" if certificate else "http"
        self.url = f"{scheme}://{address}:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def add(self, path: str, content: bytes, **how: object) -> str:
        """Serve a file; return its URL."""
        self.files[path] = File(content, **how)  # type: ignore[arg-type] # File checks the names
        return self.url + path

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        # Waits for the handlers.
        self._server.server_close()
        self._thread.join()

    def bodies(self, path: str) -> int:
        """How many requests for a path were not just asking whether it has changed."""
        return len([seen for seen in self.seen if seen.path == path and not _is_conditional(seen)])


def _is_conditional(seen: Seen) -> bool:
    return bool({"if-none-match", "if-modified-since"} & {name.lower() for name in seen.headers})


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients here leave when they like."""


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    files_server: FileServer
    timeout = 60

    def setup(self) -> None:
        self.files_server.connections += 1
        super().setup()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.files_server
        server.seen.append(Seen("GET", self.path, self.headers))
        # One answer per connection, so that nobody waits for a client's next request.
        self.close_connection = True
        path = self.path.partition("?")[0]
        if path in server.odd:
            server.odd[path](self)
        elif path in server.files:
            self._send(server.files[path])
        else:
            self.answer(404, b"not here")

    def do_CONNECT(self) -> None:
        self.files_server.seen.append(Seen("CONNECT", self.path, self.headers))
        self.close_connection = True
        self.files_server.odd["CONNECT"](self)

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; a header's name has _ for -."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)

    def _send(self, file: File) -> None:
        headers = {"ETag": file.etag, "Last_Modified": file.last_modified}
        headers = {name: value for name, value in headers.items() if value}
        asked = self.headers
        if asked.get("If-Match", file.etag) != file.etag:
            self.answer(412)
            return
        if (file.etag and asked.get("If-None-Match") == file.etag) or (
            file.last_modified and asked.get("If-Modified-Since") == file.last_modified
        ):
            self.send_response(304)
            self.end_headers()
            return
        start, total = self._start(file), len(file.content)
        if start >= total and start:
            self.answer(416, Content_Range=f"bytes */{total}")
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(total - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        end = start + file.cuts.pop(0) if file.cuts else total
        for at in range(start, end, _BLOCK_BYTES):
            self.wfile.write(file.content[at : min(at + _BLOCK_BYTES, end)])

    def _start(self, file: File) -> int:
        wanted = self.headers.get("Range", "")
        if not wanted or not file.knows_ranges:
            return 0
        if self.headers.get("If-Range", file.etag) not in (file.etag, file.last_modified):
            return 0
        return int(wanted.removeprefix("bytes=").rstrip("-"))


@contextlib.contextmanager
def file_server(
    address: str = "127.0.0.1", certificate: Path | None = None
) -> Iterator[FileServer]:
    """Return a server that ends afterwards."""
    server = FileServer(address, certificate)
    try:
        yield server
    finally:
        server.close()


def closed_port() -> int:
    """Return a port on which nothing listens."""
    with file_server() as server:
        return server.port


def redirect(target: str, status: int = 302) -> Callable[[Handler], None]:
    """Send clients elsewhere."""
    return lambda handler: handler.answer(status, Location=target)


def says(line: bytes) -> Callable[[Handler], None]:
    """Answer with these bytes and no others."""

    def answer(handler: Handler) -> None:
        handler.wfile.write(line)

    return answer


def silence(handler: Handler) -> None:
    """Answer nothing for as long as the server is there."""
    handler.files_server.closing.wait()


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def write_certificate(folder: Path) -> Path:
    """Write a certificate for 127.0.0.1 and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path
