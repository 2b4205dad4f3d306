"""Every way to ask a model, and every way to be refused."""

from __future__ import annotations

import asyncio
import base64
import gc
import gzip
import io
import json
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote_plus

import aiohttp
import pytest
import pytest_asyncio
from PIL import Image

from mms.export.package import export_model
from tests.kit.archives import make_archive, signature, write_linear
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_BYTES = 4 << 20
JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
COLOUR = (200, 100, 50)


def encoded_image(kind: str = "PNG") -> bytes:
    output = io.BytesIO()
    Image.new("RGB", (8, 6), COLOUR).save(output, kind)
    return output.getvalue()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    image = signature([0, 3, 6, 8], "image/jpeg")
    picture = signature([0, 3, 6, 8], "image/jpeg", "image/png")
    return await start_shared(
        {"max_request_bytes": MAX_BYTES, "max_decompressed_bytes": MAX_BYTES},
        echo=make_archive(folder, "echo"),
        two=make_archive(folder, "pair", signature(names=("left", "right"))),
        busy=(make_archive(folder, "faulty"), {"queue_size": 2}),
        linear=export_model("linear", write_linear(folder / "linear"), None, folder).path,
        vision=make_archive(folder, "vision", image),
        paint=make_archive(folder, "vision", picture, name="paint"),
    )


async def post(
    server: RunningServer,
    path: str,
    data: Any = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, Any]:
    """Post a body as it is and return status and parsed answer."""
    if isinstance(data, bytes) and len(data) > 1 << 19:
        data = io.BytesIO(data)  # aiohttp warns of large bodies in one piece
    async with server.session.post(server.url + path, data=data, headers=headers) as response:
        return response.status, await response.json()


