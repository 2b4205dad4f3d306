"""The Open Inference Protocol V2 over HTTP: with its own client, and with every mistake."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from PIL import Image

from mms.version import __version__
from mms.wire.messages import V2_HEADER_LENGTH
from tests.kit.server import RunningServer, running_servers
from tests.kit.waiting import let_go, until, waiting
from tests.v2 import triton
from tests.v2.conftest import COLOUR, MAX_BYTES
from tests.v2.models import body_of, tensor, with_binary, write_handler

pytestmark = pytest.mark.asyncio(loop_scope="package")

ROWS = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
ANSWERS = [[1.0, 15.0], [4.0, 21.0]]


async def post(
    server: RunningServer, model: str, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Ask a model and return status and answer; of a binary one (document, elements)."""
    url = f"{server.url}/v2/models/{model}/infer"
    async with server.session.post(url, data=io.BytesIO(body), headers=headers) as response:
        content = await response.read()
        length = response.headers.get(V2_HEADER_LENGTH)
        if length is None:
            return response.status, orjson.loads(content)
        assert response.content_type == "application/octet-stream"
        return response.status, (orjson.loads(content[: int(length)]), content[int(length) :])


async def refused(
    server: RunningServer, model: str, body: bytes, headers: dict[str, str] | None = None
) -> str:
    """Return the text of a 400."""
    status, answer = await post(server, model, body, headers)
    assert status == 400
    assert list(answer) == ["error"]
    return str(answer["error"])


def linear(data: Any, shape: list[int] | None = None, datatype: str = "FP32") -> bytes:
    return body_of(tensor("data", datatype, shape or [2, 3], data))


async def test_the_client_of_the_protocol_gets_what_it_asks_for(
    server: RunningServer, image: bytes
) -> None:
    results = await triton.ask("http", f"127.0.0.1:{server.port}", image)
    for name in ("live", "ready", "model_ready", "version_ready"):
        assert results[name] is True
    assert results["server"] == {
        "name": "mxnet-model-server",
        "version": __version__,
        "extensions": ["binary_tensor_data", "model_repository"],
    }
    assert results["model"]["platform"] == "mxnet_mxnet"
    for name in ("linear", "version", "in_json", "compressed"):
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
    assert results["unknown"][0] == "404"
    assert "Model not found: 'nobody'" in results["unknown"][1]
    assert results["misshapen"][0] == "400"
    assert "(2, 2), expected (?, 3)" in results["misshapen"][1]
    assert results["raises"][0] == "500"
    assert "KeyError: 'on purpose' (service.py:" in results["raises"][1]


