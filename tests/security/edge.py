"""A small service, and clients that speak HTTP byte by byte, for the tests of the server's edge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from tests.kit.archives import make_folder
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import LIMIT_S, until

SERVICE = (Path(__file__).parent / "services" / "edge.py").read_text()


async def start_edge(
    start_server: StartServer, folder: Path, settings: dict[str, Any] | None = None, **model: Any
) -> RunningServer:
    """Start a server with the service under the name "edge"."""
    archive = make_folder(folder / "edge", SERVICE)
    return await start_server(settings or {}, edge=(archive, model))


class Client:
    """One connection, used as plainly as an attacker would."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        """Read an answer's status and headers."""
        data = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), LIMIT_S)
        first, *lines = data.decode("latin-1").split("\r\n")
        pairs = (line.split(": ", 1) for line in lines if line)
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}

    async def answer(self) -> tuple[int, dict[str, str], bytes]:
        """Read a whole answer."""
        status, headers = await self.head()
        length = int(headers.get("content-length", 0))
        body = await asyncio.wait_for(self.reader.readexactly(length), LIMIT_S)
        return status, headers, body

    async def error(self) -> tuple[int, str, str]:
        """Read an error answer in the project's shape: its status, code and message."""
        status, headers, body = await self.answer()
        error = json.loads(body)["error"]
        assert error["request_id"] == headers["x-request-id"]
        assert headers["content-type"] == "application/json"
        assert "server" not in headers
        return status, error["code"], error["message"]

    async def is_closed(self) -> bool:
        """Wait for the end of the connection; whatever came before it is dropped."""
        with contextlib.suppress(ConnectionError):
            await asyncio.wait_for(self.reader.read(), LIMIT_S)
        return True


@contextlib.asynccontextmanager
async def connect(
    server: RunningServer, receive_buffer: int = 0, port: int = 0
) -> AsyncIterator[Client]:
    """Open a connection; a small receive buffer makes a client that soon holds no more."""
    sock = socket.socket()
    sock.setblocking(False)
    limit = 2**16
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        limit = receive_buffer
    address = ("127.0.0.1", port or server.port)
    await asyncio.get_running_loop().sock_connect(sock, address)
    reader, writer = await asyncio.open_connection(sock=sock, limit=limit)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def http(
    body: bytes = b"", *lines: str, path: str = "/predictions/edge", method: str = "POST"
) -> bytes:
    """Build a request; its Content-Length unless a line has another framing."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", *lines]
    if not any(line.lower().startswith(("transfer-encoding", "content-length")) for line in lines):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


def command(*values: Any) -> bytes:
    """Build a JSON request for the service."""
    return http(json.dumps(values).encode(), "Content-Type: application/json")


def big(size: int) -> bytes:
    """Build a JSON body of about so many bytes, whose answer is small."""
    return json.dumps(["count", "z" * size]).encode()


async def returns_to_zero(server: RunningServer) -> None:
    """Wait until the server holds no byte of anybody's."""
    await until(lambda: server.budget.held == 0)


@contextlib.asynccontextmanager
async def busy(server: RunningServer, folder: Path) -> AsyncIterator[Client]:
    """Keep the only worker busy with one request, whose client is given."""
    async with connect(server) as client:
        await client.send(command("wait", str(folder)))
        await until((folder / "started").exists)
        try:
            yield client
        finally:
            (folder / "go").touch()
