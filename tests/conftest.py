"""Fixtures: a real server in the test's own loop, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import re
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from mms.config.build import Config, ModelConfig
from mms.config.layers import Layer, resolve
from mms.config.settings import ModelSettings, ServerSettings
from mms.server import Server
from mms.serving.lifecycle import ServableState
from mms.serving.servable import Servable

#: How long anything that should happen may take. Generous: these machines are slow and noisy.
LIMIT_S = 60.0
T = TypeVar("T")
_PR_SET_CHILD_SUBREAPER = 36


@pytest.hookimpl(optionalhook=True)
def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Run the tests on the event loop that the command runs on."""
    return {"uvloop": uvloop.new_event_loop}


# libuv opens a pipe with its first loop and keeps it for the life of the process.
uvloop.new_event_loop().close()


def resolved(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return settings from values as a file or a call would have them."""
    return resolve(cls, [Layer("test", values)])[0]


async def until(condition: Callable[[], Any], limit_s: float = LIMIT_S) -> None:
    """Wait until a condition holds."""
    deadline = asyncio.get_running_loop().time() + limit_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, f"not within {limit_s} s: {condition}"
        await asyncio.sleep(0.01)


class RunningServer:
    """A started server and a client for it."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self.server = server
        self.session = session
        self.url = f"http://127.0.0.1:{server.port}"
        self.management_url = f"http://127.0.0.1:{server.management_port}"

    def servable(self, name: str) -> Servable:
        return self.server.registry.get(name)

    def forwards(self, name: str) -> list[int]:
        """Return the rows of each forward pass that a model's service has noted."""
        notes = self.servable(name).archive.folder / "forwards"
        return [int(line) for line in notes.read_text().split()] if notes.exists() else []

    async def ask(
        self, model: str, value: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Post a JSON value to /predictions and return status and parsed answer."""
        url = f"{self.url}/predictions/{model}"
        async with self.session.post(url, json=value, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def manage(
        self,
        method: str,
        path: str,
        document: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Ask the management API and return status and parsed answer."""
        url = self.management_url + path
        async with self.session.request(method, url, json=document, headers=headers) as response:
            return response.status, await response.json()

    async def metrics(self) -> str:
        async with self.session.get(self.url + "/metrics") as response:
            return await response.text()

    async def metric(self, sample: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        return sum(
            found.value
            for family in text_string_to_metric_families(await self.metrics())
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )


StartServer = Callable[..., Awaitable[RunningServer]]


@contextlib.asynccontextmanager
async def running_servers(folder: Path) -> AsyncIterator[StartServer]:
    """Return a function that starts servers; all of them are stopped at the end.

    Call it with ``name=(archive, {model settings})`` or ``name=archive``, and server settings in
    ``server``. Without ``management_port=0`` among these there is no management API. What
    ``reread`` gives is the configuration from the next ``request_reload`` on. ``/metrics`` is never
    old and wrong tokens wait for nothing, unless asked for.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            server: dict[str, Any] | None = None,
            reread: Callable[[], Config] | None = None,
            metrics_age_s: float = 0.0,
            longest_delay_s: float = 0.0,
            **models: Path | str | tuple[Path | str, dict[str, Any]],
        ) -> RunningServer:
            configs = []
            for name, model in models.items():
                path, settings = model if isinstance(model, tuple) else (model, {})
                settings = {"workers": 1, **settings}
                configs.append(ModelConfig(name, str(path), resolved(ModelSettings, settings)))
            values = {
                "port": 0,
                "management_port": -1,
                "work_dir": str(folder / "work"),
                **(server or {}),
            }
            running = Server(
                Config(resolved(ServerSettings, values), tuple(configs), {}),
                reread=reread,
                metrics_age_s=metrics_age_s,
                longest_delay_s=longest_delay_s,
            )
            stack.push_async_callback(running.stop)
            await running.start()
            session = await stack.enter_async_context(open_session())
            return RunningServer(running, session)

        yield start


@contextlib.asynccontextmanager
async def fresh_client(shared: RunningServer) -> AsyncIterator[RunningServer]:
    """Return a shared server, whole again, with a session of its own."""
    await until(lambda: all(map(_is_complete, shared.server.registry.servables())))
    async with open_session() as session:
        yield RunningServer(shared.server, session)
    # Both ends of a connection are this process's, and the server closes its own a bit later.
    server = shared.server
    await until(lambda: not _connections({server.port, server.management_port}))
    await until(lambda: all(map(_is_complete, shared.server.registry.servables())))


def _is_complete(servable: Servable) -> bool:
    """Whether a model has all its processes, or has been given up."""
    pool = servable.pool
    has_all = len(pool.workers) == pool.size and (pool.loader or not servable.settings.preload)
    return bool(has_all) or servable.state is ServableState.FAILED


def _connections(ports: set[int]) -> list[Any]:
    return [
        found
        for found in psutil.Process().net_connections("tcp")
        if found.laddr.port in ports and found.status != psutil.CONN_LISTEN
    ]


def resign_as_subreaper() -> None:
    """Leave what real server commands orphan to the system, as the shell that starts one does.

    A server that ran in this process before made it the heir of whatever is orphaned below it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=LIMIT_S)
    )


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Return `running_servers` for one test."""
    async with running_servers(tmp_path) as start:
        yield start


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