class TestHealthAndMetadata:
    async def test_health(self, server: RunningServer) -> None:
        assert await server.get("/v2/health/live") == (200, {"live": True})
        assert await server.get("/v2/health/ready") == (200, {"ready": True})
        for path in ("linear", "linear/versions/1"):
            document = {"name": "linear", "ready": True}
            assert await server.get(f"/v2/models/{path}/ready") == (200, document)

    async def test_the_models_are_listed(self, server: RunningServer) -> None:
        status, document = await server.get("/v2/models")
        assert status == 200
        assert {"linear", "two", "handler"} <= set(document["models"])

    @pytest.mark.parametrize(
        ("model", "platform", "inputs", "outputs"),
        [
            ("linear", "mxnet_mxnet", [("data", "FP32", [-1, 3])], [("output", "FP32", [-1])]),
            (
                "two",
                "mxnet_mxnet",
                [("left", "FP32", [-1, 3]), ("right", "FP32", [-1, 3])],
                [("total", "FP32", [-1, 3]), ("larger", "INT32", [-1, 3])],
            ),
            (
                "counting",
                "mxnet_mxnet",
                [("data", "FP32", [-1, 3])],
                [("output", "FP32", [-1]), ("rows", "FP32", [-1, 1])],
            ),
            ("types", "mxnet_mxnet", [("data", "BYTES", [1])], [("output", "BYTES", [1])]),
            ("vision", "mxnet_mxnet", [("data", "BYTES", [1])], [("output", "BYTES", [1])]),
            ("handler", "python", [("body", "BYTES", [1])], [("output", "BYTES", [1])]),
        ],
    )
    async def test_metadata_says_what_a_model_takes_and_gives(
        self,
        server: RunningServer,
        model: str,
        platform: str,
        inputs: list[tuple[str, str, list[int]]],
        outputs: list[tuple[str, str, list[int]]],
    ) -> None:
        def described(tensors: list[tuple[str, str, list[int]]]) -> list[dict[str, Any]]:
            return [{"name": n, "datatype": d, "shape": s} for n, d, s in tensors]

        for path in (model, f"{model}/versions/1"):
            assert await server.get(f"/v2/models/{path}") == (
                200,
                {
                    "name": model,
                    "versions": ["1"],
                    "platform": platform,
                    "inputs": described(inputs),
                    "outputs": described(outputs),
                },
            )

    async def test_a_model_that_is_not_loaded_is_described_by_its_signature(
        self, server: RunningServer, tmp_path: Path
    ) -> None:
        archives = {
            name: (server.servable(name).source, {"load": "lazy"})
            for name in ("linear", "two", "vision", "paint")
        }
        async with running_servers(tmp_path) as start:
            sleeping = await start(**archives)
            for name in ("linear", "two", "paint"):
                path = f"/v2/models/{name}"
                assert await sleeping.get(path) == await server.get(path)
                assert not sleeping.servable(name).pids
            _, vision = await sleeping.get("/v2/models/vision")
            # Only a worker knows that the service makes an object of its output.
            assert vision["inputs"][0]["datatype"] == "BYTES"
            assert vision["outputs"][0]["datatype"] == "FP32"

    @pytest.mark.parametrize(
        ("method", "path", "status", "text"),
        [
            ("GET", "/v2/models/nobody", 404, "Model not found: 'nobody'"),
            ("GET", "/v2/models/nobody/ready", 404, "Model not found: 'nobody'"),
            ("POST", "/v2/models/nobody/infer", 404, "Model not found: 'nobody'"),
            ("GET", "/v2/models/linear/versions/7", 404, "no version '7'; its versions: 1"),
            ("GET", "/v2/models/linear/versions/7/ready", 404, "no version '7'"),
            ("POST", "/v2/models/linear/versions/7/infer", 404, "no version '7'"),
            (
                "GET",
                "/v2/models/linear/infer",
                405,
                "GET is not allowed here; allowed: OPTIONS",
            ),
            ("GET", "/v2/nowhere", 404, "there is no route '/v2/nowhere'"),
        ],
    )
    async def test_errors_have_the_shape_of_the_protocol(
        self, server: RunningServer, method: str, path: str, status: int, text: str
    ) -> None:
        async with server.session.request(
            method, server.url + path, headers={"X-Request-Id": "mine"}
        ) as response:
            document = await response.json()
            assert (response.status, response.headers["X-Request-Id"]) == (status, "mine")
        assert list(document) == ["error"]
        assert text in document["error"]


