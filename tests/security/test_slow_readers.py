"""What answers cost while they are written, and what clients that do not read them may cost."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mms.http.response import own_body
from tests.kit.server import StartServer
from tests.kit.waiting import LIMIT_S, until
from tests.security.edge import command, connect, http, returns_to_zero, start_edge

MB = 1 << 20
#: Short, so that a client without progress is soon cut off.
WRITE_TIMEOUT_S = 0.5


class TestV08SlowReaders:
    async def test_a_client_that_does_not_read_is_cut_off_and_its_answer_freed(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"write_timeout": WRITE_TIMEOUT_S})
        async with connect(server, receive_buffer=4096) as client:
            await client.send(command("answer", 30 * MB))
            assert (await client.head())[0] == 200
            assert server.budget.held >= 30 * MB
            await returns_to_zero(server)
            await until(lambda: server.connections == 0)
        reason = "slow_reader"
        assert await server.metric("mms_requests_rejected_total", reason=reason) == 1

    async def test_answers_that_nobody_reads_are_bounded_together(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"max_buffered_bytes": 70 * MB})
        budget = server.budget
        async with (
            connect(server, receive_buffer=4096) as first,
            connect(server, receive_buffer=4096) as second,
            connect(server) as third,
        ):
            for client in (first, second):
                await client.send(command("answer", 30 * MB))
                assert (await client.head())[0] == 200
            await third.send(command("answer", 30 * MB))
            status, code, message = await third.error()
            assert (status, code) == (503, "buffer_full")
            assert "--max-buffered-bytes" in message
            assert budget.held <= budget.limit
            # Small answers go on.
            await third.send(command("answer", 10))
            assert (await third.answer())[0] == 200
        await returns_to_zero(server)

    async def test_a_slow_client_that_keeps_reading_gets_all_of_its_answer(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"write_timeout": WRITE_TIMEOUT_S})
        size = 3 * MB
        async with connect(server, receive_buffer=32 << 10) as client:
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            await client.send(command("answer", size))
            _, headers = await client.head()
            left = int(headers["content-length"])
            assert left > size
            while left:
                left -= len(await asyncio.wait_for(client.reader.read(16 << 10), LIMIT_S))
                # Slower than the limit in all, never as slow between two reads.
                if loop.time() - began_at < 3 * WRITE_TIMEOUT_S:
                    await asyncio.sleep(WRITE_TIMEOUT_S / 20)
            assert loop.time() - began_at > 2 * WRITE_TIMEOUT_S

    @pytest.mark.parametrize(
        ("request_", "many"),
        [
            (http(b"", path="/metrics", method="GET"), 2000),
            (http(b"", path="/openapi.json", method="GET"), 1000),
            (http(b"", path="/nowhere", method="GET"), 20_000),
            (command("answer", 1000), 8000),
        ],
        ids=["metrics", "description", "errors", "small answers"],
    )
    async def test_pipelined_requests_whose_answers_nobody_reads_are_cut_off_too(
        self, start_server: StartServer, tmp_path: Path, request_: bytes, many: int
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"write_timeout": WRITE_TIMEOUT_S})
        async with connect(server, receive_buffer=4096) as client:
            client.writer.write(request_ * many)
            await until(lambda: server.rejected["slow_reader"] == 1)
            await until(lambda: server.connections == 0)
        await returns_to_zero(server)

    async def test_a_connection_that_is_closed_with_unread_answers_is_cut_off(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        """A close waits until everything is sent, which here it never is."""
        settings = {"write_timeout": WRITE_TIMEOUT_S, "keepalive_timeout": 0}
        server = await start_edge(start_server, tmp_path, settings)
        async with connect(server, receive_buffer=4096) as client:
            await client.send(command("answer", 30 * MB))
            await client.head()
            await until(lambda: server.connections == 0)
        await returns_to_zero(server)


class TestV08OneCopy:
    def test_a_large_part_of_a_frame_is_not_copied_and_a_small_one_does_not_keep_it(self) -> None:
        frame = memoryview(bytes(MB))
        large, small = frame[: MB // 2], frame[: MB // 2 - 1]
        assert own_body(large) is large
        copied = own_body(small)
        assert isinstance(copied, bytes)
        assert len(copied) == len(small)
