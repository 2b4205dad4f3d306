"""Health, metrics and the routes that describe the API."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from mms.config.build import Config, ModelConfig
from mms.config.settings import ModelSettings, ServerSettings
from mms.server import Server
from mms.version import __version__
from tests.kit.archives import make_archive, make_folder, signature
from tests.kit.server import RunningServer, StartServer, open_session
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Every metric of the server, its type, and the labels its samples have besides model and version.
METRICS = {
    "mms_requests": ("counter", {"route", "code"}),
    "mms_request_duration_seconds": ("histogram", set()),
    "mms_queue_wait_seconds": ("histogram", set()),
    "mms_stage_duration_seconds": ("histogram", {"stage"}),
    "mms_batch_size": ("histogram", set()),
    "mms_batch_release": ("counter", {"reason"}),
    "mms_queue_depth": ("gauge", set()),
    "mms_queue_limit": ("gauge", set()),
    "mms_in_flight": ("gauge", set()),
    "mms_workers": ("gauge", {"state"}),
    "mms_worker_restarts": ("counter", {"reason"}),
    "mms_worker_memory_bytes": ("gauge", {"worker"}),
    "mms_model_load_seconds": ("gauge", set()),
    "mms_model_state": ("gauge", {"state"}),
    "mms_requests_rejected": ("counter", {"reason"}),
    "mms_request_bytes": ("histogram", set()),
    "mms_response_bytes": ("histogram", set()),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    archive = make_archive(folder, "echo", signature([0, 3, 4]))
    return await start_shared(echo=(archive, {"queue_size": 7}))


async def test_ping_speaks_the_words_of_both_generations(server: RunningServer) -> None:
    assert await server.get("/ping") == (200, {"health": "healthy!", "status": "Healthy"})


async def test_a_loaded_model_is_ready(server: RunningServer) -> None:
    assert await server.get("/health/live") == (200, {"live": True})
    assert await server.get("/health/ready") == (
        200,
        {
            "ready": True,
            "draining": False,
            "models": {"echo/1": {"ready": True, "state": "ready"}},
        },
    )
    assert await server.get("/models/echo/ready") == (
        200,
        {"name": "echo", "ready": True, "state": "ready"},
    )
    status, answer = await server.get("/models/nobody/ready")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")


async def test_health_answers_head_requests(server: RunningServer) -> None:
    async with server.session.head(f"{server.url}/health/ready") as response:
        assert response.status == 200


async def test_every_documented_metric_is_there_with_its_type_and_labels(
    server: RunningServer,
) -> None:
    assert (await server.ask("echo", [1]))[0] == 200
    families = {f.name: f for f in text_string_to_metric_families(await server.metrics())}
    for name, (kind, labels) in METRICS.items():
        assert families[name].type == kind, name
        for sample in families[name].samples:
            assert set(sample.labels) - {"le"} == {"model", "version"} | labels, sample
    info = families["mms_build_info"].samples[0]
    assert info.labels["version"] == __version__
    assert "process_resident_memory_bytes" in families
    assert "process_open_fds" in families
    stages = {s.labels["stage"] for s in families["mms_stage_duration_seconds"].samples}
    assert stages == {"decode", "preprocess", "inference", "postprocess", "encode"}


async def test_metrics_say_what_happened(server: RunningServer) -> None:
    before = await server.metric("mms_requests_total", model="echo", code="200")
    sent = await server.metric("mms_request_bytes_sum", model="echo")
    answered = await server.metric("mms_response_bytes_sum", model="echo")
    for _ in range(3):
        assert (await server.ask("echo", [1, 2]))[0] == 200
    assert await server.metric("mms_requests_total", model="echo", code="200") == before + 3
    assert await server.metric("mms_request_bytes_sum", model="echo") == sent + 3 * len(b"[1, 2]")
    assert await server.metric("mms_response_bytes_sum", model="echo") == answered + 3 * 5
    assert await server.metric("mms_queue_limit", model="echo") == 7
    assert await server.metric("mms_queue_depth", model="echo") == 0
    assert await server.metric("mms_workers", model="echo", state="ready") == 1
    assert await server.metric("mms_model_state", model="echo", state="ready") == 1
    assert await server.metric("mms_model_state", model="echo") == 1
    assert await server.metric("mms_worker_memory_bytes", model="echo") > 10 << 20
    assert await server.metric("mms_model_load_seconds", model="echo") > 0


async def test_what_clients_make_up_never_becomes_a_label(server: RunningServer) -> None:
    for path in (
        "/predictions/made-up",
        "/made-up/predict",
        "/made-up",
        "/predictions/echo/made-up",
    ):
        async with server.session.post(server.url + path, json=[1]) as response:
            assert response.status == 404
    async with server.session.request("MADEUP", server.url + "/ping") as response:
        assert response.status in (400, 405)
    text = await server.metrics()
    assert "made-up" not in text
    assert "MADEUP" not in text
    assert await server.metric("mms_requests_total", model="", code="404") >= 4


async def test_the_api_description_has_the_old_shape(server: RunningServer) -> None:
    status, document = await server.get("/api-description")
    description = document["description"]
    assert status == 200
    assert description["swagger"] == "2.0"
    assert description["host"] == f"127.0.0.1:{server.port}"
    assert description["schemes"] == ["http"]
    assert set(description["paths"]) == {"/echo/predict", "/ping", "/api-description"}
    operation = description["paths"]["/echo/predict"]["post"]
    assert operation["operationId"] == "echo_predict"
    assert operation["consumes"] == ["multipart/form-data"]
    assert operation["parameters"] == [
        {
            "in": "formData",
            "name": "data",
            "description": "data should tensor with shape: [3, 4]",
            "required": True,
            "type": "string",
        }
    ]


async def test_the_root_lists_models_and_routes(server: RunningServer) -> None:
    status, document = await server.get("/")
    assert status == 200
    assert document["health"] == "healthy!"
    assert document["version"] == __version__
    (model,) = document["models"]
    assert (model["name"], model["state"], model["predict"]) == (
        "echo",
        "ready",
        "/predictions/echo",
    )
    for route in ("GET /ping", "POST /predictions/{model}", "GET /metrics"):
        assert route in document["routes"]


async def test_a_server_that_loads_is_live_but_not_ready_and_refuses_politely(
    tmp_path: Path,
) -> None:
    go = tmp_path / "go"
    source = f"""
    import os, time
    from mms.model_service.model_service import SingleNodeService
    while not os.path.exists({str(go)!r}):
        time.sleep(0.005)
    class Service(SingleNodeService):
        pass
    """
    model = ModelConfig(
        "slow", str(make_folder(tmp_path / "slow", source)), ModelSettings(workers=1)
    )
    settings = ServerSettings(port=0, management_port=-1, work_dir=str(tmp_path / "work"))
    server = Server(Config(settings, (model,), {}))
    starting = asyncio.create_task(server.start())
    async with open_session() as session:
        running = RunningServer(server, session)
        try:
            await until(lambda: running.names)
            assert await running.get("/health/live") == (200, {"live": True})
            status, document = await running.get("/health/ready")
            assert (status, document["models"]["slow/1"]["state"]) == (503, "loading")
            assert await running.get("/ping") == (
                503,
                {"health": "unhealthy!", "status": "Unhealthy"},
            )
            assert (await running.get("/models/slow/ready"))[0] == 503
            async with session.post(f"{running.url}/predictions/slow", json=[1]) as response:
                assert response.status == 503
                assert response.headers["Retry-After"] == "1"
            go.touch()
            await starting
            assert (await running.get("/health/ready"))[0] == 200
            assert await running.ask("slow", [1]) == (200, [[1]])
        except aiohttp.ClientError:
            starting.cancel()
            raise
        finally:
            await server.stop()
