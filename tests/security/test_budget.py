"""Bytes held for clients are counted over all of them, bounded, and always given back."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import pytest

from mms.errors import BufferFull, InvalidServiceOutput, PayloadTooLarge
from mms.serving.budget import SMALL_BYTES, Budget, Hold, default_limit
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until
from tests.security.edge import big, busy, connect, http, returns_to_zero, start_edge

MB = 1 << 20
JSON = {"Content-Type": "application/json"}


class TestV09Budget:
    def test_what_fits_is_counted_until_it_is_released(self) -> None:
        budget = Budget(100)
        with Hold(budget) as first, Hold(budget) as second:
            first.grow(60)
            second.grow(40)
            assert budget.held == 100
            with pytest.raises(BufferFull, match=r"max_buffered_bytes.*--max-buffered-bytes"):
                second.grow(1)
            assert (budget.held, second.size) == (100, 40)
            first.release()
            second.grow(60)
            assert budget.held == 100
        assert budget.held == 0

    def test_a_body_longer_than_the_whole_budget_is_too_large_and_not_a_matter_of_time(
        self,
    ) -> None:
        budget = Budget(100)
        with pytest.raises(PayloadTooLarge, match="--max-buffered-bytes"):
            budget.check(101)
        with Hold(budget) as hold, pytest.raises(PayloadTooLarge):
            hold.grow(101)
        assert budget.held == 0

    def test_large_bodies_leave_room_for_small_ones(self) -> None:
        budget = Budget(64 * SMALL_BYTES)
        holds = [Hold(budget) for _ in range(64)]
        for hold in holds[:28]:
            hold.grow(2 * SMALL_BYTES)
        with pytest.raises(BufferFull):
            holds[28].grow(2 * SMALL_BYTES)
        assert budget.held == 56 * SMALL_BYTES
        with Hold(budget) as small:
            small.grow(SMALL_BYTES)
            assert small.size == SMALL_BYTES

    def test_an_answer_takes_the_place_of_its_body(self) -> None:
        budget = Budget(10 * MB)
        with Hold(budget) as hold:
            hold.grow(8 * MB)
            hold.replace(9 * MB)
            assert budget.held == 9 * MB
            with Hold(budget) as other, pytest.raises(BufferFull):
                other.replace(2 * MB)
            with Hold(budget) as other:
                other.replace(100)
                assert budget.held == 9 * MB + 100
        assert budget.held == 0

    def test_a_small_answer_is_sent_though_the_budget_is_spent(self) -> None:
        budget = Budget(MB)
        with Hold(budget) as spent, Hold(budget) as hold:
            spent.replace(MB)
            hold.replace(SMALL_BYTES)
        assert budget.held == 0

    def test_an_answer_longer_than_the_whole_budget_names_it(self) -> None:
        budget = Budget(MB)
        with Hold(budget) as hold:
            hold.grow(100)
            with pytest.raises(InvalidServiceOutput, match="--max-buffered-bytes"):
                hold.replace(2 * MB)
            assert budget.held == 0

    @pytest.mark.parametrize(
        ("files", "address_space", "limit"),
        [
            ({}, 0, 1 << 30),
            ({"proc/meminfo": "MemTotal: 8388608 kB\n"}, 0, 2 << 30),
            ({"proc/meminfo": "MemTotal: 8388608 kB\n"}, 1 << 30, 256 << 20),
            ({"sys/fs/cgroup/memory.max": "max\n"}, 0, 1 << 30),
            ({"sys/fs/cgroup/memory.max": "4194304\n"}, 0, MB),
            ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "8388608\n"}, 0, 2 * MB),
            (
                {
                    "proc/self/cgroup": "0::/a/b\n",
                    "sys/fs/cgroup/a/memory.max": "4194304\n",
                    "sys/fs/cgroup/a/b/memory.max": "max\n",
                },
                0,
                MB,
            ),
            (
                {
                    "proc/self/cgroup": "5:cpu:/c\n4:cpu,memory:/a\n",
                    "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "4194304\n",
                },
                0,
                MB,
            ),
        ],
    )
    def test_the_default_is_a_quarter_of_the_least_limit(
        self, tmp_path: Path, files: dict[str, str], address_space: int, limit: int
    ) -> None:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        assert default_limit(tmp_path, address_space) == limit


class TestV09QueuedBodies:
    async def test_bodies_that_wait_are_bounded_in_bytes_and_small_ones_pass(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"max_buffered_bytes": 8 * MB})
        async with busy(server, tmp_path) as first:
            waiting = [asyncio.create_task(post(server, big(MB))) for _ in range(20)]
            await until(lambda: sum(task.done() for task in waiting) >= 14)
            assert server.budget.held <= 8 * MB
            refused = [await task for task in waiting if task.done()]
            assert {status for status, _, _ in refused} == {503}
            for _, headers, answer in refused:
                assert answer["error"]["code"] == "buffer_full"
                assert "--max-buffered-bytes" in answer["error"]["message"]
                assert headers["Retry-After"] == "1"
            small = asyncio.create_task(post(server, b"[1]"))
            await until(lambda: server.servable("edge").queue_depth >= 20 - len(refused) + 1)
            (tmp_path / "go").touch()
            assert (await first.answer())[0] == 200
            assert (await small)[0] == 200
            statuses = [status for status, _, _ in await asyncio.gather(*waiting)]
        assert sorted(set(statuses)) == [200, 503]
        await returns_to_zero(server)
        sample = "mms_requests_rejected_total"
        count = await server.metric(sample, reason="buffer_full", model="edge")
        assert count == statuses.count(503)

    async def test_a_length_that_cannot_be_held_now_is_refused_before_any_of_it_is_read(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"max_buffered_bytes": 4 * MB})
        async with busy(server, tmp_path), connect(server) as holder, connect(server) as client:
            await holder.send(http(big(2 * MB)))
            await until(lambda: server.budget.held > 2 * MB)
            await client.send(http(b"", f"Content-Length: {3 * MB}"))
            assert (await client.error())[:2] == (503, "buffer_full")
        await returns_to_zero(server)

    async def test_a_length_that_is_only_announced_holds_nothing(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"max_buffered_bytes": 4 * MB})
        async with connect(server) as silent:
            await silent.send(http(b"", f"Content-Length: {3 * MB}"))
            await until(lambda: server.connections)
            assert (await post(server, big(3 * MB)))[0] == 200
        await returns_to_zero(server)

    async def test_chunked_bodies_count_as_they_grow(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"max_buffered_bytes": 4 * MB})
        async with busy(server, tmp_path), connect(server) as holder, connect(server) as client:
            await holder.send(http(big(2 * MB)))
            await until(lambda: server.budget.held > 2 * MB)
            await client.send(http(b"", "Transfer-Encoding: chunked"))
            chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
            sending = asyncio.create_task(client.send(chunk * 40))
            assert (await client.error())[:2] == (503, "buffer_full")
            await asyncio.gather(sending, return_exceptions=True)
        await returns_to_zero(server)

    async def test_a_body_longer_than_the_whole_budget_is_a_413_that_names_the_option(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"max_buffered_bytes": 2 * MB})
        async with connect(server) as client:
            await client.send(http(b"", f"Content-Length: {3 * MB}"))
            status, code, message = await client.error()
        assert (status, code) == (413, "payload_too_large")
        assert "--max-buffered-bytes" in message

    async def test_the_metrics_show_what_is_held_and_what_may_be(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_edge(start_server, tmp_path, {"max_buffered_bytes": 4 * MB})
        async with busy(server, tmp_path):
            assert 0 < await server.metric("mms_buffered_bytes") < 1000
            assert await server.metric("mms_buffered_bytes_limit") == 4 * MB
            assert await server.metric("mms_connections") == 2


async def post(server: RunningServer, body: bytes) -> tuple[int, Any, Any]:
    url = f"{server.url}/predictions/edge"
    async with server.session.post(url, data=io.BytesIO(body), headers=JSON) as response:
        return response.status, response.headers, await response.json()
