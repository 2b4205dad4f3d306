"""The management API as clients of 1.x know it: each expected value is what 1.1.11 answers.

Where ours is another one, the test says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from openapi_spec_validator import validate
from yarl import URL

from mms.config.build import Config
from mms.config.layers import Layer
from mms.config.settings import ServerSettings
from mms.serving.controlplane import ControlPlane
from mms.serving.registry import Registry
from tests.kit.archives import make_archive, make_mar, signature
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = "application/json"
REGISTERED, SCALED = 'Model "n" registered', "Workers scaled"
PROCESSING = "Processing worker updates..."
HANDLER = "def handle(data, context):\n    return None if data is None else ['ok'] * len(data)\n"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    store = folder / "store"
    store.mkdir()
    make_mar(store, HANDLER, name="n", modelVersion="3.1")
    make_archive(folder, "echo", signature([0])).rename(store / "echo.model")
    mar = make_mar(store, HANDLER, name="m")
    settings = {"management_port": 0, "model_store": str(store)}
    return await start_shared(settings, m=mar)


async def manage(
    server: RunningServer, method: str, path: str, body: str | None = None, type_: str = JSON
) -> tuple[int, Any, Any]:
    """Return the status, the document and the headers of an answer."""
    url = URL(server.management_url + path, encoded=True)
    headers = {"Content-Type": type_} if body is not None else {}
    async with server.session.request(method, url, data=body, headers=headers) as response:
        return response.status, await response.json(), response.headers


async def until_loaded(server: RunningServer, status: int) -> None:
    """Wait for a model that was registered with this status."""
    if status == 202:
        await until(lambda: "n" in server.names and server.servable("n").is_ready)


class TestParameters:
    @pytest.mark.parametrize(
        ("query", "status", "said"),
        [
            ("initial_workers=0&foo=1", 200, REGISTERED),
            ("initial_workers=1", 200, SCALED),
            ("initial_workers=1&synchronous=TRUE", 200, SCALED),
            ("initial_workers=1&synchronous=false", 202, PROCESSING),
            ("initial_workers=1&synchronous=1", 202, PROCESSING),
            ("initial_workers=1&synchronous=yes", 202, PROCESSING),
            ("runtime=python3&response_timeout=3&preload_model=zzz", 200, REGISTERED),
            ("runtime=PYTHON2&preload_model=true&timeout=3&number_gpu=0", 200, REGISTERED),
            (
                "batch_size=abc&max_batch_delay=x&initial_workers=y&response_timeout=",
                200,
                REGISTERED,
            ),
        ],
    )
    async def test_registering(
        self, server: RunningServer, query: str, status: int, said: str
    ) -> None:
        got, answer, _ = await manage(server, "POST", f"/models?url=n.mar&{query}")
        assert (got, answer) == (status, {"status": said})
        await until_loaded(server, status)

    @pytest.mark.parametrize(
        ("body", "status", "said"),
        [
            ('{"url": "n.mar", "initial_workers": "1"}', 200, SCALED),
            ('{"url": "n.mar", "initial_workers": 1, "synchronous": false}', 202, PROCESSING),
            ("{'url': 'n.mar', 'initial_workers': '1', \"synchronous\": true}", 200, SCALED),
            ("{url: n.mar, initial_workers: 1.0}", 200, REGISTERED),
            ("{url: n.mar, preload_model: 'true', handler: 'service:handle'}", 200, REGISTERED),
        ],
    )
    async def test_an_object_may_be_written_loosely(
        self, server: RunningServer, body: str, status: int, said: str
    ) -> None:
        got, answer, _ = await manage(server, "POST", "/models", body)
        assert (got, answer) == (status, {"status": said})
        await until_loaded(server, status)

    @pytest.mark.parametrize(
        "body", ["{url: n.mar", "{a: &a [1], url: *a}", "{'url': " + "[" * 3000 + "}", "{url}}"]
    )
    async def test_what_is_no_object_even_then_is_a_400(
        self, server: RunningServer, body: str
    ) -> None:
        assert (await manage(server, "POST", "/models", body))[0] == 400

    async def test_the_location_has_the_name_that_1x_describes_too(
        self, server: RunningServer
    ) -> None:
        """1.1.11 calls it model_url in its description, and then refuses that."""
        status, answer, _ = await manage(server, "POST", "/models?model_url=n.mar")
        assert (status, answer) == (200, {"status": REGISTERED})

    async def test_another_language_is_a_400(self, server: RunningServer) -> None:
        status, answer, _ = await manage(server, "POST", "/models?url=n.mar&runtime=java8")
        assert (status, answer["message"]) == (400, "Invalid RuntimeType value: java8")

    @pytest.mark.parametrize(
        ("query", "status", "said"),
        [
            ("min_worker=1&max_worker=1&number_gpu=0&synchronous=true&timeout=10", 200, SCALED),
            ("min_worker=abc&synchronous=TRUE", 200, SCALED),
            ("min_worker=1&synchronous=1", 202, PROCESSING),
            ("synchronous=true&force=true", 200, SCALED),
        ],
    )
    async def test_scaling(self, server: RunningServer, query: str, status: int, said: str) -> None:
        got, answer, _ = await manage(server, "PUT", f"/models/m?{query}")
        assert (got, answer) == (status, {"status": said})
        assert server.servable("m").size == 1

    async def test_fewer_at_most_than_at_least_is_a_400(self, server: RunningServer) -> None:
        status, answer, _ = await manage(server, "PUT", "/models/m?min_worker=2&max_worker=1")
        message = "max_worker cannot be less than min_worker."
        assert (status, answer["type"], answer["message"]) == (400, "BadRequestException", message)

    async def test_what_is_not_heeded_is_said(
        self, server: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        """1.1.11 says nothing: a count of workers that is mistyped then makes one of many."""
        path = "/models/m?min_worker=two&synchronous=true&wait%22%0D%0A=1"
        status, _, headers = await manage(server, "PUT", path)
        said = "min_worker 'two' is no number: 1 is taken; the parameter 'wait\"\\r\\n' is unknown"
        assert (status, headers["Warning"]) == (200, '299 - "' + said.replace('"', "'") + '"')
        assert f"change m: {said}" in caplog.text

    async def test_unregistering_ignores_parameters(self, server: RunningServer) -> None:
        await manage(server, "POST", "/models?url=n.mar")
        status, answer, _ = await manage(server, "DELETE", "/models/n?timeout=x&force=1")
        assert (status, answer) == (200, {"status": 'Model "n" unregistered'})

    async def test_default_workers_are_those_set_for_every_model(self) -> None:
        """In 1.1.11, default_workers_per_model, which is called workers here."""
        for values, expected in (({}, 0), ({"workers": 2}, 2)):
            config = Config(ServerSettings(), (), {}, (Layer("flags", values),))
            controlplane = ControlPlane(config, Registry(), lambda _: {})
            assert controlplane.default_workers == expected


class TestList:
    @pytest.mark.parametrize("query", ["", "?limit=abc", "?limit=-1", "?next_page_token=abc"])
    @pytest.mark.parametrize("path", ["/models", "/models/", "//models"])
    async def test_a_page(self, server: RunningServer, path: str, query: str) -> None:
        status, answer, _ = await manage(server, "GET", path + query)
        rows = [(row["modelName"], row["modelUrl"]) for row in answer["models"]]
        assert (status, rows) == (200, [("m", "m.mar")])
        assert "nextPageToken" not in answer

    async def test_an_empty_page(self, server: RunningServer) -> None:
        status, answer, _ = await manage(server, "GET", "/models?limit=0")
        assert (status, answer) == (200, {"nextPageToken": "0", "models": []})


class TestDescribe:
    @pytest.mark.parametrize("path", ["/models/m", "/models/m/"])
    async def test_a_model_of_the_start(self, server: RunningServer, path: str) -> None:
        status, answer, _ = await manage(server, "GET", path)
        expected = {
            "modelName": "m",
            "modelUrl": "m.mar",
            "engine": "MXNet",
            "runtime": "python",
            "minWorkers": 1,
            "maxWorkers": 1,
            "batchSize": 1,
            # Ours waits for no batch unless told so; 1.1.11 says 100.
            "maxBatchDelay": 0,
            "loadedAtStartup": True,
        }
        assert status == 200
        assert {key: answer.get(key) for key in expected} == expected
        assert type(answer["maxBatchDelay"]) is int
        assert "modelVersion" not in answer
        worker = answer["workers"][0]
        assert worker.keys() >= {"id", "startTime", "status", "gpu", "memoryUsage"}
        assert (worker["status"], worker["gpu"]) == ("READY", False)

    async def test_a_registered_model(self, server: RunningServer) -> None:
        path = "/models?url=n.mar&initial_workers=0&max_batch_delay=50&batch_size=4"
        await manage(server, "POST", path)
        _, answer, _ = await manage(server, "GET", "/models/n")
        expected = {
            "modelVersion": "3.1",
            "modelUrl": "n.mar",
            "minWorkers": 0,
            "maxWorkers": 0,
            "batchSize": 4,
            "maxBatchDelay": 50,
            "loadedAtStartup": False,
            "workers": [],
        }
        assert {key: answer.get(key) for key in expected} == expected


class TestNames:
    @pytest.mark.parametrize("name", ["_x", "a b+c@d~e:f", 'q"u?o#t%2Fe', "名前"])
    async def test_a_name_is_what_can_be_quoted(self, server: RunningServer, name: str) -> None:
        """1.1.11 takes any name, "p 5" for one."""
        quoted = quote(name, safe="")
        path = f"/models?url=n.mar&initial_workers=1&model_name={quoted}"
        status, answer, _ = await manage(server, "POST", path)
        assert (status, answer) == (200, {"status": SCALED})
        assert (await manage(server, "GET", f"/models/{quoted}"))[1]["modelName"] == name
        for asked in (f"/predictions/{quoted}", f"/{quoted}/predict", f"/models/{quoted}/invoke"):
            url = URL(server.url + asked, encoded=True)
            async with server.session.post(url, data=b"x") as response:
                assert (response.status, await response.read()) == (200, b"ok")
        assert name in (await server.get("/v2/models"))[1]["models"]
        assert (await server.get(f"/v2/models/{quoted}"))[1]["name"] == name
        assert await server.metric("mms_requests_total", model=name, code="200") == 3
        status, document = await server.get("/openapi.json")
        validate(document)
        assert f"/predictions/{quoted}" in document["paths"]
        status, answer, _ = await manage(server, "DELETE", f"/models/{quoted}")
        assert (status, answer) == (200, {"status": f'Model "{name}" unregistered'})

    @pytest.mark.parametrize("name", ["a/b", "..", ".", " a", "a\n", "a\\b", "a" * 129])
    @pytest.mark.parametrize("key", ["model_name", "version"])
    async def test_neither_a_path_nor_a_line(
        self, server: RunningServer, key: str, name: str
    ) -> None:
        path = f"/models?url=n.mar&{key}={quote(name, safe='')}"
        status, answer, _ = await manage(server, "POST", path)
        assert (status, "cannot be used in a URL" in answer["message"]) == (400, True)


class TestErrors:
    @pytest.mark.parametrize(
        ("method", "path", "status", "type_", "message"),
        [
            ("POST", "/models", 400, "BadRequestException", "Parameter url is required."),
            (
                "POST",
                "/models?url=zzz.mar",
                404,
                "ModelNotFoundException",
                "Model not found in model store: zzz.mar",
            ),
            ("POST", "/models?url=m.mar", 409, "ConflictStatusException", "Model m is already reg"),
            ("PUT", "/models/zzz", 404, "ModelNotFoundException", "Model not found: 'zzz'"),
            ("GET", "/models/zzz", 404, "ModelNotFoundException", "Model not found: 'zzz'"),
            ("DELETE", "/models/zzz", 404, "ModelNotFoundException", "Model not found: 'zzz'"),
            ("PATCH", "/models", 405, "MethodNotAllowedException", "PATCH is not allowed here"),
            ("DELETE", "/models", 405, "MethodNotAllowedException", "DELETE is not allowed here"),
            ("GET", "/ping", 404, "ResourceNotFoundException", "there is no route '/ping'"),
        ],
    )
    async def test_an_error_has_its_type_of_1x(
        self,
        server: RunningServer,
        method: str,
        path: str,
        status: int,
        type_: str,
        message: str,
    ) -> None:
        got, answer, headers = await manage(server, method, path)
        assert (got, answer["code"], answer["type"]) == (status, status, type_)
        assert answer["message"].startswith(message)
        assert headers["X-Request-Id"]

    @pytest.mark.parametrize(
        ("method", "path"),
        [("GET", "/models"), ("GET", "/models/m"), ("OPTIONS", "/"), ("GET", "/api-description")],
    )
    async def test_every_answer_has_a_request_id(
        self, server: RunningServer, method: str, path: str
    ) -> None:
        status, answer, headers = await manage(server, method, path)
        assert (status, bool(headers["X-Request-Id"])) == (200, True)
        if "models" not in path:
            assert answer["openapi"].startswith("3.0.")


async def test_the_description_has_the_calls_and_parameters_of_1x(server: RunningServer) -> None:
    """1.1.11 has model_name_pattern, too, which it does not heed; and model_url, see above."""
    _, document, _ = await manage(server, "OPTIONS", "/")
    validate(document)
    described = {
        operation["operationId"]: {
            parameter["name"]
            for parameter in operation.get("parameters", [])
            if parameter["in"] == "query"
        }
        for path, operations in document["paths"].items()
        for operation in operations.values()
    }
    expected = {
        "apiDescription": "",
        "listModels": "limit next_page_token",
        "registerModel": "url model_name handler runtime batch_size max_batch_delay "
        "response_timeout initial_workers synchronous preload_model",
        "describeModel": "",
        "setAutoScale": "min_worker max_worker number_gpu synchronous timeout",
        "unregisterModel": "",
    }
    for id_, names in expected.items():
        assert described[id_] >= set(names.split()), id_


async def test_a_model_scaled_to_nothing_leaves_the_server_healthy(server: RunningServer) -> None:
    await manage(server, "PUT", "/models/m?min_worker=0&synchronous=true")
    try:
        assert (await server.ask("m", []))[0] == 503
        status, answer = await server.get("/ping")
        assert (status, answer["status"]) == (200, "Healthy")
    finally:
        await manage(server, "PUT", "/models/m?min_worker=1&synchronous=true")
