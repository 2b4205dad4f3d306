"""One server with a model of each kind, asked over both transports."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator

import grpc
import pytest
import pytest_asyncio
import uvloop
from PIL import Image

from tests.kit.server import RunningServer, fresh_client, running_servers
from tests.v2.models import make_models, write_store

#: Longest body that the server takes.
MAX_BYTES = 1 << 20
#: Of the one image that is sent.
COLOUR = (200, 100, 50)


async def _warm_up() -> None:
    server = grpc.aio.server()
    await server.start()
    await server.stop(None)


# gRPC opens a few descriptors with its first server and keeps them for the life of the process.
uvloop.run(_warm_up())


@pytest.fixture(scope="session")
def image() -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (8, 6), COLOUR).save(output, "PNG")
    return output.getvalue()


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("v2")
    settings = {
        "max_request_bytes": MAX_BYTES,
        "management_port": 0,
        "grpc_port": 0,
        "model_store": str(write_store(folder / "store")),
    }
    async with running_servers(folder) as start:
        yield await start(settings, **make_models(folder))


@pytest_asyncio.fixture(loop_scope="package")
async def server(shared: RunningServer) -> AsyncIterator[RunningServer]:
    async with fresh_client(shared) as server:
        yield server