class TestTensors:
    @pytest.mark.parametrize("data", [ROWS, [1, 2, 3, 4, 5, 6]])
    async def test_json_in_json_out(self, server: RunningServer, data: Any) -> None:
        assert await post(server, "linear", linear(data)) == (
            200,
            {
                "model_name": "linear",
                "model_version": "1",
                "outputs": [
                    {
                        "name": "output",
                        "datatype": "FP32",
                        "shape": [2, 2],
                        "data": [1.0, 15.0, 4.0, 21.0],
                    }
                ],
            },
        )

    @pytest.mark.parametrize("datatype", ["INT8", "UINT64", "FP64", "INT32"])
    async def test_a_network_takes_any_numbers(self, server: RunningServer, datatype: str) -> None:
        _, answer = await post(server, "linear", linear([[1, 2, 3]], [1, 3], datatype))
        assert answer["outputs"][0]["data"] == [1.0, 15.0]

    async def test_every_output_is_there_unless_some_are_named(self, server: RunningServer) -> None:
        inputs = [tensor(name, "FP32", [1, 3], [1, 2, 3]) for name in ("left", "right")]
        _, everything = await post(server, "two", body_of(*inputs))
        assert [output["name"] for output in everything["outputs"]] == ["total", "larger"]
        _, one = await post(server, "two", body_of(*inputs, outputs=[{"name": "larger"}]))
        assert one["outputs"] == everything["outputs"][1:]
        text = await refused(server, "two", body_of(*inputs, outputs=[{"name": "sum"}]))
        assert text == "the model has no output 'sum'; its outputs: 'total', 'larger'"

    async def test_binary_in_binary_out(self, server: RunningServer) -> None:
        document = {
            "id": "7",
            "inputs": [tensor(name, "FP32", [2, 3], None) for name in ("left", "right")],
            "outputs": [
                {"name": "total", "parameters": {"binary_data": True}},
                {"name": "larger"},
            ],
        }
        for entry in document["inputs"]:
            del entry["data"]  # type: ignore[attr-defined]
        rows = np.array(ROWS, "<f4")
        body, headers = with_binary(document, rows.tobytes(), (rows - 1).tobytes())
        status, (answer, elements) = await post(server, "two", body, headers)
        assert status == 200
        assert answer["id"] == "7"
        assert answer["outputs"] == [
            {
                "name": "total",
                "datatype": "FP32",
                "shape": [2, 3],
                "parameters": {"binary_data_size": 24},
            },
            {"name": "larger", "datatype": "INT32", "shape": [2, 3], "data": [1] * 6},
        ]
        assert np.frombuffer(elements, "<f4").tolist() == [1, 3, 5, 7, 9, 11]

    async def test_a_body_of_elements_alone(self, server: RunningServer, image: bytes) -> None:
        raw = {V2_HEADER_LENGTH: "0"}
        body = np.array(ROWS, "<f4").tobytes()
        _, (answer, elements) = await post(server, "linear", body, raw)
        assert answer["outputs"][0]["shape"] == [2, 2]
        assert np.frombuffer(elements, "<f4").tolist() == [1, 15, 4, 21]
        _, (_, elements) = await post(server, "vision", image, raw)
        assert json.loads(elements[4:])["mean"] == list(COLOUR)
        _, (_, elements) = await post(server, "handler", b"abc", raw)
        assert json.loads(elements[4:]) == {"body": ["bytearray", "bytearray(b'abc')"]}
        text = await refused(server, "two", body, raw)
        assert "only models with one input" in text

    async def test_the_header_counts_what_the_compressed_body_holds(
        self, server: RunningServer
    ) -> None:
        document = {"inputs": [{"name": "data", "datatype": "FP32", "shape": [1, 3]}]}
        body, headers = with_binary(document, np.array([1, 2, 3], "<f4").tobytes())
        headers["Content-Encoding"] = "gzip"
        status, answer = await post(server, "linear", gzip.compress(body), headers)
        assert (status, answer["outputs"][0]["data"]) == (200, [1.0, 15.0])
        headers[V2_HEADER_LENGTH] = str(len(body) + 1)
        text = await refused(server, "linear", gzip.compress(body), headers)
        assert f"the whole body has {len(body)} bytes" in text

    async def test_half_precision_comes_in_binary_only(self, server: RunningServer) -> None:
        asked = tensor("data", "BYTES", [1], ['["half"]'])
        text = await refused(server, "types", body_of(asked))
        assert "FP16, which has no JSON form" in text
        _, (answer, elements) = await post(
            server, "types", body_of(asked, parameters={"binary_data_output": True})
        )
        assert answer["outputs"][0]["datatype"] == "FP16"
        assert np.frombuffer(elements, "<f2").tolist() == [1.5, -2.0]

    @pytest.mark.parametrize(
        ("command", "datatype", "shape", "data"),
        [
            ("big-endian", "INT32", [2], [1, 2]),
            ("texts", "BYTES", [2], ["a", "ü"]),
            ("other", "BYTES", [1], ['["other"]']),
        ],
    )
    async def test_what_a_service_answers_becomes_a_tensor(
        self, server: RunningServer, command: str, datatype: str, shape: list[int], data: Any
    ) -> None:
        _, answer = await post(
            server, "types", body_of(tensor("data", "BYTES", [1], [f'["{command}"]']))
        )
        output = {"name": "output", "datatype": datatype, "shape": shape, "data": data}
        assert answer["outputs"] == [output]

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"", "not valid JSON"),
            (linear([1, 2]), "data has 2 elements, but shape [2, 3] has 6"),
            (linear([[1, 2]], [1, 2]), "'data' has shape (1, 2), expected (?, 3)"),
            (linear([1, 2, 3], [3]), "'data' has shape (3), expected (?, 3)"),
            (linear(["a"] * 6), "must contain FP32, got 'a'"),
            (linear(ROWS, datatype="FP8"), "datatype must be one of"),
            (
                body_of(tensor("image", "FP32", [1, 3], [1, 2, 3])),
                "the model has no input 'image'; its inputs: 'data'",
            ),
            (
                body_of(tensor("data", "BYTES", [2], ["[1]", "[2]"])),
                "exactly one element of BYTES, got 2",
            ),
            (body_of(tensor("data", "BYTES", [1], ["[[1, 2"])), "neither JSON nor a Python"),
        ],
    )
    async def test_a_mistake_is_named(self, server: RunningServer, body: bytes, text: str) -> None:
        assert text in await refused(server, "linear", body)

    async def test_binary_parts_that_do_not_add_up(self, server: RunningServer) -> None:
        document = {"inputs": [{"name": "data", "datatype": "FP32", "shape": [1, 3]}]}
        body, headers = with_binary(document, bytes(12))
        for changed, change, text in (
            (body + b"x", {}, "1 bytes after its last tensor"),
            (body[:-1], {}, "only 11 bytes of the body are left"),
            (body, {V2_HEADER_LENGTH: "9999"}, f"the whole body has {len(body)} bytes"),
            (body, {V2_HEADER_LENGTH: "many"}, "must be the number of bytes of the JSON"),
            (body[:-12], {V2_HEADER_LENGTH: str(len(body) - 12)}, "only 0 bytes"),
        ):
            assert text in await refused(server, "linear", changed, {**headers, **change})
        text = await refused(server, "linear", body[:-12])
        assert f"the header {V2_HEADER_LENGTH}" in text


