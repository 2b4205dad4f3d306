"""Over gRPC, messages are bounded and counted as bodies over HTTP are."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
import pytest_asyncio
import uvloop

from mms.grpc import inference_pb2 as pb
from mms.grpc import inference_pb2_grpc
from mms.serving.budget import Hold
from tests.kit.server import RunningServer, running_servers
from tests.security.edge import returns_to_zero, start_edge

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB = 1 << 20


async def _warm_up() -> None:
    server = grpc.aio.server()
    await server.start()
    await server.stop(None)


# gRPC opens a few descriptors with its first server and keeps them for the life of the process.
uvloop.run(_warm_up())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("grpc")
    settings = {"grpc_port": 0, "max_buffered_bytes": 4 * MB, "max_request_bytes": 8 * MB}
    async with running_servers(folder) as start:
        yield await start_edge(start, folder, settings)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def channel(server: RunningServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        await channel.channel_ready()
        yield channel


def request(size: int) -> Any:
    body = b"[" + b" " * size + b"1]"
    tensor = pb.ModelInferRequest.InferInputTensor(name="data", datatype="BYTES", shape=[1])
    raw = len(body).to_bytes(4, "little") + body
    return pb.ModelInferRequest(model_name="edge", inputs=[tensor], raw_input_contents=[raw])


async def code_of(channel: Any, message: Any, **options: Any) -> grpc.StatusCode:
    stub = inference_pb2_grpc.GRPCInferenceServiceStub(channel)
    try:
        await stub.ModelInfer(message, **options)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_v02_a_compressed_message_is_bounded_by_what_it_unpacks_to(channel: Any) -> None:
    compression = grpc.Compression.Gzip
    code = await code_of(channel, request(64 * MB), compression=compression)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_v09_messages_count_against_the_budget_and_give_it_back(
    server: RunningServer, channel: Any
) -> None:
    assert await code_of(channel, request(MB)) is grpc.StatusCode.OK
    await returns_to_zero(server)
    with Hold(server.budget) as hold:
        hold.grow(3 * MB)
        assert await code_of(channel, request(MB)) is grpc.StatusCode.UNAVAILABLE
        assert await code_of(channel, request(100)) is grpc.StatusCode.OK
    assert await code_of(channel, request(3 * MB)) is grpc.StatusCode.RESOURCE_EXHAUSTED
    await returns_to_zero(server)
    assert server.servable("edge").rejected["buffer_full"] == 1
