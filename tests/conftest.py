"""Fixtures: a real server in the test's own loop, and a check that nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from mms.config import Config, ModelConfig, ModelSettings, ServerSettings
from mms.server import Server
from mms.serving.servable import Servable

#: How long anything that should happen may take. Generous: these machines are slow and noisy.
LIMIT_S = 60.0


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

    def servable(self, name: str) -> Servable:
        return self.server.registry.get(name)

    async def ask(
        self, model: str, value: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Post a JSON value to /predictions and give status and parsed answer."""
        url = f"{self.url}/predictions/{model}"
        async with self.session.post(url, json=value, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def metrics(self) -> str:
        async with self.session.get(self.url + "/metrics") as response:
            return await response.text()


StartServer = Callable[..., Awaitable[RunningServer]]


@pytest.fixture
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Give a function that starts servers; all of them are stopped after the test.

    Call it with ``name=(archive, {model settings})`` or ``name=archive``, and server settings in
    ``server``.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            server: dict[str, Any] | None = None,
            **models: Path | str | tuple[Path | str, dict[str, Any]],
        ) -> RunningServer:
            configs = []
            for name, model in models.items():
                path, settings = model if isinstance(model, tuple) else (model, {})
                settings = {"workers": 1, **settings}
                configs.append(ModelConfig(name, str(path), ModelSettings(**settings)))
            values = {"port": 0, "work_dir": str(tmp_path / "work"), **(server or {})}
            running = Server(Config(ServerSettings(**values), tuple(configs), {}))
            stack.push_async_callback(running.stop)
            await running.start()
            session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0),
                timeout=aiohttp.ClientTimeout(total=LIMIT_S),
            )
            await stack.enter_async_context(session)
            return RunningServer(running, session)

        yield start


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Fail a test that leaves a process, a thread, or an open file behind."""
    processes = {child.pid for child in psutil.Process().children(recursive=True)}
    files = _open_descriptors()
    yield
    gc.collect()
    left = [
        child for child in psutil.Process().children(recursive=True) if child.pid not in processes
    ]
    _, alive = psutil.wait_procs(left, timeout=5)
    for child in alive:
        child.kill()
    assert not alive, f"the test left processes behind: {alive}"
    leaked = {fd: name for fd, name in _open_descriptors().items() if fd not in files}
    assert not leaked, f"the test left files open: {leaked}"
    others = [t for t in threading.enumerate() if not t.daemon and t is not threading.main_thread()]
    strangers = [t for t in others if not t.name.startswith(("asyncio_", "ThreadPoolExecutor"))]
    assert not strangers, f"the test left threads running: {strangers}"


def _open_descriptors() -> dict[int, str]:
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
    return found