class TestBodies:
    @pytest.mark.parametrize("text", ['{"a": [1, null]}', "{'a': [1, None]}"])
    async def test_an_element_of_bytes_is_a_form_field(
        self, server: RunningServer, text: str
    ) -> None:
        _, answer = await post(server, "types", body_of(tensor("data", "BYTES", [1], [text])))
        output = answer["outputs"][0]
        assert (output["datatype"], output["shape"]) == ("BYTES", [1])
        assert json.loads(output["data"][0]) == [{"a": [1, None]}]

    async def test_an_image_comes_in_base64_or_as_it_is(
        self, server: RunningServer, image: bytes
    ) -> None:
        text = base64.b64encode(image).decode()
        _, answer = await post(server, "vision", body_of(tensor("data", "BYTES", [1], [text])))
        assert json.loads(answer["outputs"][0]["data"][0])["mean"] == list(COLOUR)
        document = {"inputs": [{"name": "data", "datatype": "BYTES", "shape": [1]}]}
        body, headers = with_binary(document, len(image).to_bytes(4, "little") + image)
        _, answer = await post(server, "vision", body, headers)
        assert json.loads(answer["outputs"][0]["data"][0])["mean"] == list(COLOUR)
        text = await refused(
            server, "vision", body_of(tensor("data", "UINT8", [6, 8, 3], [0] * 144))
        )
        assert "takes an encoded image, as BYTES" in text
        text = await refused(
            server, "vision", body_of(tensor("data", "BYTES", [1], ["bm90IG9uZQ=="]))
        )
        assert "not an image that can be decoded" in text

    async def test_a_picture_is_its_bytes(self, server: RunningServer, image: bytes) -> None:
        text = base64.b64encode(image).decode()
        asked = tensor("data", "BYTES", [1], [text])
        _, answer = await post(server, "paint", body_of(asked))
        in_json = base64.b64decode(answer["outputs"][0]["data"][0])
        assert Image.open(io.BytesIO(in_json)).getpixel((0, 0)) == COLOUR
        _, (_, elements) = await post(
            server, "paint", body_of(asked, parameters={"binary_data_output": True})
        )
        assert elements[4:] == in_json