async def raw(server: RunningServer, data: bytes) -> bytes:
    """Send bytes on a connection of their own, and return what comes until the server closes it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 30)
    finally:
        writer.close()
        await writer.wait_closed()


def http(body: bytes, *lines: str, version: str = "1.1", method: str = "POST") -> bytes:
    """Build a request to /predictions/echo."""
    head = [f"{method} /predictions/echo HTTP/{version}", "Host: localhost", *lines]
    if not any(line.startswith("Transfer-Encoding") for line in lines):
        head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


class TestJsonInputs:
    async def test_predictions_answer_bare_and_the_old_route_answers_wrapped(
        self, server: RunningServer
    ) -> None:
        body = b"[1, {}]"
        assert await post(server, "/predictions/echo", body, JSON) == (200, [1, {}])
        assert await post(server, "/predictions/echo/1", body, JSON) == (200, [1, {}])
        assert await post(server, "/echo/predict", body, JSON) == (200, {"prediction": [1, {}]})

    @pytest.mark.parametrize(
        ("body", "value"),
        [
            (b"[1, 2]", [1, 2]),
            (b'{"a": 1}', [{"a": 1}]),
            (b'{"data": [3]}', [3]),
            (b'{"data": {"a": 1}, "other": 2}', [{"a": 1}]),
            (b' \n[1.5e3, "\\u00e9", null, true]', [1500.0, "é", None, True]),
        ],
    )
    async def test_a_json_body_is_the_sole_input_or_an_object_keyed_by_its_name(
        self, server: RunningServer, body: bytes, value: Any
    ) -> None:
        assert await post(server, "/predictions/echo", body, JSON) == (200, value)

    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ("[1, 2]", [1, 2]),
            ('{"a": null}', [{"a": None}]),
            ("[{'review_title': 'it''s', 'review': \"fine\"}]", None),
            ("{'a': None, 'b': True}", [{"a": None, "b": True}]),
            ("(1, 'two')", [1, "two"]),
        ],
    )
    async def test_a_form_field_holds_json_or_a_python_literal(
        self, server: RunningServer, text: str, value: Any
    ) -> None:
        value = value or [{"review_title": "its", "review": "fine"}]
        fields = aiohttp.FormData({"data": text, "extra": "ignored"})
        assert await post(server, "/predictions/echo", {"data": text}) == (200, value)
        fields.add_field("file", b"x", filename="x.bin")
        assert await post(server, "/predictions/echo", fields) == (200, value)

    async def test_curl_d_without_a_content_type_sends_json(self, server: RunningServer) -> None:
        assert await post(server, "/predictions/echo", b"[1, 2]", FORM) == (200, [1, 2])

    async def test_json_sent_by_curl_d_may_hold_what_separates_form_fields(
        self, server: RunningServer
    ) -> None:
        text = "&".join(["a=b", "data=c", *["x"] * 300])
        body = json.dumps([text]).encode()
        assert await post(server, "/predictions/echo", body, FORM) == (200, [text])

    async def test_a_body_without_any_content_type_is_json(self, server: RunningServer) -> None:
        answer = await raw(server, http(b"[7]", "Connection: close"))
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.endswith(b"\r\n\r\n[7]")

    async def test_a_model_of_two_inputs_takes_both_by_name(self, server: RunningServer) -> None:
        body = b'{"right": [2], "left": [1]}'
        assert await post(server, "/predictions/two", body, JSON) == (200, [[1], [2]])
        form = {"left": "[1]", "right": "{'a': 2}"}
        assert await post(server, "/predictions/two", form) == (200, [[1], [{"a": 2}]])

    @pytest.mark.parametrize(
        ("model", "body", "headers", "named"),
        [
            ("echo", b"", JSON, "empty"),
            ("echo", b"[1, 2", JSON, "not valid JSON"),
            ("echo", b"[nan]", JSON, "not valid JSON"),
            ("echo", b"3", JSON, "must be a list or an object, got a number"),
            ("echo", b'"text"', JSON, "got a string"),
            ("echo", b"null", JSON, "got null"),
            ("echo", b"other=1", FORM, "'data' is missing; the form has 'other'"),
            ("echo", b"data=[1", FORM, "neither JSON nor a Python literal"),
            ("echo", b"data=__import__('os').getpid()", FORM, "neither JSON nor a Python literal"),
            ("echo", b"data=5", FORM, "got a number"),
            ("two", b'{"left": [1]}', JSON, "'right' is missing"),
            ("two", b"[1]", JSON, "2 inputs"),
            ("two", b"left=[1]", FORM, "'right' is missing"),
            ("echo", b"x", {"Content-Type": "multipart/form-data"}, "boundary"),
            ("echo", b"x", {"Content-Type": "multipart/form-data; boundary=b"}, "malformed"),
        ],
    )
    async def test_a_bad_body_is_a_400_that_says_what_was_expected(
        self, server: RunningServer, model: str, body: bytes, headers: dict[str, str], named: str
    ) -> None:
        status, answer = await post(server, f"/predictions/{model}", body, headers)
        assert (status, answer["error"]["code"]) == (400, "invalid_request")
        assert named in answer["message"]

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            "[" * 101 + "1," + "]" * 101,
            "(" * 5000 + ")" * 5000,
            "-" * 50_000 + "1",
            "not " * 50_000 + "1",
            "lambda: " * 20_000 + "1",
            "1+" * 50_000 + "1",
            "[" + "9" * 100_000 + ",]",
            "'" + "a" * (2 << 20) + "'",
        ],
        ids=lambda text: text[:4],
    )
    async def test_a_literal_made_to_break_the_parser_is_a_400(
        self, server: RunningServer, text: str
    ) -> None:
        pid = await server.ask("echo", ["pid"])
        status, _ = await post(server, "/predictions/echo", b"data=" + text.encode(), FORM)
        assert status == 400
        assert await server.ask("echo", ["pid"]) == pid

    async def test_json_nested_too_deep_is_a_400(self, server: RunningServer) -> None:
        body = b"[" * 100_000 + b"]" * 100_000
        assert (await post(server, "/predictions/echo", body, JSON))[0] == 400

    async def test_another_content_type_is_a_415_that_lists_what_is_read(
        self, server: RunningServer
    ) -> None:
        kind = {"Content-Type": "text/plain"}
        status, answer = await post(server, "/predictions/echo", b"1", kind)
        assert (status, answer["error"]["code"]) == (415, "unsupported_media")
        assert "application/json" in answer["message"]

    async def test_a_symbol_runs_on_arrays(self, server: RunningServer) -> None:
        status, answer = await server.ask("linear", [[1, 2, 3], [4, 5, 6]])
        assert (status, json.loads(answer[0])) == (200, [[1, 15], [4, 21]])

    @pytest.mark.parametrize(
        "value", [[[1, 2]], [1, 2, 3], [[1, 2, 3], [4]], [["a", 2, 3]], [[[1, 2, 3]]]], ids=str
    )
    async def test_a_wrong_shape_is_a_400_that_names_the_input_and_its_shape(
        self, server: RunningServer, value: Any
    ) -> None:
        status, answer = await server.ask("linear", value)
        assert status == 400
        assert "'data'" in answer["message"]
        assert "(?, 3)" in answer["message"]


class TestImages:
    expected = {"shape": [6, 8, 3], "mean": [200.0, 100.0, 50.0]}  # noqa: RUF012 - never changed

    async def test_an_image_comes_as_a_file_a_body_or_base64(self, server: RunningServer) -> None:
        image = encoded_image()
        text = base64.b64encode(image).decode()
        file = aiohttp.FormData()
        file.add_field("data", image, filename="a.jpg", content_type="image/jpeg")
        ways: list[tuple[Any, dict[str, str] | None]] = [
            (file, None),
            (image, {"Content-Type": "image/jpeg"}),
            (image, {"Content-Type": "application/octet-stream"}),
            (image, FORM),
            ({"data": text}, None),
            (b"data=" + text.encode(), FORM),
            (f"data={quote_plus('data:image/png;base64,' + text)}".encode(), FORM),
            (json.dumps({"data": text}).encode(), JSON),
            (json.dumps(text).encode(), JSON),
        ]
        for body, headers in ways:
            answer = await post(server, "/predictions/vision", body, headers)
            assert answer == (200, self.expected), headers
        old = aiohttp.FormData()
        old.add_field("data", image, filename="a.jpg")
        assert await post(server, "/vision/predict", old) == (200, {"prediction": self.expected})

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            (b"\x00\x01\x02" * 50, "undecodable_image"),
            (encoded_image()[:12], "undecodable_image"),
            (b"", "invalid_request"),
        ],
        ids=["noise", "cut short", "nothing"],
    )
    async def test_what_is_no_image_is_a_400(
        self, server: RunningServer, body: bytes, code: str
    ) -> None:
        headers = {"Content-Type": "image/jpeg"}
        status, answer = await post(server, "/predictions/vision", body, headers)
        assert (status, answer["error"]["code"]) == (400, code)

    async def test_an_image_answer_is_base64_or_raw_as_accept_asks(
        self, server: RunningServer
    ) -> None:
        url = f"{server.url}/predictions/paint"
        async with server.session.post(url, data=encoded_image()) as response:
            assert response.content_type == "application/json"
            (text,) = await response.json()
        headers = {"Accept": "image/png"}
        async with server.session.post(url, data=encoded_image(), headers=headers) as response:
            assert response.content_type == "image/png"
            assert response.headers["X-Request-Id"]
            picture = await response.read()
        assert base64.b64decode(text) == picture
        assert Image.open(io.BytesIO(picture)).getpixel((0, 0)) == COLOUR


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("/predictions/nobody", "model_not_found"),
            ("/nobody/predict", "model_not_found"),
            ("/predictions/echo/9", "version_not_found"),
            ("/predictions", "route_not_found"),
            ("/no/such/route", "route_not_found"),
        ],
    )
    async def test_an_unknown_model_version_or_route_is_a_404(
        self, server: RunningServer, path: str, code: str
    ) -> None:
        status, answer = await post(server, path, b"[1]", JSON)
        assert (status, answer["error"]["code"]) == (404, code)
        assert answer["error"]["request_id"]

    @pytest.mark.parametrize("method", ["HEAD", "DELETE", "PATCH"])
    async def test_a_wrong_method_is_a_405_with_allow(
        self, server: RunningServer, method: str
    ) -> None:
        url = f"{server.url}/predictions/echo"
        async with server.session.request(method, url) as response:
            assert response.status == 405
            assert response.headers["Allow"] == "GET, OPTIONS, POST, PUT"
            assert (await response.read() == b"") == (method == "HEAD")

    @pytest.mark.parametrize("path", ["/echo/predict", "/invocations", "/models/echo/invoke"])
    @pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH", "TRACE"])
    async def test_methods_of_handlers_are_not_those_of_services(
        self, server: RunningServer, method: str, path: str
    ) -> None:
        """As 0.4, where a service is asked by POST alone."""
        url = f"{server.url}{path}?model_name=echo"
        async with server.session.request(method, url) as response:
            assert (response.status, response.headers["Allow"]) == (405, "OPTIONS, POST")

    @pytest.mark.parametrize(
        "path", ["//echo/predict", "/echo//predict", "/echo/predict/", "///predictions//echo//"]
    )
    async def test_slashes_too_many_say_nothing(self, server: RunningServer, path: str) -> None:
        """In 0.4 those that repeat, in 1.x the last one."""
        status, _ = await post(server, path, b"[1]", JSON)
        assert status == 200
        route = "legacy_predict" if "echo/" in path and "predictions" not in path else "predictions"
        assert await server.metric("mms_requests_total", route=route, code="200", model="echo") > 0

    async def test_the_root_is_a_second_ping(self, server: RunningServer) -> None:
        """0.4 answers {"health": "healthy!"}, whatever the client accepts; ours says more."""
        for accept in ("*/*", "application/json", "text/html"):
            headers = {"Accept": accept}
            async with server.session.get(server.url + "/", headers=headers) as response:
                assert (await response.json())["health"] == "healthy!"

    async def test_a_body_over_the_limit_is_a_413_that_names_the_option(
        self, server: RunningServer
    ) -> None:
        body = b'"' + b"x" * MAX_BYTES + b'"'

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, len(body), 1 << 20):
                yield body[at : at + (1 << 20)]

        for data in (body, chunks()):
            status, answer = await post(server, "/predictions/echo", data, JSON)
            assert (status, answer["error"]["code"]) == (413, "payload_too_large")
            assert "--max-request-bytes" in answer["message"]

    async def test_a_body_that_unpacks_beyond_the_limit_is_a_413(
        self, server: RunningServer
    ) -> None:
        body = gzip.compress(b"x" * (4 * MAX_BYTES))
        headers = {**JSON, "Content-Encoding": "gzip"}
        assert (await post(server, "/predictions/echo", body, headers))[0] == 413

    @pytest.mark.parametrize("text", ["0", "-1", "1.5", "soon", "", "9" * 11])
    async def test_a_bad_timeout_header_is_a_400(self, server: RunningServer, text: str) -> None:
        status, answer = await server.ask("echo", [1], {"X-Request-Timeout-Ms": text})
        assert status == 400
        assert "X-Request-Timeout-Ms" in answer["message"]


class TestQueue:
    """A worker that waits for a file, and what happens to the requests behind it."""

    @pytest.fixture
    def folders(self, tmp_path: Path) -> tuple[Path, Path]:
        folders = tmp_path / "first", tmp_path / "second"
        for folder in folders:
            folder.mkdir()
        return folders

    async def start_first(self, server: RunningServer, folder: Path) -> asyncio.Task[Any]:
        task = asyncio.create_task(server.ask("busy", ["wait", str(folder)]))
        await until(lambda: list(folder.iterdir()))
        return task

    async def test_a_request_past_its_deadline_is_a_504_and_never_run(
        self, server: RunningServer, folders: tuple[Path, Path]
    ) -> None:
        first, second = folders
        running = await self.start_first(server, first)
        timeout = {"X-Request-Timeout-Ms": "100"}
        status, answer = await server.ask("busy", ["wait", str(second)], timeout)
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        (first / "go").touch()
        assert await running == (200, "went")
        assert await server.ask("busy", ["echo", 1]) == (200, 1)
        assert list(second.iterdir()) == []

    async def test_a_full_queue_is_a_503_with_retry_after(
        self, server: RunningServer, folders: tuple[Path, Path]
    ) -> None:
        first, _ = folders
        running = await self.start_first(server, first)
        servable = server.servable("busy")
        waiting = [asyncio.create_task(server.ask("busy", ["echo", n])) for n in range(2)]
        await until(lambda: servable.queue_depth == 2)
        url = f"{server.url}/predictions/busy"
        async with server.session.post(url, json=["echo", 3]) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error"]["code"] == "queue_full"
        (first / "go").touch()
        assert await running == (200, "went")
        assert await asyncio.gather(*waiting) == [(200, 0), (200, 1)]
        assert await server.metric("mms_requests_rejected_total", reason="queue_full") == 1

    async def test_a_client_that_leaves_the_queue_is_dropped_and_its_neighbours_are_answered(
        self, server: RunningServer, folders: tuple[Path, Path]
    ) -> None:
        first, second = folders
        running = await self.start_first(server, first)
        servable = server.servable("busy")
        leaver = asyncio.create_task(server.ask("busy", ["wait", str(second)]))
        await until(lambda: servable.queue_depth == 1)
        neighbour = asyncio.create_task(server.ask("busy", ["echo", 1]))
        await until(lambda: servable.queue_depth == 2)
        leaver.cancel()
        await until(lambda: servable.queue_depth == 1)
        (first / "go").touch()
        assert await running == (200, "went")
        assert await neighbour == (200, 1)
        assert list(second.iterdir()) == []

    async def test_a_client_that_leaves_while_its_request_runs_harms_nobody(
        self, server: RunningServer, folders: tuple[Path, Path]
    ) -> None:
        first, _ = folders
        running = await self.start_first(server, first)
        running.cancel()
        neighbour = asyncio.create_task(server.ask("busy", ["echo", 1]))
        await until(lambda: server.servable("busy").queue_depth == 1)
        (first / "go").touch()
        assert await neighbour == (200, 1)


class TestRequestIds:
    async def test_the_clients_id_is_echoed_and_another_is_made_for_a_bad_one(
        self, server: RunningServer
    ) -> None:
        url = f"{server.url}/predictions/echo"
        for sent, is_kept in (("my-id.1", True), ("with blank", False), ("x" * 129, False)):
            async with server.session.post(
                url, json=[1], headers={"X-Request-Id": sent}
            ) as response:
                assert (response.headers["X-Request-Id"] == sent) is is_kept
        ids = set()
        for _ in range(3):
            async with server.session.post(url, json=[1]) as response:
                ids.add(response.headers["X-Request-Id"])
        assert len(ids) == 3

    async def test_the_id_is_on_the_lines_that_user_code_logs(
        self, server: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        for number in range(2):
            headers = {"X-Request-Id": f"log-{number}"}
            assert (await server.ask("busy", ["log", f"line {number}"], headers))[0] == 200

        def lines() -> dict[str, str]:
            return {
                record.getMessage(): vars(record)["request_id"]
                for record in caplog.records
                if record.name == "user.code"
            }

        await until(lambda: len(lines()) == 2)
        assert lines() == {"line 0": "log-0", "line 1": "log-1"}


class TestConnections:
    async def test_a_body_of_a_megabyte_comes_back_whole(self, server: RunningServer) -> None:
        value = ["x" * (1 << 20), 1]
        body = json.dumps(value).encode()
        assert await post(server, "/predictions/echo", body, JSON) == (200, value)

    async def test_a_body_that_failed_or_never_ended_is_let_go_at_once(
        self, server: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        body = b"{" + b"x" * (1 << 20)
        whole = (
            "POST /predictions/linear HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {len(body)}\r\n"
            "Content-Type: application/json\r\nConnection: close\r\n\r\n"
        ).encode() + body
        requests = server.servable("linear").requests
        before = requests["predictions", 499]
        gc.collect()
        # Without the collector, whatever is in a circle stays.
        gc.disable()
        tracemalloc.start()
        try:
            for _ in range(10):
                assert (await raw(server, whole)).startswith(b"HTTP/1.1 400")
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(whole[:-1000])
                await writer.drain()
                writer.close()
            await until(lambda: requests["predictions", 499] == before + 10)
            kept, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
            gc.enable()
        assert kept < 2 << 20
        assert not caplog.records

    async def test_a_gzipped_body_is_read(self, server: RunningServer) -> None:
        headers = {**JSON, "Content-Encoding": "gzip"}
        body = gzip.compress(b"[1, 2]")
        assert await post(server, "/predictions/echo", body, headers) == (200, [1, 2])

    async def test_a_body_that_is_not_what_its_encoding_says_is_a_400(
        self, server: RunningServer
    ) -> None:
        headers = {**JSON, "Content-Encoding": "gzip"}
        async with server.session.post(
            f"{server.url}/predictions/echo", data=b"no gzip at all", headers=headers
        ) as response:
            assert response.status == 400

    async def test_a_connection_is_kept_and_serves_many_requests(
        self, server: RunningServer
    ) -> None:
        requests = http(b"[1]") + http(b"[2]") + http(b"[3]", "Connection: close")
        answer = await raw(server, requests)
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert [part[:3] for part in answer.split(b"\r\n\r\n")[1:]] == [b"[1]", b"[2]", b"[3]"]
        assert answer.count(b"Connection: close") == 1

    async def test_http_1_0_is_answered_and_closed(self, server: RunningServer) -> None:
        answer = await raw(server, http(b"[1]", version="1.0"))
        assert b" 200 OK\r\n" in answer
        assert answer.endswith(b"\r\n\r\n[1]")

    async def test_http_1_0_keeps_the_connection_when_asked(self, server: RunningServer) -> None:
        first = http(b"[1]", "Connection: keep-alive", version="1.0")
        answer = await raw(server, first + http(b"[2]", version="1.0"))
        assert b"[1]" in answer
        assert answer.endswith(b"[2]")

    async def test_expect_100_continue_is_told_to_go_on(self, server: RunningServer) -> None:
        request = http(b"[1]", "Expect: 100-continue", "Connection: close")
        answer = await raw(server, request)
        assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")

    async def test_a_chunked_body_is_joined(self, server: RunningServer) -> None:
        body = b"3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n"
        answer = await raw(server, http(body, "Transfer-Encoding: chunked", "Connection: close"))
        assert answer.endswith(b"\r\n\r\n[1,2]")

    @pytest.mark.parametrize(
        "data",
        [
            b"rubbish\r\n\r\n",
            b"POST /predictions/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
            b"POST /predictions/echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            http(b"zz\r\n", "Transfer-Encoding: chunked", "Connection: close"),
            b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        ],
        ids=["no HTTP", "negative length", "two lengths", "bad chunk", "long header"],
    )
    async def test_what_is_no_http_is_a_400(self, server: RunningServer, data: bytes) -> None:
        answer = await raw(server, data)
        assert answer.split(b" ", 2)[1] in (b"400", b"431")
        assert await server.ask("echo", [1]) == (200, [1])

    async def test_a_small_answer_has_the_headers_of_any_other(self, server: RunningServer) -> None:
        small = await raw(server, http(b"[1]", "Connection: close", "X-Request-Id: a"))
        large_value = b'["' + b"x" * (128 << 10) + b'"]'
        large = await raw(server, http(large_value, "Connection: close", "X-Request-Id: a"))

        def names(answer: bytes) -> set[bytes]:
            head = answer.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
            return {line.split(b":")[0] for line in head} - {b"Server"}

        assert names(small) == names(large)
