"""Who reads what processes hold, when and where: the kernel walks all their pages for it."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.server import StartServer
from tests.kit.waiting import until
from tests.management.stores import says

pytestmark = pytest.mark.asyncio(loop_scope="module")

_OF_A_PROCESS = re.compile(r"/proc/(\d+)/(statm|smaps_rollup)")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def loop_of_the_module() -> None:
    """Have the loop there before a test's open files are counted, whichever test is the first."""


class Reads:
    """The files on the memory of other processes that are opened in this one."""

    def __init__(self) -> None:
        self.is_hooked = False
        self.is_recording = False
        self._found: list[tuple[int, str, bool]] = []

    def hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.is_recording and event == "open" and isinstance(args[0], str):
            match = _OF_A_PROCESS.fullmatch(args[0])
            if match:
                on_loop = threading.current_thread() is threading.main_thread()
                self._found.append((int(match[1]), match[2], on_loop))

    def clear(self) -> None:
        self._found.clear()

    def count(self, pid: int, name: str) -> int:
        return sum(found[:2] == (pid, name) for found in self._found)

    def of(self, pid: int) -> list[str]:
        return [name for found, name, _ in self._found if found == pid]

    def on_the_loop(self) -> list[tuple[int, str]]:
        return [(pid, name) for pid, name, on_loop in self._found if on_loop]


#: An audit hook cannot be removed again, so there is one.
_READS = Reads()


@pytest.fixture
def reads() -> Iterator[Reads]:
    if not _READS.is_hooked:
        sys.addaudithook(_READS.hook)
        _READS.is_hooked = True
    _READS.clear()
    _READS.is_recording = True
    yield _READS
    _READS.is_recording = False


async def test_memory_is_read_where_it_is_limited_and_never_for_a_batch(
    start_server: StartServer, tmp_path: Path, reads: Reads
) -> None:
    server = await start_server(
        limited=(says(tmp_path / "limited", ""), {"max_worker_memory": 1 << 40}),
        counted=(says(tmp_path / "counted", ""), {"max_requests": 1000}),
    )
    limited, counted = (server.servable(name).pid for name in ("limited", "counted"))
    reads.clear()
    for _ in range(10):
        assert (await server.ask("counted", []))[0] == 200
    # Upkeep has come by more than once.
    await until(lambda: reads.count(limited, "statm") >= 6)
    assert reads.of(counted) == []
    assert reads.on_the_loop() == []


async def test_nothing_reads_memory_on_the_event_loop(
    start_server: StartServer, tmp_path: Path, reads: Reads
) -> None:
    settings = {"management_port": 0, "memory_budget": "1TiB"}
    server = await start_server(settings, m=says(tmp_path / "m", ""))
    pid = server.servable("m").pid
    await until(lambda: reads.count(pid, "smaps_rollup"))
    assert reads.on_the_loop() == []
    reads.clear()
    assert await server.metric("mms_worker_memory_bytes", model="m") > 10 << 20
    assert reads.count(pid, "statm") > 0
    assert reads.on_the_loop() == []
    reads.clear()
    status, described = await server.manage("GET", "/models/m")
    assert status == 200
    assert described["memoryUsage"] > 1 << 20
    assert described["workers"][0]["memoryUsage"] > 10 << 20
    assert reads.count(pid, "statm") > 0
    assert reads.on_the_loop() == []