class TestHandlers:
    async def test_tensors_are_fields_and_arrays(self, server: RunningServer) -> None:
        text = tensor("text", "BYTES", [1], ['{"a": 1}'])
        parsed = {**text, "name": "parsed", "parameters": {"content_type": "application/json"}}
        body = body_of(text, parsed, tensor("numbers", "INT16", [2], [1, 2]))
        _, answer = await post(server, "handler", body)
        assert json.loads(answer["outputs"][0]["data"][0]) == {
            "numbers": ["ndarray", "[1 2]"],
            "parsed": ["dict", "{'a': 1}"],
            "text": ["bytearray", "bytearray(b'{\"a\": 1}')"],
        }

    async def test_an_array_is_a_tensor_and_a_text_is_itself(self, server: RunningServer) -> None:
        _, answer = await post(
            server, "handler", body_of(tensor("double", "FP64", [2, 1], [1, 2.5]))
        )
        assert answer["outputs"] == [
            {"name": "output", "datatype": "FP64", "shape": [2, 1], "data": [2.0, 5.0]}
        ]
        _, answer = await post(
            server,
            "handler",
            body_of(tensor("header", "BYTES", [1], ["X-Mine"])),
            {"X-Mine": "as it is"},
        )
        assert answer["outputs"][0]["data"] == ["as it is"]

    @pytest.mark.parametrize("status", [201, 418])
    async def test_a_handler_chooses_the_status(self, server: RunningServer, status: int) -> None:
        url = f"{server.url}/v2/models/handler/infer"
        body = body_of(
            tensor("status", "BYTES", [1], [str(status)]), tensor("double", "INT8", [1], [4])
        )
        async with server.session.post(url, data=body) as response:
            document = await response.json()
            assert response.status == status
            if status < 400:
                assert response.headers["X-Chosen"] == "yes"
                assert document["outputs"][0]["data"] == [8]
            else:
                assert document == {"error": "[8]"}

    async def test_a_bad_request_leaves_its_batch_alone(self, server: RunningServer) -> None:
        good = body_of(tensor("double", "INT8", [1], [4]))
        bad = body_of(tensor("double", "BYTES", [2], ["a", "b"]))
        answers = await asyncio.gather(*(post(server, "joined", b) for b in (good, bad, good)))
        assert [status for status, _ in answers] == [200, 400, 200]


