"""Connections, heads and framing: what a client may do before a handler sees anything of it."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.kit.archives import make_folder
from tests.kit.server import RunningServer, StartServer, fresh_client, running_servers
from tests.kit.waiting import until
from tests.security.edge import SERVICE, connect, http

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB = 1 << 20
SHORT_S = 0.4
CHUNKED = "Transfer-Encoding: chunked"


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def loop() -> None:
    """Make the module's loop before the search for open files, whichever test comes first."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    archive = make_folder(folder / "edge", SERVICE)
    settings = {"max_request_bytes": MB, "management_port": 0}
    return await start_shared(settings, edge=archive)


@pytest_asyncio.fixture(loop_scope="module")
async def edge(shared: RunningServer) -> AsyncIterator[RunningServer]:
    async with fresh_client(shared) as server:
        yield server
        await until(lambda: server.budget.held == 0)


@pytest_asyncio.fixture(loop_scope="module")
async def start(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Start servers without models, which is all that these tests need."""
    archive = make_folder(tmp_path / "edge", SERVICE)
    async with running_servers(tmp_path) as start_server:

        async def start_one(**settings: object) -> RunningServer:
            return await start_server(settings, edge=archive)

        yield start_one


def malformed(server: RunningServer, status: int) -> int:
    return server.requests["malformed", status]


class TestV02V23PackedBodies:
    @pytest.mark.parametrize(
        "encoding", ["br", "zstd", "compress", "gzip, gzip", "identity, gzip", "aes128gcm", "", "*"]
    )
    async def test_an_encoding_that_no_worker_undoes_is_a_415_before_the_body_is_read(
        self, edge: RunningServer, encoding: str
    ) -> None:
        async with connect(edge) as client:
            await client.send(http(b"", f"Content-Encoding: {encoding}", f"Content-Length: {MB}"))
            status, code, message = await client.error()
        assert (status, code) == (415, "unsupported_media")
        assert "gzip, deflate and identity" in message

    async def test_two_lines_of_encodings_are_a_415(self, edge: RunningServer) -> None:
        async with connect(edge) as client:
            await client.send(http(b"[1]", "Content-Encoding: gzip", "Content-Encoding: gzip"))
            assert (await client.error())[0] == 415

    @pytest.mark.parametrize("encoding", ["identity", "Identity"])
    async def test_identity_is_no_encoding(self, edge: RunningServer, encoding: str) -> None:
        async with connect(edge) as client:
            await client.send(http(b"[1]", f"Content-Encoding: {encoding}"))
            status, _, body = await client.answer()
        assert (status, json.loads(body)) == (200, [1])

    @pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
    async def test_a_bomb_is_not_unpacked_in_the_server(
        self, edge: RunningServer, pack: object
    ) -> None:
        """What the request held of the budget is what came over the wire."""
        held = []
        packed = (gzip.compress if pack is gzip.compress else zlib.compress)(bytes(32 * MB))
        budget = edge.budget
        original = budget.held
        async with connect(edge) as client:
            encoding = "gzip" if pack is gzip.compress else "deflate"
            await client.send(
                http(packed[:-1], f"Content-Encoding: {encoding}", f"Content-Length: {len(packed)}")
            )
            await until(lambda: budget.held >= original + len(packed) - 1)
            held.append(budget.held - original)
            await client.send(packed[-1:])
            assert (await client.answer())[0] in (400, 413, 200)
        assert held[0] < 2 * len(packed) + 1000

    @pytest.mark.parametrize("path", ["/models", "/v2/repository/models/edge/load"])
    async def test_management_takes_no_encoding(self, edge: RunningServer, path: str) -> None:
        async with connect(edge, port=edge.management_port) as client:
            lines = "Content-Encoding: gzip", "Content-Type: application/json", "Host: 127.0.0.1"
            request = http(gzip.compress(b"{}"), *lines, path=path)
            await client.send(request.replace(b"Host: localhost\r\n", b""))
            status, _, body = await client.answer()
        assert status == 415
        assert b"accepts no Content-Encoding" in body

    @pytest.mark.parametrize("coding", ["gzip, chunked", "deflate, chunked", "identity, chunked"])
    async def test_a_transfer_encoding_that_is_not_undone_never_reaches_the_model(
        self, edge: RunningServer, coding: str
    ) -> None:
        body = gzip.compress(b"[1]")
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n"
        async with connect(edge) as client:
            await client.send(http(chunk, f"Transfer-Encoding: {coding}"))
            assert (await client.error())[0] in (400, 501)

    async def test_a_broken_chunk_is_a_400_without_a_traceback(
        self, edge: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with connect(edge) as client:
            await client.send(http(b"3\r\n[1", CHUNKED))
            await until(lambda: edge.budget.held >= 2)
            await client.send(b"zz\r\nrubbish")
            assert (await client.error())[0] == 400
            assert await client.is_closed()
        assert not errors(caplog)


class TestTinyChunks:
    """CVE-2025-23310 and -23311, of others: a body in chunks of a byte each."""

    async def test_tiny_chunks_are_parsed_a_piece_at_a_turn_and_kept_together(
        self, edge: RunningServer
    ) -> None:
        size, steps, last = 400_000, [0], [0]
        budget, loop = edge.budget, asyncio.get_running_loop()

        def look() -> None:
            steps.append(budget.held - last[0])
            last[0] = budget.held
            handle[0] = loop.call_soon(look)

        handle = [loop.call_soon(look)]
        async with connect(edge) as client:
            body = json.dumps(["count", "z" * size]).encode()
            await client.send(http(b"", CHUNKED))
            await client.send(b"".join(b"1\r\n%c\r\n" % byte for byte in body))
            await until(lambda: budget.held >= len(body))
            assert budget.held < 1.1 * len(body)
            await client.send(b"0\r\n\r\n")
            assert (await client.answer())[0] == 200
        handle[0].cancel()
        # Of what was sent, a sixth is body.
        assert 0 < max(steps) <= 16 << 10

    async def test_pipelined_requests_in_one_piece_are_answered_in_order(
        self, edge: RunningServer
    ) -> None:
        many = 1000
        async with connect(edge) as client:
            requests = [http(f"[{number}]".encode()) for number in range(many)]
            client.writer.write(b"".join(requests))
            for number in range(many):
                status, _, body = await client.answer()
                assert (status, json.loads(body)) == (200, [number])


class TestV22TooMuch:
    @pytest.mark.parametrize("lines", [(f"Content-Length: {1 << 40}",), (CHUNKED,)])
    async def test_after_a_413_no_more_is_read(
        self, edge: RunningServer, lines: tuple[str, ...]
    ) -> None:
        taken = 0
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        async with connect(edge) as client:
            await client.send(http(b"", *lines))
            with contextlib.suppress(ConnectionError):
                while taken < 64 * MB:
                    await client.send(piece)
                    taken += len(piece)
        # What fits the sockets' buffers, and the loop's turn in which the limit was passed.
        assert taken < 32 * MB

    async def test_a_413_is_answered_in_our_shape_and_closes(self, edge: RunningServer) -> None:
        async with connect(edge) as client:
            await client.send(http(b"", f"Content-Length: {1 << 40}"))
            status, code, message = await client.error()
            assert (status, code) == (413, "payload_too_large")
            assert "--max-request-bytes" in message
            assert await client.is_closed()

    async def test_who_asks_first_is_told_413_and_not_100(self, edge: RunningServer) -> None:
        async with connect(edge) as client:
            await client.send(http(b"", "Expect: 100-continue", f"Content-Length: {1 << 40}"))
            assert (await client.error())[0] == 413

    async def test_who_asks_first_for_nothing_that_is_there_is_told_404_and_not_100(
        self, edge: RunningServer
    ) -> None:
        async with connect(edge) as client:
            lines = "Expect: 100-continue", "Content-Length: 10"
            await client.send(http(b"", *lines, path="/predictions/nobody"))
            assert (await client.error())[0] == 404

    async def test_who_asks_first_is_told_to_go_on(self, edge: RunningServer) -> None:
        async with connect(edge) as client:
            await client.send(http(b"", "Expect: 100-continue", "Content-Length: 3"))
            assert (await client.head())[0] == 100
            await client.send(b"[1]")
            assert (await client.answer())[0] == 200
            await client.send(http(b"[2]"))
            assert (await client.answer())[2].strip() == b"[2]"

    @pytest.mark.parametrize("path", ["/predictions/edge", "/nowhere", "/ping"])
    async def test_an_unknown_expectation_is_a_417_in_our_shape(
        self, edge: RunningServer, path: str
    ) -> None:
        counted = malformed(edge, 417)
        async with connect(edge) as client:
            method = "GET" if path == "/ping" else "POST"
            await client.send(http(b"[1]", "Expect: miracles", path=path, method=method))
            assert (await client.error())[:2] == (417, "expectation_failed")
        assert malformed(edge, 417) == counted + 1

    async def test_a_refused_body_of_a_usual_length_still_lets_the_answer_be_read(
        self, edge: RunningServer
    ) -> None:
        async with connect(edge) as client:
            request = http(b"x" * (MB - 10), path="/predictions/nobody")
            await client.send(request[: MB // 2])
            assert (await client.error())[0] == 404
            await client.send(request[MB // 2 :])
            await client.send(http(b"[1]"))
            assert (await client.answer())[0] == 200


class TestV21SlowHeads:
    @pytest.mark.parametrize("keepalive", [0, 75])
    @pytest.mark.parametrize("begun", [b"", b"P", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"])
    async def test_a_head_that_does_not_end_is_closed_whatever_keeps_alive(
        self, start: StartServer, begun: bytes, keepalive: int
    ) -> None:
        server = await start(header_timeout=SHORT_S, keepalive_timeout=keepalive)
        async with connect(server) as client:
            await client.send(begun)
            if begun:
                status, code, message = await client.error()
                assert (status, code) == (408, "slow_client")
                assert "header_timeout" in message
            assert await client.is_closed()

    async def test_a_dripping_head_after_a_request_is_closed(self, start: StartServer) -> None:
        server = await start(header_timeout=SHORT_S)
        async with connect(server) as client:
            await client.send(http(b"[1]"))
            assert (await client.answer())[0] == 200
            dripping = asyncio.create_task(drip(client.writer))
            assert (await client.error())[0] == 408
            dripping.cancel()
            await asyncio.gather(dripping, return_exceptions=True)

    async def test_a_slow_body_and_a_slow_model_are_no_slow_head(
        self, start: StartServer, tmp_path: Path
    ) -> None:
        server = await start(header_timeout=SHORT_S)
        async with connect(server) as client:
            await client.send(http(b"", "Content-Length: 3"))
            await outlast_a_slow_head(server)
            await client.send(b"[1]")
            assert (await client.answer())[0] == 200

    async def test_an_idle_connection_outlives_header_timeout(self, start: StartServer) -> None:
        server = await start(header_timeout=SHORT_S)
        async with connect(server) as client:
            for _ in range(2):
                await client.send(http(b"[1]"))
                assert (await client.answer())[0] == 200
                await outlast_a_slow_head(server)

    async def test_keepalive_timeout_0_closes_after_an_answer_and_says_so(
        self, start: StartServer
    ) -> None:
        server = await start(keepalive_timeout=0)
        for request in (http(b"[1]"), http(method="GET", path="/ping"), http(path="/nowhere")):
            async with connect(server) as client:
                await client.send(request)
                _, headers, _ = await client.answer()
                assert headers["connection"] == "close"
                assert await client.is_closed()


async def outlast_a_slow_head(server: RunningServer) -> None:
    """Return when a head that began now has been given up."""
    async with connect(server) as slow:
        await slow.send(b"GET / HTTP/1.1\r\n")
        assert (await slow.error())[0] == 408


async def drip(writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nX-")
    while True:
        writer.write(b"X")
        await asyncio.sleep(SHORT_S / 10)


class TestV24ManyConnections:
    async def test_beyond_the_limit_a_connection_is_told_so_and_those_inside_are_served(
        self, start: StartServer
    ) -> None:
        server = await start(max_connections=4)
        async with contextlib.AsyncExitStack() as stack:
            inside = [await stack.enter_async_context(connect(server)) for _ in range(4)]
            await until(lambda: server.connections == 4)
            async with connect(server) as client:
                await client.send(http(b"[1]"))
                status, code, message = await client.error()
                assert (status, code) == (503, "too_many_connections")
                assert "--max-connections" in message
                assert await client.is_closed()
            for client in inside:
                await client.send(http(b"[1]"))
                assert (await client.answer())[0] == 200
        await until(lambda: server.connections == 0)
        async with connect(server) as client:
            await client.send(http(b"[1]"))
            assert (await client.answer())[0] == 200

    async def test_silent_clients_beyond_the_limit_are_not_kept(self, start: StartServer) -> None:
        server = await start(max_connections=1)
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(connect(server)) for _ in range(100)]
            await asyncio.gather(*(client.is_closed() for client in clients[1:]))
            assert server.connections == 1
            await until(lambda: not server.turned_away)

    async def test_an_operator_gets_in_beyond_the_limit(self, start: StartServer) -> None:
        server = await start(max_connections=1, management_port=0)
        async with connect(server):
            await until(lambda: server.connections == 1)
            assert (await server.manage("GET", "/models"))[0] == 200


GARBAGE = {
    "no HTTP": (b"rubbish\r\n\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "NUL in a header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two lengths": (http(b"", "Content-Length: 3", "Content-Length: 4"), 400),
    "two framings": (http(b"0\r\n\r\n", CHUNKED, "Content-Length: 3"), 400),
    "negative length": (http(b"", "Content-Length: -1"), 400),
    "folded header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nA: b\r\n c\r\n\r\n", 400),
    "long header": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 20_000 + b"\r\n\r\n", 431),
    "long header name": (
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"a" * 20_000 + b": b\r\n\r\n",
        431,
    ),
    "many headers": (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 5000 + b"\r\n", 431),
    "long line": (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
}

#: Headers that are odd, but that HTTP allows; the answer may be any but a failure of ours.
ODD_HEADERS = [
    "Content-Type: application/json; charset=no-such-charset",
    "Content-Type: application/json; charset=\xff\xfe",
    "Content-Type: text/plain; charset=utf-16-le",
    "Content-Type: ;;;=",
    "Content-Type: /",
    "Content-Type: multipart/form-data",
    "Content-Type: multipart/form-data; boundary=",
    'Content-Type: multipart/form-data; boundary="' + "a" * 10_000,
    "Content-Type: application/x-www-form-urlencoded; charset=rot13",
    "Content-Type: application/x-www-form-urlencoded; charset=idna",
    "Content-Type: " + "a/" * 5000,
    "Content-Type: \xe9/\xe9",
    "Accept: \xff",
    "Accept: " + "*/*," * 3000,
    "Accept: ;q=NaN",
    "Accept-Encoding: \xff;q=9",
    "Cookie: \xff=;;;=",
    "Authorization: Basic !!!",
    "Range: bytes=9-1",
    "If-Modified-Since: never",
    "X-Request-Id: " + "a" * 1000,
    "X-Request-Priority: \xff",
    "X-Request-Timeout-Ms: -1",
    "Inference-Header-Content-Length: -1",
    "Upgrade: h2c",
    "Connection: close, keep-alive, \xff",
    "Host: \xff",
    "Forwarded: for=\xff",
]


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what was logged as an error or with a traceback."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.levelno >= logging.ERROR or record.exc_info
    ]


class TestV18Malformed:
    @pytest.mark.parametrize("name", GARBAGE)
    async def test_what_is_no_request_is_answered_in_our_shape_counted_and_logged_in_one_line(
        self, edge: RunningServer, caplog: pytest.LogCaptureFixture, name: str
    ) -> None:
        data, expected = GARBAGE[name]
        counted = malformed(edge, expected)
        caplog.set_level(logging.DEBUG)
        async with connect(edge) as client:
            await client.send(data)
            status, _, message = await client.error()
            assert status == expected
            assert len(message) < 200
            assert message.isascii()
            assert message.isprintable()
            assert "aaaa" not in message
            assert await client.is_closed()
        assert malformed(edge, expected) == counted + 1
        assert not errors(caplog)

    async def test_a_flood_writes_a_few_lines(
        self, start: StartServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        server = await start()
        caplog.set_level(logging.INFO)
        for _ in range(100):
            async with connect(server) as client:
                await client.send(b"rubbish\r\n\r\n")
                await client.answer()
        assert malformed(server, 400) == 100
        assert sum("malformed" in record.getMessage() for record in caplog.records) < 50
        assert not errors(caplog)

    @pytest.mark.parametrize("header", ODD_HEADERS)
    async def test_an_odd_header_is_no_failure_of_ours(
        self, edge: RunningServer, caplog: pytest.LogCaptureFixture, header: str
    ) -> None:
        for port in (edge.port, edge.management_port):
            for path in ("/predictions/edge", "/models", "/v2/models/edge/infer"):
                async with connect(edge, port=port) as client:
                    await client.send(http(b"[1]", header, path=path))
                    status, headers, _ = await client.answer()
                    assert status < 500
                    assert "server" not in headers
        assert not errors(caplog)

    @pytest.mark.parametrize("path", ["/ping", "/metrics", "/docs", "/nowhere", "/openapi.json"])
    async def test_no_answer_names_the_servers_software(
        self, edge: RunningServer, path: str
    ) -> None:
        async with connect(edge) as client:
            await client.send(http(path=path, method="GET"))
            assert "server" not in (await client.head())[1]
