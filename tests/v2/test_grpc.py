"""The Open Inference Protocol V2 over gRPC: with its own client, and message by message."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import pytest_asyncio

from mms.errors import AddressInUse
from mms.grpc import inference_pb2 as pb
from mms.grpc import inference_pb2_grpc
from mms.version import __version__
from tests.kit.server import RunningServer, running_servers
from tests.kit.waiting import let_go, until, waiting
from tests.v2 import triton
from tests.v2.conftest import COLOUR, MAX_BYTES
from tests.v2.models import write_handler

pytestmark = pytest.mark.asyncio(loop_scope="package")

Code = grpc.StatusCode
ROWS = np.array([[1, 2, 3], [4, 5, 6]], "<f4")
ANSWERS = [[1.0, 15.0], [4.0, 21.0]]


@contextlib.asynccontextmanager
async def stub_for(port: int) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield inference_pb2_grpc.GRPCInferenceServiceStub(channel)


@pytest_asyncio.fixture(loop_scope="package")
async def stub(server: RunningServer) -> AsyncIterator[Any]:
    async with stub_for(server.grpc_port) as stub:
        yield stub


def asking(model: str, *tensors: tuple[str, str, list[int], Any], **fields: Any) -> Any:
    """Return a request; a tensor's elements are raw bytes, or a list for the field of its type."""
    request = pb.ModelInferRequest(model_name=model, **fields)
    for name, datatype, shape, elements in tensors:
        tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
        if isinstance(elements, bytes):
            request.raw_input_contents.append(elements)
        else:
            getattr(tensor.contents, FIELDS[datatype]).extend(elements)
    return request


FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents", "UINT8": "uint_contents",
    "UINT16": "uint_contents", "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip


def texts(model: str, name: str, *elements: str, **fields: Any) -> Any:
    encoded = [element.encode() for element in elements]
    return asking(model, (name, "BYTES", [len(encoded)], encoded), **fields)


def texts_of(response: Any) -> list[str]:
    """Return the elements of the sole output, which is of BYTES."""
    (output,), (data,) = response.outputs, response.raw_output_contents
    assert output.datatype == "BYTES"
    found = []
    while data:
        length = int.from_bytes(data[:4], "little")
        found.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    return found