class TestBatches:
    async def test_requests_of_both_kinds_share_a_forward(self, server: RunningServer) -> None:
        tensors = [linear([[k, k, k]], [1, 3]) for k in range(2)]
        texts = [body_of(tensor("data", "BYTES", [1], [f"[[{k}, {k}, {k}]]"])) for k in (2, 3)]
        *v2, plain = await asyncio.gather(
            *(post(server, "counting", body) for body in (*tensors, *texts)),
            server.ask("counting", [[4, 4, 4], [5, 5, 5]]),
        )
        for value, (status, answer) in enumerate(v2):
            assert status == 200
            assert [output["data"] for output in answer["outputs"]] == [[2.0 * value] * 3, [1.0]]
        assert plain == (200, [[[8.0] * 3, [10.0] * 3], [[1.0], [1.0]]])
        assert 6 in server.forwards("counting")

    async def test_one_that_fails_fails_alone(self, server: RunningServer) -> None:
        bodies = [linear([[k, k, k]], [1, 3]) for k in (1, -5, 2)]
        answers = await asyncio.gather(*(post(server, "counting", body) for body in bodies))
        assert [status for status, _ in answers] == [200, 500, 200]
        assert "ValueError: a value is too small" in answers[1][1]["error"]


def waits(notes: Path) -> bytes:
    """Return a request that runs until `let_go`."""
    return body_of(tensor("data", "BYTES", [1], [json.dumps(["wait", str(notes)])]))


class TestLimits:
    async def test_a_large_body_is_refused(self, server: RunningServer) -> None:
        status, answer = await post(server, "linear", bytes(MAX_BYTES + 1))
        assert status == 413
        assert "max_request_bytes" in answer["error"]

    async def test_a_full_queue_says_when_to_come_back(
        self, server: RunningServer, notes: Path
    ) -> None:
        body = waits(notes)
        url = f"{server.url}/v2/models/types/infer"
        running = [asyncio.create_task(post(server, "types", body))]
        await waiting(notes)
        running += [asyncio.create_task(post(server, "types", body)) for _ in range(2)]
        await until(lambda: server.servable("types").queue_depth == 2)
        async with server.session.post(url, data=body) as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "1")
            assert "queue" in (await response.json())["error"]
        let_go(notes)
        assert [status for status, _ in await asyncio.gather(*running)] == [200] * 3

    async def test_a_deadline_passes(self, server: RunningServer, notes: Path) -> None:
        status, answer = await post(server, "types", waits(notes), {"X-Request-Timeout-Ms": "200"})
        assert status == 504
        assert list(answer) == ["error"]
        let_go(notes)

    async def test_requests_are_counted_by_their_route(self, server: RunningServer) -> None:
        labels = {"model": "linear", "route": "v2_infer", "code": "200"}
        before = await server.metric("mms_requests_total", **labels)
        await post(server, "linear", linear(ROWS))
        assert await server.metric("mms_requests_total", **labels) == before + 1


async def test_a_server_that_starts_does_not_take_models_for_unknown(
    server: RunningServer,
) -> None:
    with server.before_its_start():
        for path in ("/v2/models/later", "/v2/models/later/ready"):
            assert await server.get(path) == (503, {"error": "the server is starting"})
        answer = await post(server, "later", b"{}")
        assert answer == (503, {"error": "the server is starting"})


async def test_a_shadow_is_compared_without_its_version(tmp_path: Path) -> None:
    write_handler(tmp_path / "store" / "folder")
    settings = {"handler": "service:handle", "preload": False}
    async with running_servers(tmp_path) as start:
        server = await start(
            {"management_port": 0, "model_store": str(tmp_path / "store")},
            handler=(tmp_path / "store" / "folder", settings),
        )
        document = {**settings, "url": "folder", "model_name": "handler", "version": "2"}
        document |= {"initial_workers": 1, "make_default": False}
        assert (await server.manage("POST", "/models", document))[0] == 200
        assert (await server.manage("PUT", "/models/handler/traffic", {"shadow": "2"}))[0] == 200
        status, answer = await post(server, "handler", body_of(tensor("text", "BYTES", [1], ["x"])))
        assert (status, answer["model_version"]) == (200, "1")
        outcomes = server.shadows
        await until(lambda: outcomes)
        assert dict(outcomes) == {("handler", "2", "same"): 1}
