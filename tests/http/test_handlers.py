"""Archives of MMS 1.x: what their handlers get, and what becomes of their answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from mms.errors import ModelLoadFailed
from tests.kit.archives import make_mar
from tests.kit.server import RunningServer, StartServer, running_servers
from tests.kit.waiting import let_go, until, waiting

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    inspecting = make_mar(folder, "inspecting", files={"vocabulary.txt": b"a\n"})
    batching = make_mar(folder, "in_class", "service.py", "batching", batchSize=4)
    return await start_shared(
        {"debug_errors": "on"},
        inspecting=inspecting,
        undecoded=(inspecting, {"decode_input_request": False}),
        first=make_mar(folder, "first_release", name="first"),
        batching=batching,
    )


async def ask(
    server: RunningServer,
    path: str = "/predictions/inspecting",
    data: Any = None,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> tuple[int, Any]:
    url = server.url + path
    async with server.session.request(method, url, data=data, headers=headers) as response:
        return response.status, await response.json()


async def command(server: RunningServer, **what: Any) -> tuple[int, Any]:
    return await ask(server, data=json.dumps(what).encode(), headers=JSON)


class TestRequests:
    @pytest.mark.parametrize(
        ("type_", "body", "value"),
        [
            ("application/json", b'{"a": [1, NaN]}', ["dict", {"a": [1, None]}]),
            ("application/json; charset=utf-8", b"[1]", ["list", [1]]),
            ("text/plain", "größer".encode(), ["str", "größer"]),
            ("text/csv", b"1,2", ["str", "1,2"]),
            ("image/jpeg", b"\xff\xd8", ["bytearray", "\xff\xd8"]),
            ("application/octet-stream", b"", ["bytearray", ""]),
        ],
    )
    async def test_a_body_arrives_decoded_by_its_type(
        self, server: RunningServer, type_: str, body: bytes, value: Any
    ) -> None:
        status, answer = await ask(server, data=body, headers={"Content-Type": type_})
        assert status == 200
        assert answer["values"] == {"body": value}
        assert answer["types"] == {"body": {"content-type": type_.split(";")[0]}}

    async def test_bodies_arrive_as_they_are_where_the_setting_says_so(
        self, server: RunningServer
    ) -> None:
        status, answer = await ask(server, "/predictions/undecoded", b"[1]", JSON)
        assert (status, answer["values"]) == (200, {"body": ["bytearray", "[1]"]})

    async def test_form_fields_arrive_as_bytearrays_and_files_by_their_type(
        self, server: RunningServer
    ) -> None:
        form = aiohttp.FormData()
        form.add_field("field", "a b")
        form.add_field("picture", b"\x89PNG", filename="a.png", content_type="image/png")
        form.add_field("json", b"[2]", filename="a.json", content_type="application/json")
        _, answer = await ask(server, data=form)
        assert answer["values"] == {
            "field": ["bytearray", "a b"],
            "picture": ["bytearray", "\x89PNG"],
            "json": ["list", [2]],
        }
        assert answer["types"]["picture"] == {"content-type": "image/png"}
        _, answer = await ask(server, data={"x": "1", "y": "ü"})
        values = {"x": ["bytearray", "1"], "y": ["bytearray", "ü".encode().decode("latin-1")]}
        assert answer["values"] == values

    @pytest.mark.parametrize(
        ("path", "gets_query"),
        [
            ("/predictions/inspecting", False),
            ("/predictions/inspecting/1", False),
            ("/models/inspecting/invoke", True),
            ("/inspecting/predict", True),
            ("/invocations?model_name=inspecting", True),
        ],
    )
    async def test_query_parameters_reach_handlers_on_the_routes_where_1_x_passed_them(
        self, server: RunningServer, path: str, gets_query: bool
    ) -> None:
        sign = "&" if "?" in path else "?"
        status, answer = await ask(server, f"{path}{sign}top=3", b"x")
        assert status == 200
        assert answer["values"].get("top") == (["bytearray", "3"] if gets_query else None)
        assert answer["values"]["body"] == ["bytearray", "x"]

    @pytest.mark.parametrize(
        "path",
        [
            "/predictions/inspecting",
            "/predictions/inspecting/",
            "/predictions/inspecting/1",
            "/predictions/inspecting/anything",
            "/predictions/inspecting/any/thing/",
            "/models/inspecting/invoke",
            "/inspecting/predict",
            "/invocations?model_name=inspecting",
            # Not in 1.1.11, but in 0.4.
            "//predictions//inspecting",
        ],
    )
    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "POST"])
    async def test_every_path_and_method_of_1_x_asks_the_handler(
        self, server: RunningServer, method: str, path: str
    ) -> None:
        status, answer = await ask(server, path, method=method)
        assert (status, answer["values"]["body"]) == (200, ["bytearray", ""])

    async def test_a_head_asks_the_handler_and_has_no_body(self, server: RunningServer) -> None:
        async with server.session.head(server.url + "/predictions/inspecting") as response:
            assert (response.status, await response.read()) == (200, b"")
            assert int(response.headers["Content-Length"]) > 0

    @pytest.mark.parametrize("version", ["2", "1.0", "v2", "2.1/x"])
    async def test_what_looks_like_a_version_is_one(
        self, server: RunningServer, version: str
    ) -> None:
        """1.1.11 has no versions, and answers; the answer of another one would be wrong here."""
        status, answer = await ask(server, f"/predictions/inspecting/{version}", b"x")
        expected = (404, "version_not_found") if "/" not in version else (200, None)
        assert (status, answer.get("error", {}).get("code")) == expected

    async def test_options_of_a_model_describes_it(self, server: RunningServer) -> None:
        for path in ("/predictions/inspecting", "/inspecting/predict"):
            status, answer = await ask(server, path, method="OPTIONS")
            assert (status, answer["openapi"][:2]) == (200, "3.")
        async with server.session.options(server.url + "/invocations") as response:
            assert (response.status, response.headers["Allow"]) == (200, "OPTIONS, POST")

    async def test_a_get_reaches_the_handler_with_an_empty_body(
        self, server: RunningServer
    ) -> None:
        status, answer = await ask(server, method="GET")
        assert (status, answer["values"]) == (200, {"body": ["bytearray", ""]})

    async def test_headers_and_the_request_id_reach_the_handler(
        self, server: RunningServer
    ) -> None:
        headers = {"X-Own": "value", "User-Agent": "test", "X-Request-Id": "id-7"}
        _, answer = await ask(server, data=b"", headers=headers)
        assert (answer["agent"], answer["own"], answer["id"]) == ("test", "value", "id-7")

    async def test_malformed_json_is_the_clients_fault(self, server: RunningServer) -> None:
        status, answer = await ask(server, data=b"[1", headers=JSON)
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        assert answer["type"] == "BadRequestException"
        status, answer = await ask(server, data=b"\xff", headers={"Content-Type": "text/plain"})
        assert (status, "UTF-8" in answer["message"]) == (400, True)

    async def test_invocations_need_a_name_among_several_models(
        self, server: RunningServer
    ) -> None:
        status, answer = await ask(server, "/invocations", b"x")
        assert status == 400
        assert "batching, first, inspecting, undecoded" in answer["message"]
        status, answer = await ask(server, "/invocations?model_name=none", b"x")
        assert (status, answer["type"]) == (404, "ModelNotFoundException")


class TestAnswers:
    @pytest.mark.parametrize(
        ("value", "type_", "body"),
        [
            ({"a": 1}, "application/json", b'{"a":1}'),
            ([1, None], "application/json", b"[1,null]"),
            ("plain", "text/plain; charset=utf-8", b"plain"),
        ],
    )
    async def test_a_value_is_sent_by_its_type(
        self, server: RunningServer, value: Any, type_: str, body: bytes
    ) -> None:
        url = f"{server.url}/predictions/inspecting"
        async with server.session.post(url, json={"answer": value}) as response:
            assert response.headers["Content-Type"] == type_
            assert await response.read() == body

    async def test_the_legacy_route_answers_a_1_x_handlers_value_bare(
        self, server: RunningServer
    ) -> None:
        body = b'{"answer": {"a": 1}}'
        assert await ask(server, "/inspecting/predict", body, JSON) == (200, {"a": 1})

    async def test_status_phrase_headers_and_content_type_are_the_handlers(
        self, server: RunningServer
    ) -> None:
        url = f"{server.url}/predictions/inspecting"
        async with server.session.post(url, json={"status": 203}) as response:
            assert (response.status, response.reason) == (203, "Quite Odd")
            assert response.headers["X-Own"] == "yes"
            assert await response.json() == {"status": 203}
        async with server.session.post(url, json={"bytes": "00ff"}) as response:
            assert response.headers["Content-Type"] == "image/x-test"
            assert await response.read() == b"\x00\xff"

    @pytest.mark.parametrize(
        ("what", "status", "code", "message"),
        [
            ({"raise": "odd"}, 500, "inference_failed", "Prediction failed: ValueError: odd"),
            ({"refuse": 1}, 442, "rejected_by_service", "not this one"),
            ({"memory": 1}, 507, "out_of_memory", "Out of resources"),
            ({"miscount": 1}, 500, "invalid_service_output", "number of batch response mismatched"),
            ({"object": 1}, 500, "invalid_service_output", "cannot be sent as JSON"),
            ({"status": 99}, 500, "invalid_service_output", "the status 99"),
        ],
    )
    async def test_a_failure_is_told_in_the_words_of_1_x(
        self, server: RunningServer, what: dict[str, Any], status: int, code: str, message: str
    ) -> None:
        got, answer = await command(server, **what)
        assert (got, answer["error"]["code"]) == (status, code)
        assert answer["code"] == status
        assert message in answer["message"]
        assert await command(server, answer=["alive"]) == (200, ["alive"])

    async def test_what_a_handler_reports_is_among_the_metrics(self, server: RunningServer) -> None:
        labels = {"model": "inspecting", "version": "1"}
        before = await server.metric("mms_service_tokens_total", **labels)
        for _ in range(2):
            url = f"{server.url}/predictions/inspecting"
            async with server.session.post(url, json={"metrics": 1}) as response:
                assert await response.text() == "reported"
        assert await server.metric("mms_service_tokens_total", **labels) == before + 6
        times = labels | {"step": "first"}
        count = await server.metric("mms_service_tokenize_time_seconds_count", **times)
        total = await server.metric("mms_service_tokenize_time_seconds_sum", **times)
        assert total / count == pytest.approx(0.02)
        assert await server.metric("mms_service_vocabulary_bytes", **labels) == 2e6
        assert await server.metric("mms_service_known_ratio", **labels) == 0.5
        assert "trouble" not in await server.metrics()

    async def test_too_long_an_answer_names_the_setting(self, tmp_path: Path) -> None:
        archive = make_mar(tmp_path, "inspecting", files={"vocabulary.txt": b"a\n"})
        async with running_servers(tmp_path) as start:
            server = await start({"max_response_bytes": 2000}, inspecting=archive)
            fits = ["a" * 1996]
            assert await command(server, answer=fits) == (200, fits)
            status, answer = await command(server, answer=["a" * 1997])
            assert (status, answer["error"]["code"]) == (500, "invalid_service_output")
            assert "2001 bytes, more than max_response_bytes (2000)" in answer["message"]


class TestLoading:
    async def test_a_handler_is_initialized_in_its_folder_before_the_first_request(
        self, server: RunningServer
    ) -> None:
        _, answer = await command(server, initialized=1)
        folder = answer["properties"]["model_dir"]
        assert answer["cwd"] == folder
        assert "vocabulary.txt" in answer["files"]
        assert answer["handler"] == "service:handle"
        assert answer["name"] == "inspecting"
        assert answer["properties"]["gpu_id"] is None
        assert answer["properties"]["server_name"] == "MMS"

    async def test_no_mxnet_is_loaded_for_a_handler_that_has_no_use_for_it(
        self, server: RunningServer
    ) -> None:
        servable = server.servable("inspecting")
        assert servable.reports[servable.pid].engine.startswith("python")
        maps = Path(f"/proc/{servable.pid}/maps").read_text()
        assert "libmxnet" not in maps

    @pytest.mark.parametrize(
        ("source", "handler", "message"),
        [
            ("import torch_is_not_here\n", "service:handle", "install 'torch_is_not_here'"),
            ("from ts.torch_handler import X\n", "service:handle", "TorchServe's own package"),
            ("x = 1\n", "service:handle", "neither a function 'handle' nor just one class"),
            ("handle = 3\n", "service:handle", "'handle' is not a function"),
            ("class A:\n    pass\n", "service", "A has no method handle"),
            ("def handle(data, context):\n    1 / 0\n", "service", "ZeroDivisionError"),
            ("x = 1\n", "elsewhere:handle", "neither in the archive (elsewhere.py) nor installed"),
        ],
    )
    async def test_a_handler_that_does_not_load_says_why(
        self,
        tmp_path: Path,
        source: str,
        handler: str,
        message: str,
    ) -> None:
        archive = make_mar(tmp_path, source, handler)
        async with running_servers(tmp_path) as start:
            with pytest.raises(ModelLoadFailed) as failure:
                await start(handled=archive)
        assert message in str(failure.value)

    async def test_a_folder_with_a_handler_needs_no_manifest(self, tmp_path: Path) -> None:
        folder = tmp_path / "loose"
        folder.mkdir()
        (folder / "own.py").write_text("def work(data, context):\n    return [1] if data else 0\n")
        async with running_servers(tmp_path) as start:
            server = await start(loose=(folder, {"handler": "own:work"}))
            assert await ask(server, "/predictions/loose", b"x") == (200, 1)


class TestFirstReleases:
    """What handlers of the first releases of 1.x do; values as multi-model-server 1.1.11's."""

    async def said(self, server: RunningServer, text: str) -> tuple[int, Any]:
        return await ask(
            server, "/predictions/first", text.encode(), {"Content-Type": "text/plain"}
        )

    async def test_the_processors_are_also_the_one_object_that_they_were(
        self, server: RunningServer
    ) -> None:
        url = f"{server.url}/predictions/first"
        headers = {"X-Own": "mine", "Content-Type": "image/x"}
        async with server.session.post(url, data=b"x", headers=headers) as response:
            assert (response.status, response.reason) == (202, "Later")
            assert response.headers["X-First"] == "mine"
            assert await response.json() == {"body": "x"}

    async def test_processors_that_a_handler_assigns_count(self, server: RunningServer) -> None:
        url = f"{server.url}/predictions/first"
        async with server.session.post(
            url, data=b"assign", headers={"Content-Type": "text/plain"}
        ) as response:
            assert (response.status, response.reason) == (207, "Assigned")
            assert await response.text() == "assigned"

    async def test_while_loading_there_are_metrics_and_no_request(
        self, server: RunningServer
    ) -> None:
        assert await self.said(server, "load") == (
            200,
            {"ids": None, "processor": None, "level": "Level:Model"},
        )

    async def test_the_environment(self, server: RunningServer) -> None:
        status, found = await self.said(server, "environment")
        assert status == 200
        assert found["MMS_DECODE_INPUT_REQUEST"] == "true"
        assert found["MXNET_USE_OPERATOR_TUNING"] == "0"
        assert Path(found["TEMP"]).is_dir()
        folders = found["PYTHONPATH"].split(":")
        assert folders[-2] == found["cwd"]
        assert (Path(folders[-1]) / "mms" / "context.py").is_file()

    async def test_numbers_are_those_of_pythons_json(self, server: RunningServer) -> None:
        body = b'{"n": 1, "n": 123456789012345678901234567890, "x": NaN}'
        status, found = await ask(server, "/predictions/first", body, JSON)
        assert (status, found["kind"]) == (202, "int")
        assert found["square"] == str(123456789012345678901234567890**2)

    @pytest.mark.parametrize(
        ("body", "fields"),
        [
            (b"a=1&b=&c=%FF%41&d=x+y", {"a": "1", "b": "", "c": "\ufffdA", "d": "x y"}),
            # A last name without a sign is lost.
            (b"a", {}),
            (b"a=1&b", {"a": "1"}),
            (b"a&b", {"a": ""}),
            (b"a&", {"a": ""}),
            (b"&a", {}),
            (b"a=1&a=2", {"a": "2"}),
            (b"a;b=1&&c==", {"a;b": "1", "c": "="}),
        ],
    )
    async def test_fields_of_url_encoded_forms(
        self, server: RunningServer, body: bytes, fields: dict[str, str]
    ) -> None:
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        _, found = await ask(server, "/predictions/first", body, headers)
        assert found == fields

    async def test_a_file_without_a_type_is_bytes(self, server: RunningServer) -> None:
        body = (
            b'--B\r\nContent-Disposition: form-data; name="a"; filename="x"\r\n\r\nhi\r\n'
            b'--B\r\nContent-Disposition: form-data; name="b"\r\n\r\nhi\r\n--B--\r\n'
        )
        headers = {"Content-Type": "multipart/form-data; boundary=B"}
        _, found = await ask(server, data=body, headers=headers)
        assert found["types"] == {
            "a": {"content-type": "application/octet-stream"},
            "b": {"content-type": ""},
        }


