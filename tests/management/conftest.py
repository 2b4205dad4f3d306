"""Servers with a model store, cleaned up after each test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.kit.server import RunningServer, StartServer, running_servers
from tests.management.stores import Traces


@pytest_asyncio.fixture(loop_scope="module")
async def server(server: RunningServer) -> AsyncIterator[RunningServer]:
    """The shared server; what a test registers is gone when it ends."""
    traces = Traces(server)
    yield server
    await traces.clean()


@pytest_asyncio.fixture(loop_scope="module")
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    """Return `running_servers` for one test, in the loop of its module's tests."""
    async with running_servers(tmp_path) as start:
        yield start


@pytest.fixture
def store(shared: RunningServer) -> Path:
    """The model store of the shared server."""
    return Path(shared.settings.model_store)
