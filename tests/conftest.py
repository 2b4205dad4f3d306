"""Fixtures: a real server in the test's own loop, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
import uvloop
from hypothesis import settings

from tests.kit.server import RunningServer, StartServer, fresh_client, running_servers


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the event loop that the command runs on."""
    return {"uvloop": uvloop.new_event_loop}


# A busy machine may take any time for an example.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

# libuv opens a pipe with its first loop and keeps it for the life of the process.
uvloop.new_event_loop().close()


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Return `running_servers` for one test."""
    async with running_servers(tmp_path) as start:
        yield start


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the tests of a module share."""
    return tmp_path_factory.mktemp("shared")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def start_shared(folder: Path) -> AsyncIterator[StartServer]:
    """Return `running_servers` for all tests of a module.

    A module starts its server in a fixture called ``shared``, and its tests ask for ``server``.
    """
    async with running_servers(folder) as start:
        yield start


@pytest_asyncio.fixture(loop_scope="module")
async def server(shared: RunningServer) -> AsyncIterator[RunningServer]:
    """The server that a module's tests share, whole again, with a client of the test's own."""
    async with fresh_client(shared) as server:
        yield server


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    """A folder for a service's ``wait``."""
    folder = tmp_path / "notes"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves a process, a thread, or an open file behind.

    Counted, not named: a server that several tests share may replace a worker.
    """
    processes = _children()
    files = _kinds_of_descriptors()
    yield
    gc.collect()
    deadline = time.monotonic() + 5
    while len(_children()) > len(processes) and time.monotonic() < deadline:
        time.sleep(0.01)
    left = _children()
    if len(left) > len(processes):
        for child in left - processes:
            child.kill()
        pytest.fail(f"the test left processes behind: {left - processes}")
    leaked = _kinds_of_descriptors() - files
    assert not leaked, f"the test left files open: {leaked}"
    others = [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    strangers = [t for t in others if not t.name.startswith(("asyncio_", "uvloop_"))]
    assert not strangers, f"the test left threads running: {strangers}"


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _kinds_of_descriptors() -> Counter[str]:
    """Return what is open, without the numbers that tell one socket or pipe from the next."""
    kinds = Counter(re.sub(r"\[\d+\]", "", name) for name in _open_descriptors().values())
    # libuv opens it with a loop's first stream, to have a descriptor to spare when none is left.
    del kinds[os.devnull]
    return kinds


def _open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found