async def refused(call: Any) -> tuple[grpc.StatusCode, str, dict[str, str]]:
    """Return code, text and trailing metadata of a call that fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    return error.code(), error.details() or "", dict(error.trailing_metadata())


async def test_the_client_of_the_protocol_gets_what_it_asks_for(
    server: RunningServer, image: bytes
) -> None:
    results = await triton.ask("grpc", f"127.0.0.1:{server.grpc_port}", image)
    for name in ("live", "ready", "model_ready", "version_ready"):
        assert results[name] is True
    assert results["server"]["version"] == __version__
    assert results["model"] == {
        "name": "two",
        "versions": ["1"],
        "platform": "mxnet_mxnet",
        "inputs": [
            {"name": name, "datatype": "FP32", "shape": ["-1", "3"]} for name in ("left", "right")
        ],
        "outputs": [
            {"name": "total", "datatype": "FP32", "shape": ["-1", "3"]},
            {"name": "larger", "datatype": "INT32", "shape": ["-1", "3"]},
        ],
    }
    for name in ("linear", "version"):
        assert results[name] == [["<f4", [2, 2], ANSWERS]]
    assert results["id"] == "mine"
    assert results["two"] == [
        ["<f4", [2, 3], [[5, 7, 9], [5, 7, 9]]],
        ["<i4", [2, 3], [[0, 0, 0], [1, 1, 1]]],
    ]
    assert results["chosen"] == [["<i4", [2, 3], [[0, 0, 0], [0, 0, 0]]]]
    assert results["half"] == [["<f2", [1], [1.5]]]
    assert results["flags"] == [["|b1", [2], [True, False]]]
    assert results["wide"] == [["<u8", [1, 1], [[2**63]]]]
    assert results["json"] == [[1, "two"]]
    assert results["image"] == [{"shape": [6, 8, 3], "mean": list(COLOUR)}]
    assert bytes.fromhex(results["picture"]) == b"\x89PNG"
    assert results["unknown"][0] == "StatusCode.NOT_FOUND"
    assert results["misshapen"][0] == "StatusCode.INVALID_ARGUMENT"
    assert "(2, 2), expected (?, 3)" in results["misshapen"][1]
    assert results["raises"][0] == "StatusCode.INTERNAL"
    assert "KeyError: 'on purpose' (service.py:" in results["raises"][1]


class TestCalls:
    async def test_health_and_metadata_are_those_of_http(
        self, server: RunningServer, stub: Any
    ) -> None:
        assert (await stub.ServerLive(pb.ServerLiveRequest())).live
        assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
        assert (await stub.ModelReady(pb.ModelReadyRequest(name="linear"))).ready
        about = await stub.ServerMetadata(pb.ServerMetadataRequest())
        _, document = await server.get("/v2")
        assert [about.name, about.version, list(about.extensions)] == list(document.values())
        for name in ("linear", "two", "handler", "vision"):
            model = await stub.ModelMetadata(pb.ModelMetadataRequest(name=name, version="1"))
            _, document = await server.get(f"/v2/models/{name}")
            for tensors, expected in (
                (model.inputs, document["inputs"]),
                (model.outputs, document["outputs"]),
            ):
                found = [
                    {"name": t.name, "datatype": t.datatype, "shape": list(t.shape)}
                    for t in tensors
                ]
                assert found == expected

    @pytest.mark.parametrize("raw", [True, False])
    async def test_both_forms_of_contents_and_raw_outputs(self, stub: Any, raw: bool) -> None:
        elements = ROWS.tobytes() if raw else ROWS.ravel().tolist()
        response = await stub.ModelInfer(
            asking("linear", ("data", "FP32", [2, 3], elements), id="mine")
        )
        assert (response.model_name, response.model_version) == ("linear", "1")
        assert response.id == "mine"
        (output,), (data,) = response.outputs, response.raw_output_contents
        assert (output.name, output.datatype, list(output.shape)) == ("output", "FP32", [2, 2])
        assert np.frombuffer(data, "<f4").reshape(2, 2).tolist() == ANSWERS
        assert not output.HasField("contents")

    @pytest.mark.parametrize(
        ("datatype", "dtype"),
        [
            ("BOOL", "?"), ("INT8", "i1"), ("INT16", "<i2"), ("INT32", "<i4"), ("INT64", "<i8"),
            ("UINT8", "u1"), ("UINT16", "<u2"), ("UINT32", "<u4"), ("UINT64", "<u8"),
            ("FP32", "<f4"), ("FP64", "<f8"),
        ],
    )  # fmt: skip
    async def test_each_type_has_its_field(self, stub: Any, datatype: str, dtype: str) -> None:
        kind = np.dtype(dtype).kind
        least, most = (0, 1) if kind == "b" else (-1.5, 1e30)
        if kind in "iu":
            limits = np.iinfo(dtype)
            least, most = int(limits.min), int(limits.max)
        values = np.array([[least], [most]], dtype)
        request = asking("types", ("data", datatype, [2, 1], values.ravel().tolist()))
        response = await stub.ModelInfer(request)
        (output,), (data,) = response.outputs, response.raw_output_contents
        assert (output.datatype, list(output.shape)) == (datatype, [2, 1])
        assert data == values.tobytes()

    async def test_parameters_and_requested_outputs_go_along(self, stub: Any) -> None:
        request = asking("two", *((n, "FP32", [2, 3], ROWS.tobytes()) for n in ("left", "right")))
        request.parameters["priority"].int64_param = 3
        request.parameters["binary_data_output"].bool_param = False
        output = request.outputs.add(name="larger")
        output.parameters["binary_data"].bool_param = False
        output.parameters["threshold"].double_param = 0.5
        response = await stub.ModelInfer(request)
        assert [output.name for output in response.outputs] == ["larger"]
        assert np.frombuffer(response.raw_output_contents[0], "<i4").tolist() == [0] * 6
        output.parameters["classification"].uint64_param = 3
        code, text, _ = await refused(stub.ModelInfer(request))
        assert (code, "classification" in text) == (Code.INVALID_ARGUMENT, True)

    async def test_a_handler_sees_fields_metadata_and_chooses_the_status(self, stub: Any) -> None:
        request = texts("handler", "header", "x-mine")
        response = await stub.ModelInfer(request, metadata=[("x-mine", "as it is")])
        assert texts_of(response) == ["as it is"]
        request = texts("handler", "text", '{"a": 1}')
        request.inputs[0].parameters["content_type"].string_param = "application/json"
        response = await stub.ModelInfer(request)
        assert json.loads(texts_of(response)[0]) == {"text": ["dict", "{'a': 1}"]}
        code, text, _ = await refused(stub.ModelInfer(texts("handler", "status", "429")))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "bytearray" in text

    async def test_the_request_id_is_the_metadata_s_or_the_request_s_own(self, stub: Any) -> None:
        async def id_of(request: Any, *metadata: tuple[str, str]) -> Any:
            call = stub.ModelInfer(request, metadata=metadata)
            await call
            return dict(await call.trailing_metadata())["x-request-id"]

        request = asking("linear", ("data", "FP32", [2, 3], ROWS.tobytes()))
        made = await id_of(request)
        assert re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]+", made)
        assert await id_of(request, ("x-request-id", "sent")) == "sent"
        request.id = "own"
        assert await id_of(request) == "own"
        assert await id_of(request, ("x-request-id", "sent")) == "sent"
        request.id = "no id of a request"
        assert await id_of(request) not in (made, request.id)

    async def test_calls_are_counted_by_their_route(self, server: RunningServer, stub: Any) -> None:
        good = {"model": "linear", "route": "grpc_infer", "code": "200"}
        bad = {**good, "code": "400"}
        unknown = {"model": "", "route": "grpc_infer", "code": "404"}

        async def counts() -> list[float]:
            return [await server.metric("mms_requests_total", **m) for m in (good, bad, unknown)]

        before = await counts()
        seconds = await server.metric("mms_request_duration_seconds_count", model="linear")
        await stub.ModelInfer(asking("linear", ("data", "FP32", [2, 3], ROWS.tobytes())))
        await refused(stub.ModelInfer(asking("linear", ("data", "FP32", [2, 2], b""))))
        await refused(stub.ModelInfer(asking("nobody")))
        assert await counts() == [count + 1 for count in before]
        found = await server.metric("mms_request_duration_seconds_count", model="linear")
        assert found == seconds + 2


class TestErrors:
    @pytest.mark.parametrize(
        ("request_", "code", "text"),
        [
            (asking("nobody"), Code.NOT_FOUND, "Model not found: 'nobody'"),
            (asking("linear", model_version="7"), Code.NOT_FOUND, "no version '7'"),
            (asking("linear"), Code.INVALID_ARGUMENT, 'needs "inputs"'),
            (
                asking("linear", ("data", "FP32", [2, 3], b"123")),
                Code.INVALID_ARGUMENT,
                "has 3 bytes, but FP32 of shape [2, 3] takes 24",
            ),
            (
                asking("linear", ("data", "FP32", [2, 3], [1, 2])),
                Code.INVALID_ARGUMENT,
                "has 8 bytes, but FP32 of shape [2, 3] takes 24",
            ),
            (
                asking("linear", ("data", "FP32", [-2, 3], b"")),
                Code.INVALID_ARGUMENT,
                "got [-2, 3]",
            ),
            (
                asking("linear", ("image", "FP32", [1, 3], bytes(12))),
                Code.INVALID_ARGUMENT,
                "no input 'image'",
            ),
            (
                asking("types", ("data", "INT8", [1], [300])),
                Code.INVALID_ARGUMENT,
                "an element that is not INT8",
            ),
            (
                pb.ModelInferRequest(
                    model_name="linear",
                    inputs=[{"name": "data", "datatype": "FP16", "shape": [1]}],
                ),
                Code.INVALID_ARGUMENT,
                "contents has no field for 'FP16'",
            ),
            (
                pb.ModelInferRequest(
                    model_name="linear",
                    inputs=[
                        {
                            "name": "data",
                            "datatype": "FP32",
                            "shape": [1],
                            "contents": {"fp64_contents": [1.0]},
                        }
                    ],
                ),
                Code.INVALID_ARGUMENT,
                "belong in fp32_contents, not fp64_contents",
            ),
            (
                pb.ModelInferRequest(
                    model_name="linear",
                    inputs=[
                        {
                            "name": "data",
                            "datatype": "FP32",
                            "shape": [1],
                            "contents": {"fp32_contents": [1.0]},
                        }
                    ],
                    raw_input_contents=[bytes(4)],
                ),
                Code.INVALID_ARGUMENT,
                "has contents as well as raw_input_contents",
            ),
            (
                asking("linear", ("data", "FP32", [1, 3], bytes(12)), raw_input_contents=[b""]),
                Code.INVALID_ARGUMENT,
                "raw_input_contents has 2 entries for 1 inputs",
            ),
            (texts("types", "data", "[1]", "[2]"), Code.INVALID_ARGUMENT, "exactly one element"),
            (texts("types", "data", '["raise"]'), Code.INTERNAL, "KeyError: 'on purpose'"),
        ],
    )
    async def test_a_mistake_has_its_code_and_is_named(
        self, stub: Any, request_: Any, code: grpc.StatusCode, text: str
    ) -> None:
        found, details, metadata = await refused(stub.ModelInfer(request_))
        assert (found, text in details) == (code, True), details
        assert metadata["x-request-id"]

    async def test_unknown_models_are_not_found_by_any_call(self, stub: Any) -> None:
        for call in (
            stub.ModelReady(pb.ModelReadyRequest(name="nobody")),
            stub.ModelReady(pb.ModelReadyRequest(name="linear", version="7")),
            stub.ModelMetadata(pb.ModelMetadataRequest(name="nobody")),
        ):
            assert (await refused(call))[0] is Code.NOT_FOUND

    async def test_models_are_managed_elsewhere(self, stub: Any) -> None:
        for call in (
            stub.RepositoryIndex(pb.RepositoryIndexRequest()),
            stub.RepositoryModelLoad(pb.RepositoryModelLoadRequest(model_name="linear")),
            stub.RepositoryModelUnload(pb.RepositoryModelUnloadRequest(model_name="linear")),
        ):
            code, text, _ = await refused(call)
            assert code is Code.PERMISSION_DENIED
            assert "POST /v2/repository/models/NAME/load" in text

    async def test_a_request_that_is_too_large(self, server: RunningServer, stub: Any) -> None:
        # The first never reaches us; the second is small as a message and large as a body.
        large = asking("linear", ("data", "FP32", [1, 3], bytes(MAX_BYTES)))
        assert (await refused(stub.ModelInfer(large)))[0] is Code.RESOURCE_EXHAUSTED
        count = MAX_BYTES // 4
        swelling = asking("types", ("data", "INT64", [count], [1] * count))
        assert swelling.ByteSize() < MAX_BYTES
        code, text, _ = await refused(stub.ModelInfer(swelling))
        assert code is Code.RESOURCE_EXHAUSTED
        assert "max_request_bytes" in text

    async def test_a_server_that_starts_does_not_take_models_for_unknown(
        self, server: RunningServer, stub: Any
    ) -> None:
        with server.before_its_start():
            for call in (
                stub.ModelInfer(asking("later")),
                stub.ModelReady(pb.ModelReadyRequest(name="later")),
            ):
                code, text, metadata = await refused(call)
                assert (code, text) == (Code.UNAVAILABLE, "the server is starting")
                assert metadata["retry-after"] == "1"
                assert metadata["grpc-retry-pushback-ms"] == "1000"
            assert not (await stub.ServerReady(pb.ServerReadyRequest())).ready


def waits(notes: Path) -> Any:
    """Return a request that runs until `let_go`."""
    return texts("types", "data", json.dumps(["wait", str(notes)]))


class TestTime:
    async def test_a_full_queue_and_a_client_that_leaves_it(
        self, server: RunningServer, stub: Any, notes: Path
    ) -> None:
        servable = server.servable("types")
        left = {"model": "types", "route": "grpc_infer", "code": "499"}
        before = await server.metric("mms_requests_total", **left)
        running = [asyncio.create_task(_result(stub.ModelInfer(waits(notes))))]
        await waiting(notes)
        leaving = stub.ModelInfer(waits(notes))
        running.append(asyncio.create_task(_result(stub.ModelInfer(waits(notes)))))
        await asyncio.sleep(0)
        gone = asyncio.create_task(_result(leaving))
        await until(lambda: servable.queue_depth == 2)
        code, text, metadata = await refused(stub.ModelInfer(waits(notes)))
        assert code is Code.UNAVAILABLE
        assert "queue" in text
        assert int(metadata["retry-after"]) >= 1
        leaving.cancel()
        await until(lambda: servable.queue_depth == 1)
        let_go(notes)
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert [texts_of(response)[0][:7] for response in await asyncio.gather(*running)] == [
            '["wait"'
        ] * 2
        assert await server.metric("mms_requests_total", **left) == before + 1

    async def test_a_deadline_is_the_request_s(
        self, server: RunningServer, stub: Any, notes: Path
    ) -> None:
        servable = server.servable("types")
        counts = servable.requests

        def ended() -> int:
            # The client's own clock ends the call, too; on a slow machine that looks like leaving.
            return counts["grpc_infer", 504] + counts["grpc_infer", 499]

        before = ended()
        code, _, _ = await refused(stub.ModelInfer(waits(notes), timeout=0.2))
        assert code is Code.DEADLINE_EXCEEDED
        await until(lambda: ended() == before + 1)
        let_go(notes)
        await until(lambda: not servable.in_flight)

    async def test_an_urgent_call_goes_first(
        self, server: RunningServer, stub: Any, notes: Path
    ) -> None:
        servable = server.servable("types")
        order: list[str] = []

        async def ask(name: str, *metadata: tuple[str, str]) -> None:
            await stub.ModelInfer(texts("types", "data", f'["{name}"]'), metadata=metadata)
            order.append(name)

        running = asyncio.create_task(_result(stub.ModelInfer(waits(notes))))
        await waiting(notes)
        later = asyncio.create_task(ask("later"))
        await until(lambda: servable.queue_depth == 1)
        urgent = asyncio.create_task(ask("urgent", ("x-request-priority", "high")))
        await until(lambda: servable.queue_depth == 2)
        let_go(notes)
        await asyncio.gather(running, later, urgent)
        assert order == ["urgent", "later"]


async def _result(call: Any) -> Any:
    return await call


async def test_large_contents_which_are_taken_apart_in_a_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mms.access")
    handler = write_handler(tmp_path / "handler")
    settings = {"handler": "service:handle", "preload": False}
    async with running_servers(tmp_path) as start:
        server = await start({"grpc_port": 0, "access_log": True}, handler=(handler, settings))
        count = 400_000
        async with stub_for(server.grpc_port) as stub:
            request = asking("handler", ("double", "FP32", [count], [1.5] * count))
            response = await stub.ModelInfer(request)
        assert np.frombuffer(response.raw_output_contents[0], "<f4").tolist() == [3.0] * count
    (line,) = [record.getMessage() for record in caplog.records if record.name == "mms.access"]
    assert re.fullmatch(r'ipv4:127\.0\.0\.1:\d+ "gRPC grpc_infer" 200 \d+\.\dms', line)


async def test_traffic_is_split_stuck_and_copied_as_over_http(tmp_path: Path) -> None:
    write_handler(tmp_path / "store" / "folder")
    settings = {"handler": "service:handle", "preload": False}
    async with running_servers(tmp_path) as start:
        server = await start(
            {"grpc_port": 0, "management_port": 0, "model_store": str(tmp_path / "store")},
            handler=(tmp_path / "store" / "folder", settings),
        )
        document = {**settings, "url": "folder", "model_name": "handler", "version": "2"}
        document |= {"initial_workers": 1, "make_default": False}
        assert (await server.manage("POST", "/models", document))[0] == 200

        async def split(traffic: dict[str, Any]) -> None:
            assert (await server.manage("PUT", "/models/handler/traffic", traffic))[0] == 200

        async with stub_for(server.grpc_port) as stub:

            async def version(*metadata: tuple[str, str], **fields: str) -> str:
                request = texts("handler", "text", "x", **fields)
                return str((await stub.ModelInfer(request, metadata=metadata)).model_version)

            assert await version() == "1"
            assert await version(model_version="2") == "2"
            await split({"weights": {"1": 0, "2": 1}})
            assert await version() == "2"
            await split({"weights": {"1": 1, "2": 1}, "sticky_header": "X-User"})
            by_user = {str(k): await version(("x-user", str(k))) for k in range(8)}
            assert set(by_user.values()) == {"1", "2"}
            assert {k: await version(("x-user", k)) for k in by_user} == by_user
            await split({"shadow": "2"})
            assert await version() == "1"
            await until(lambda: server.shadows)
            assert dict(server.shadows) == {("handler", "2", "same"): 1}


async def test_a_stop_answers_what_was_accepted_and_no_more(tmp_path: Path) -> None:
    handler = write_handler(tmp_path / "handler")
    settings = {"handler": "service:handle", "preload": False}
    notes = tmp_path / "notes"
    notes.mkdir()
    async with running_servers(tmp_path) as start:
        server = await start({"grpc_port": 0}, handler=(handler, settings))
        async with stub_for(server.grpc_port) as stub:
            request = texts("handler", "wait", str(notes))
            running = [asyncio.create_task(_result(stub.ModelInfer(request))) for _ in range(2)]
            await waiting(notes)
            await until(lambda: server.servable("handler").queue_depth == 1)
            stopping = asyncio.create_task(server.stop())
            await until(lambda: server.is_draining)
            await asyncio.sleep(0)
            assert (await refused(stub.ModelInfer(request)))[0] is Code.UNAVAILABLE
            assert not any(task.done() for task in running)
            let_go(notes)
            for response in await asyncio.gather(*running):
                assert "wait" in texts_of(response)[0]
            await stopping


async def test_a_stop_in_a_hurry_ends_every_call(tmp_path: Path) -> None:
    handler = write_handler(tmp_path / "handler")
    settings = {"handler": "service:handle", "preload": False}
    notes = tmp_path / "notes"
    notes.mkdir()
    async with running_servers(tmp_path) as start:
        server = await start({"grpc_port": 0}, handler=(handler, settings))
        async with stub_for(server.grpc_port) as stub:
            request = texts("handler", "wait", str(notes))
            running = asyncio.create_task(refused(stub.ModelInfer(request)))
            await waiting(notes)
            server.request_stop()
            server.request_stop()
            await server.stop()
            assert (await running)[0] is Code.UNAVAILABLE
    let_go(notes)


async def test_a_port_that_is_taken(tmp_path: Path) -> None:
    handler = write_handler(tmp_path / "handler")
    settings = {"handler": "service:handle", "preload": False}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        async with running_servers(tmp_path) as start:
            with pytest.raises(AddressInUse, match=f"{port}: Address already in use.*--grpc-port"):
                await start({"grpc_port": port}, handler=(handler, settings))
