"""Whatever ends a request, not a byte of it stays counted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mms.serving.budget import Hold
from tests.kit.archives import make_folder
from tests.kit.server import RunningServer, StartServer, fresh_client, running_servers
from tests.kit.waiting import until
from tests.security.edge import SERVICE, big, busy, command, connect, http, returns_to_zero

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    archive = make_folder(folder / "edge", SERVICE)
    return await start_shared(
        {"max_buffered_bytes": 64 * MB, "max_request_bytes": 8 * MB}, edge=archive
    )


@pytest_asyncio.fixture(loop_scope="module")
async def edge(shared: RunningServer) -> AsyncIterator[RunningServer]:
    async with fresh_client(shared) as server:
        yield server
        await returns_to_zero(server)


class TestV09EveryEndGivesBack:
    @pytest.mark.parametrize(
        "request_",
        [
            command("answer", 10),
            command("answer", MB),
            command("raise", 10),
            http(b"{broken"),
            http(b"[1]", path="/predictions/nobody"),
            http(b"[1]", "X-Request-Timeout-Ms: 0"),
            http(b"", "Content-Length: 999999999"),
            http(b"[1]", "Content-Encoding: br"),
            http(big(MB)),
            http(b"zz\r\n", "Transfer-Encoding: chunked"),
            http(b"2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
            http(b"", path="/metrics", method="GET"),
            http(b"[1]", "Expect: 100-continue"),
            http(b"[1]", "Expect: the unexpected"),
            b"rubbish\r\n\r\n",
        ],
    )
    async def test_an_answer(self, edge: RunningServer, request_: bytes) -> None:
        async with connect(edge) as client:
            await client.send(request_)
            await client.answer()
            await returns_to_zero(edge)

    async def test_a_client_that_leaves_while_it_sends(self, edge: RunningServer) -> None:
        async with connect(edge) as client:
            await client.send(http(b"x" * MB, f"Content-Length: {2 * MB}"))
            await until(lambda: edge.budget.held > MB // 2)
        await returns_to_zero(edge)

    async def test_a_client_that_leaves_while_it_waits_or_is_served(
        self, edge: RunningServer, tmp_path: Path
    ) -> None:
        async with busy(edge, tmp_path) as running:
            async with connect(edge) as waiting:
                await waiting.send(http(big(MB)))
                await until(lambda: edge.servable("edge").queue_depth == 1)
                running.writer.transport.abort()
            await returns_to_zero(edge)
            assert edge.servable("edge").queue_depth == 0

    async def test_a_deadline(self, edge: RunningServer, tmp_path: Path) -> None:
        async with busy(edge, tmp_path), connect(edge) as client:
            await client.send(http(big(MB), "X-Request-Timeout-Ms: 50"))
            assert (await client.error())[0] == 504

    async def test_a_client_that_leaves_in_its_answer(self, edge: RunningServer) -> None:
        async with connect(edge, receive_buffer=4096) as client:
            await client.send(command("answer", 20 * MB))
            assert (await client.head())[0] == 200
            assert edge.budget.held > 20 * MB
        await returns_to_zero(edge)

    async def test_a_shadow(self, edge: RunningServer, tmp_path: Path) -> None:
        await edge.infer_shadowed("edge", big(MB))
        await until(lambda: edge.shadows["edge", "1", "same"] == 1)
        await returns_to_zero(edge)
        with Hold(edge.budget) as hold:
            hold.grow(55 * MB)
            await edge.infer_shadowed("edge", big(2 * MB))
            assert edge.shadows["edge", "1", "skipped"] == 1
            assert edge.budget.held == 55 * MB


class TestV09Stopping:
    async def test_a_drain_gives_back_what_it_ends(self, tmp_path: Path) -> None:
        archive = make_folder(tmp_path / "edge", SERVICE)
        async with running_servers(tmp_path) as start:
            server = await start({"shutdown_timeout": 0.1}, edge=archive)
            async with busy(server, tmp_path), connect(server) as client:
                await client.send(http(big(MB)))
                await until(lambda: server.servable("edge").queue_depth == 1)
                await server.stop()
            await returns_to_zero(server)