class TestBatches:
    async def test_a_batch_is_handled_as_one_and_only_the_culprit_fails(
        self, server: RunningServer, tmp_path: Path
    ) -> None:
        async def send(text: str) -> tuple[int, Any]:
            headers = {"Content-Type": "text/plain"}
            return await ask(server, "/predictions/batching", text.encode(), headers)

        async def send_together(*texts: str) -> list[tuple[int, Any]]:
            """Have all wait in the queue while the only worker is busy, and then go on."""
            folder = tmp_path / str(len(texts))
            folder.mkdir()
            first = asyncio.create_task(send(f"wait {folder}"))
            await waiting(folder)
            sent = [asyncio.create_task(send(text)) for text in texts]
            await until(lambda: server.servable("batching").queue_depth == len(texts))
            let_go(folder)
            assert (await first)[1]["batch"] == 1
            return await asyncio.gather(*sent)

        others = await send_together("good", "good", "good", "good")
        assert [answer["batch"] for _, answer in others] == [4] * 4
        assert others[0][1] == {"batch": 4, "most": 4, "has_dir": True}
        mixed = await send_together("good", "poison", "good")
        assert [status for status, _ in mixed] == [200, 500, 200]


async def test_without_the_setting_models_cannot_be_changed_on_the_inference_port(
    server: RunningServer,
) -> None:
    assert (await ask(server, "/models", b"{}", JSON))[0] == 404
    assert (await ask(server, "/models/inspecting", method="DELETE"))[0] in (404, 405)
