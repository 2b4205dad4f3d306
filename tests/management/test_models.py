"""Register, list, describe, scale, change and unregister models while the server runs."""

from __future__ import annotations

import asyncio
import io
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from openapi_spec_validator import validate

from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import let_go, until, waiting
from tests.management.stores import FAILS_WITH, WAITS_FOR, Traces, make_store, register, says

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    store = make_store(folder)
    return await start_shared(
        {"management_port": 0, "model_store": str(store)},
        echo=store / "echo.model",
        one=store / "v1",
        rows=store / "rows.model",
    )


#: What tests may have changed of the models that they share.
_AS_IT_WAS = {
    "min_worker": 1,
    "max_worker": 1,
    "batch_size": 1,
    "queue_size": 0,
    "max_batch_delay": 0,
    "linger": 0,
    "response_timeout": 120,
    "synchronous": True,
}


@pytest_asyncio.fixture(loop_scope="module")
async def server(server: RunningServer) -> AsyncIterator[RunningServer]:
    yield server
    for name in ("one", "rows"):
        status, answer = await server.manage("PUT", f"/models/{name}", _AS_IT_WAS)
        assert status == 200, answer


async def describe(server: RunningServer, path: str) -> dict[str, Any]:
    status, document = await server.manage("GET", f"/models/{path}")
    assert status == 200, document
    assert isinstance(document, dict)
    return document


async def pids(server: RunningServer, name: str) -> set[int]:
    return {worker["pid"] for worker in (await describe(server, name))["workers"]}


class TestRegister:
    async def test_a_model_serves_once_a_synchronous_registration_is_answered(
        self, server: RunningServer
    ) -> None:
        await register(server, "m", "v1")
        assert await server.ask("m", []) == (200, "v1")

    async def test_without_workers_a_model_is_registered_and_answers_503_until_it_is_scaled(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.manage("POST", "/models", {"url": "v1", "model_name": "m"})
        assert (status, answer) == (200, {"status": 'Model "m" registered'})
        status, answer = await server.ask("m", [])
        assert (status, answer["error"]["code"]) == (503, "model_not_ready")
        assert (await server.get("/models/m/ready"))[0] == 503
        status, answer = await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
        assert (status, answer) == (200, {"status": "Workers scaled"})
        assert await server.ask("m", []) == (200, "v1")

    async def test_asynchronously_the_answer_is_202_and_the_model_comes_later(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        says(store / "slow", "slow", WAITS_FOR.format(path=str(tmp_path / "go")))
        parameters = {"url": "slow", "model_name": "m", "initial_workers": 1, "synchronous": False}
        status, answer = await server.manage("POST", "/models", parameters)
        assert (status, answer) == (202, {"status": "Processing worker updates..."})
        await until(lambda: "m" in server.names)
        assert (await describe(server, "m"))["state"] == "loading"
        status, answer = await server.ask("m", [])
        assert (status, answer["error"]["code"]) == (503, "model_not_ready")
        # A model that comes later is nothing the server waits for.
        assert (await server.get("/ping"))[0] == 200
        (tmp_path / "go").touch()
        await until(lambda: server.servable("m").is_ready)
        assert await server.ask("m", []) == (200, "slow")

    @pytest.mark.parametrize("synchronous", [True, False])
    async def test_a_name_that_is_taken_is_refused(
        self, server: RunningServer, synchronous: bool
    ) -> None:
        parameters = {
            "url": "v1",
            "model_name": "echo",
            "initial_workers": 1,
            "synchronous": synchronous,
        }
        status, answer = await server.manage("POST", "/models", parameters)
        assert (status, answer["error"]["code"]) == (409, "conflict")
        assert answer["message"].startswith("Model echo is already registered")
        parameters["version"] = "1"
        status, answer = await server.manage("POST", "/models", parameters)
        assert status == 409
        assert answer["message"] == "Version 1 of model echo is already registered"

    async def test_parameters_may_come_in_the_query(self, server: RunningServer) -> None:
        query = "url=v1&model_name=m&initial_workers=0&batch_size=3&synchronous=true"
        assert (await server.manage("POST", f"/models?{query}"))[0] == 200
        assert (await describe(server, "m"))["batchSize"] == 3

    async def test_parameters_may_come_in_a_form(self, server: RunningServer) -> None:
        form = {"url": "v1", "model_name": "m", "batch_size": "3"}
        async with server.session.post(server.management_url + "/models", data=form) as response:
            assert response.status == 200
        assert (await describe(server, "m"))["batchSize"] == 3

    async def test_json_is_taken_for_json_whatever_curl_calls_it(
        self, server: RunningServer
    ) -> None:
        async with server.session.post(
            server.management_url + "/models",
            data=b'{"url": "v1", "model_name": "m", "batch_size": 3}',
            headers={"Content-Type": "application/x-www-form-urlencoded"},
        ) as response:
            assert response.status == 200
        assert (await describe(server, "m"))["batchSize"] == 3

    async def test_a_model_is_named_by_its_manifest_if_the_caller_gives_no_name(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.manage("POST", "/models", {"url": "faulty.model"})
        assert (status, answer) == (200, {"status": 'Model "faulty" registered'})

    async def test_parameters_of_1x_that_mean_nothing_here_are_ignored(
        self, server: RunningServer
    ) -> None:
        parameters = {"url": "v1", "model_name": "m", "handler": "a:b", "runtime": "PYTHON"}
        assert (await server.manage("POST", "/models", parameters))[0] == 200

    async def test_the_setting_workers_is_heeded_where_initial_workers_is_not_given(
        self, server: RunningServer
    ) -> None:
        parameters = {"url": "v1", "model_name": "m", "workers": 1}
        assert (await server.manage("POST", "/models", parameters))[0] == 200
        assert await server.ask("m", []) == (200, "v1")

    async def test_a_client_that_leaves_does_not_end_a_registration_half_way(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        says(store / "slow-2", "slow", WAITS_FOR.format(path=str(tmp_path / "go")))
        parameters = {"url": "slow-2", "model_name": "m", "initial_workers": 1}
        asking = asyncio.create_task(server.manage("POST", "/models", parameters))
        await until(lambda: "m" in server.names)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        (tmp_path / "go").touch()
        # Either way is whole: it is there and serves, or it is gone with all its processes.
        await until(lambda: "m" not in server.names or server.servable("m").is_ready)


class TestRefusals:
    @pytest_asyncio.fixture(autouse=True, loop_scope="module")
    async def nothing_changes(self, server: RunningServer) -> AsyncIterator[None]:
        before, traces = await server.manage("GET", "/models"), Traces(server)
        unpacked = traces.unpacked()
        yield
        assert await server.manage("GET", "/models") == before
        assert traces.unpacked() == unpacked

    @pytest.mark.parametrize(
        "parameters",
        [
            {},
            {"url": ""},
            {"url": 5},
            {"url": "v1", "model_name": ""},
            {"url": "v1", "model_name": "a/b"},
            {"url": "v1", "model_name": "../m"},
            {"url": "v1", "model_name": "m", "version": "a/b"},
            {"url": "v1", "model_name": "m", "version": ".."},
            {"url": "v1", "model_name": "m", "version": "x" * 5000},
            {"url": "v1", "model_name": "m", "batch_size": 0},
            {"url": "v1", "model_name": "m", "batch_size": [2]},
            {"url": "v1", "model_name": "m", "batch_size": 1.5},
            {"url": "v1", "model_name": "m", "response_timeout": 0},
            {"url": "v1", "model_name": "m", "initial_workers": -1},
            {"url": "v1", "model_name": "m", "make_default": 7},
            {"url": "v1", "model_name": "m", "load": "whenever"},
            {"url": "v1", "model_name": "m", "gpu": "first"},
            {"url": "faulty.model", "model_name": "m", "gpu": "first"},
        ],
        ids=str,
    )
    async def test_a_bad_parameter_is_a_400(
        self, server: RunningServer, parameters: dict[str, Any]
    ) -> None:
        status, answer = await server.manage("POST", "/models", parameters)
        assert status == 400, answer

    async def test_a_bad_setting_of_a_model_without_a_name_is_named(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.manage("POST", "/models?url=v1&batch_size=2x")
        assert status == 400
        assert answer["message"] == "request: batch_size: expected an integer, got '2x'"

    @pytest.mark.parametrize("body", [b"[]", b"{", b'"url"', b"\xff", b"[" * 10_000])
    async def test_a_body_that_is_no_json_object_is_a_400(
        self, server: RunningServer, body: bytes
    ) -> None:
        async with server.session.post(server.management_url + "/models", data=body) as response:
            assert response.status == 400

    async def test_a_long_body_is_a_413(self, server: RunningServer) -> None:
        url = server.management_url + "/models"
        async with server.session.post(url, data=io.BytesIO(b" " * (2 << 20))) as response:
            assert response.status == 413

    @pytest.mark.parametrize(
        "url",
        [
            "../outside.model",
            "v1/../../outside.model",
            "/etc/passwd",
            "link.model",
            "folder-link/outside.model",
            "http://127.0.0.1:1/x.model",
            "https://example.com/x.model",
            "s3://bucket/x.model",
            "file:///etc/passwd",
            "file://../outside.model",
            "HTTP://example.com/x.model",
            "v1\0",
            "\0",
            ".",
            "",
        ],
    )
    async def test_a_url_outside_the_store_is_refused(
        self, server: RunningServer, store: Path, url: str
    ) -> None:
        outside = store.parent / "outside.model"
        if not outside.exists():
            outside.write_bytes((store / "echo.model").read_bytes())
            (store / "link.model").symlink_to(outside)
            (store / "folder-link").symlink_to(store.parent)
        parameters = {"url": url, "model_name": "m", "initial_workers": 1}
        status, answer = await server.manage("POST", "/models", parameters)
        assert status == (403 if url else 400), answer

    async def test_a_service_file_from_outside_the_store_is_refused(
        self, server: RunningServer, tmp_path: Path
    ) -> None:
        stranger = tmp_path / "service.py"
        stranger.write_text("raise SystemExit('this must not run')")
        parameters = {
            "url": "v1",
            "model_name": "m",
            "initial_workers": 1,
            "service": str(stranger),
        }
        status, answer = await server.manage("POST", "/models", parameters)
        assert status in (400, 403), answer
        assert "must not run" not in str(answer)

    async def test_an_archive_that_is_not_there_is_a_404(self, server: RunningServer) -> None:
        status, answer = await server.manage("POST", "/models", {"url": "missing.model"})
        assert (status, answer["error"]["code"]) == (404, "model_not_found")
        assert answer["message"] == "Model not found in model store: missing.model"

    @pytest.mark.parametrize("synchronous", [True, False])
    async def test_a_file_that_is_no_archive_is_a_400(
        self, server: RunningServer, synchronous: bool
    ) -> None:
        for name in ({}, {"model_name": "m"}):
            parameters = {"url": "not-a.model", "initial_workers": 1, "synchronous": synchronous}
            status, answer = await server.manage("POST", "/models", parameters | name)
            assert (status, answer["error"]["code"]) == (400, "invalid_archive")

    async def test_a_model_that_does_not_load_is_a_500_with_the_services_own_words(
        self, server: RunningServer
    ) -> None:
        parameters = {"url": "broken", "model_name": "m", "initial_workers": 1}
        status, answer = await server.manage("POST", "/models", parameters)
        assert (status, answer["error"]["code"]) == (500, "load_failed")
        assert "the load is broken" in answer["message"]
        assert (await server.ask("m", []))[0] == 404

    async def test_a_failed_background_registration_leaves_nothing(
        self, server: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        parameters = {
            "url": "broken",
            "model_name": "m",
            "initial_workers": 1,
            "synchronous": False,
        }
        assert (await server.manage("POST", "/models", parameters))[0] == 202
        await until(lambda: "registering m failed" in caplog.text)
        assert (await server.manage("GET", "/models/m"))[0] == 404

    @pytest.mark.parametrize(
        ("method", "path"),
        [
            ("GET", "/models/none"),
            ("GET", "/models/echo/9"),
            ("PUT", "/models/none?min_worker=1"),
            ("PUT", "/models/echo/9?min_worker=1"),
            ("PUT", "/models/none/1/set-default"),
            ("PUT", "/models/echo/9/set-default"),
            ("PUT", "/models/none/traffic"),
            ("DELETE", "/models/none"),
            ("DELETE", "/models/echo/9"),
        ],
    )
    async def test_an_unknown_model_or_version_is_a_404(
        self, server: RunningServer, method: str, path: str
    ) -> None:
        status, answer = await server.manage(method, path)
        assert status == 404
        assert answer["error"]["code"] == (
            "model_not_found" if "none" in path else "version_not_found"
        )

    @pytest.mark.parametrize(
        "query",
        [
            "min_worker=-1",
            "min_worker=2&max_worker=1",
            "batch_size=0",
            "batch_size=two",
            "queue_size=-1",
            "max_batch_delay=-1",
            "max_batch_delay=inf",
            "response_timeout=0",
        ],
    )
    async def test_a_bad_change_is_a_400(self, server: RunningServer, query: str) -> None:
        before = await describe(server, "echo")
        assert (await server.manage("PUT", f"/models/echo?{query}"))[0] == 400
        after = await describe(server, "echo")
        del before["memoryUsage"], after["memoryUsage"]
        for document in (before, after):
            for worker in document["workers"]:
                del worker["memoryUsage"], worker["startTime"]
        assert after == before


class TestList:
    async def test_models_are_listed_by_name_a_page_at_a_time(self, server: RunningServer) -> None:
        for name in ("a", "z"):
            await register(server, name, "v1", workers=0)
        status, first = await server.manage("GET", "/models?limit=3")
        assert status == 200
        assert first["nextPageToken"] == "3"
        _, last = await server.manage("GET", "/models?limit=3&next_page_token=3")
        assert "nextPageToken" not in last
        rows = first["models"] + last["models"]
        assert [row["modelName"] for row in rows] == ["a", "echo", "one", "rows", "z"]
        assert [row["modelUrl"] for row in rows[:2]] == ["v1", "echo.model"]
        assert rows[1]["defaultVersion"] == "1"
        assert rows[1]["versions"] == {"1": "ready"}

    async def test_a_page_past_the_end_is_empty(self, server: RunningServer) -> None:
        answer = await server.manage("GET", "/models?next_page_token=5")
        assert answer == (200, {"models": []})


class TestDescribe:
    async def test_every_field_tells_how_the_model_is(
        self, server: RunningServer, store: Path
    ) -> None:
        parameters: dict[str, Any] = {
            "batch_size": 4,
            "max_batch_delay": 2.5,
            "queue_size": 7,
            "response_timeout": 30,
            "max_workers": 3,
        }
        await register(server, "r", "rows.model", workers=2, **parameters)
        for _ in range(3):
            assert (await server.ask("r", [[1.0, 2.0, 3.0]]))[0] == 200
        document = await describe(server, "r")
        expected = {
            "modelName": "r",
            "version": "1",
            "modelUrl": "rows.model",
            "runtime": "python",
            "service": "Rows",
            "state": "ready",
            "ready": True,
            "minWorkers": 2,
            "maxWorkers": 3,
            "batchSize": 4,
            "maxBatchDelay": 2.5,
            "responseTimeout": 30.0,
            "queue": {"depth": 0, "limit": 7, "inFlight": 0},
            "restarts": {},
            "lastError": None,
            "defaultVersion": "1",
            "versions": ["1"],
            "traffic": {"weights": {}, "stickyHeader": "", "shadow": ""},
        }
        assert {key: document[key] for key in expected} == expected
        assert len(document["archive"]["digest"]) == 64
        assert document["archive"]["format"] == "Gluon-Imperative"
        assert document["archive"]["signature"]["inputs"][0]["data_name"] == "data"
        assert document["loadSeconds"] > 0
        assert document["engine"].startswith("mxnet 1.")
        assert document["memoryUsage"] > 1 << 20
        workers = document["workers"]
        alive = set(server.servable("r").pids)
        assert {worker["pid"] for worker in workers} == alive
        for worker in workers:
            assert worker["status"] == "READY"
            assert (worker["gpu"], worker["device"]) == (False, "cpu")
            assert worker["memoryUsage"] > 1 << 20
            assert worker["startTime"].endswith("Z")
        assert sum(worker["requests"] for worker in workers) == 3
        assert (await describe(server, "r/1"))["archive"] == document["archive"]

    async def test_what_waits_and_what_runs_is_counted(
        self, server: RunningServer, notes: Path
    ) -> None:
        asking = [asyncio.create_task(server.ask("one", ["wait", str(notes)])) for _ in range(3)]
        await waiting(notes)
        await until(lambda: server.servable("one").queue_depth == 2)
        document = await describe(server, "one")
        assert document["queue"] == {"depth": 2, "limit": 100, "inFlight": 1}
        assert document["workers"][0]["status"] == "BUSY"
        let_go(notes)
        assert await asyncio.gather(*asking) == [(200, "v1")] * 3

    async def test_the_last_error_is_there_with_its_traceback(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        switch = tmp_path / "broken"
        says(store / "switched", "fine", FAILS_WITH.format(path=str(switch)))
        switch.touch()
        await register(server, "m", "switched", load="lazy")
        status, answer = await server.ask("m", [])
        assert (status, answer["error"]["code"]) == (503, "model_not_ready")
        document = await describe(server, "m")
        assert (document["state"], document["ready"]) == ("failed", False)
        error = document["lastError"]
        assert error["code"] == "load_failed"
        assert "the load is broken" in error["message"]
        assert "service.py" in error["traceback"]
        # Scaling loads it again.
        switch.unlink()
        answer = await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
        assert answer == (200, {"status": "Workers scaled"})
        assert await server.ask("m", []) == (200, "fine")
        assert (await describe(server, "m"))["state"] == "ready"


class TestScale:
    async def test_up_and_down_and_to_nothing(self, server: RunningServer) -> None:
        first = await pids(server, "one")
        answer = await server.manage("PUT", "/models/one?min_worker=3&synchronous=true")
        assert answer == (200, {"status": "Workers scaled"})
        three = await pids(server, "one")
        assert len(three) == 3
        assert first < three
        answer = await server.manage("PUT", "/models/one?min_worker=1")
        assert answer == (202, {"status": "Processing worker updates..."})
        await until(lambda: len(server.servable("one").pids) == 1)
        assert await pids(server, "one") < three
        assert await server.ask("one", []) == (200, "v1")
        await server.manage("PUT", "/models/one?min_worker=0&synchronous=true")
        assert await pids(server, "one") == set()
        status, answer = await server.ask("one", [])
        assert (status, answer["error"]["code"]) == (503, "model_not_ready")
        await server.manage("PUT", "/models/one?min_worker=1&synchronous=true")
        assert await server.ask("one", []) == (200, "v1")

    async def test_a_worker_that_is_scaled_away_finishes_its_batch(
        self, server: RunningServer, notes: Path
    ) -> None:
        await server.manage("PUT", "/models/one?min_worker=2&synchronous=true")
        asking = [asyncio.create_task(server.ask("one", ["wait", str(notes)])) for _ in range(2)]
        busy = await waiting(notes, 2)
        await server.manage("PUT", "/models/one?min_worker=1&synchronous=true")
        let_go(notes)
        assert await asyncio.gather(*asking) == [(200, "v1")] * 2
        await until(lambda: len(server.servable("one").pids) == 1)
        assert await pids(server, "one") < set(busy)
        assert (await describe(server, "one"))["restarts"] == {}

    async def test_min_and_max_are_the_bounds_of_autoscaling(self, server: RunningServer) -> None:
        await server.manage("PUT", "/models/one?min_worker=1&max_worker=4&synchronous=true")
        document = await describe(server, "one")
        assert (document["minWorkers"], document["maxWorkers"]) == (1, 4)
        await server.manage("PUT", "/models/one?min_worker=2&max_worker=2&synchronous=true")
        document = await describe(server, "one")
        assert (document["minWorkers"], document["maxWorkers"]) == (2, 2)

    async def test_scaling_while_it_loads_holds_once_it_is_loaded(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        says(store / "slow-3", "slow", WAITS_FOR.format(path=str(tmp_path / "go")))
        parameters = {
            "url": "slow-3",
            "model_name": "m",
            "initial_workers": 1,
            "synchronous": False,
        }
        assert (await server.manage("POST", "/models", parameters))[0] == 202
        await until(lambda: "m" in server.names)
        await server.manage("PUT", "/models/m?min_worker=2")
        (tmp_path / "go").touch()
        await until(lambda: server.servable("m").is_ready)
        await until(lambda: len(server.servable("m").pids) == 2)

    async def test_a_client_that_leaves_while_it_scales_leaves_no_process_behind(
        self, server: RunningServer
    ) -> None:
        path = "/models/one?min_worker=4&synchronous=true"
        for _ in range(5):
            asking = asyncio.create_task(server.manage("PUT", path))
            await until(lambda: server.servable("one").size == 4)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await server.manage("PUT", "/models/one?min_worker=1&synchronous=true")
            await until(lambda: len(server.servable("one").pids) == 1)
        assert await server.ask("one", []) == (200, "v1")


class TestLiveChanges:
    async def test_a_larger_batch_size_joins_requests_in_the_workers_there_are(
        self, server: RunningServer
    ) -> None:
        before = await pids(server, "rows")
        assert await self.most_joined(server) == 1
        status, answer = await server.manage("PUT", "/models/rows", {"batch_size": 8})
        assert (status, answer) == (200, {"status": 'Model "rows" changed'})
        assert (await describe(server, "rows"))["batchSize"] == 8
        assert await self.most_joined(server) > 1
        assert await pids(server, "rows") == before
        # Workers to come do likewise.
        await server.manage("PUT", "/models/rows?min_worker=0&synchronous=true")
        await server.manage("PUT", "/models/rows?min_worker=1&synchronous=true")
        assert await pids(server, "rows") != before
        assert await self.most_joined(server) > 1
        await server.manage("PUT", "/models/rows", {"batch_size": 1})
        assert await self.most_joined(server) == 1

    async def most_joined(self, server: RunningServer) -> int:
        """Send 32 requests at once and return how many shared a forward pass at most."""
        before = len(server.forwards("rows"))
        asking = (server.ask("rows", [[float(n), 0.0, 0.0]]) for n in range(32))
        answers = await asyncio.gather(*asking)
        assert all(status == 200 for status, _ in answers)
        return max(server.forwards("rows")[before:])

    async def test_a_smaller_queue_refuses_at_once_and_a_larger_one_takes_more(
        self, server: RunningServer, notes: Path
    ) -> None:
        await server.manage("PUT", "/models/one?queue_size=1")
        servable = server.servable("one")
        asking = [asyncio.create_task(server.ask("one", ["wait", str(notes)]))]
        await waiting(notes)
        asking.append(asyncio.create_task(server.ask("one", [])))
        await until(lambda: servable.queue_depth == 1)
        status, answer = await server.ask("one", [])
        assert (status, answer["error"]["code"]) == (503, "queue_full")
        await server.manage("PUT", "/models/one?queue_size=2")
        asking.append(asyncio.create_task(server.ask("one", [])))
        await until(lambda: servable.queue_depth == 2)
        assert (await server.ask("one", []))[0] == 503
        let_go(notes)
        assert await asyncio.gather(*asking) == [(200, "v1")] * 3

    async def test_a_batch_delay_has_requests_wait_for_company(self, server: RunningServer) -> None:
        await server.manage("PUT", "/models/rows", {"batch_size": 2})
        minute = 60_000
        await server.manage("PUT", f"/models/rows?max_batch_delay={minute}")
        alone = asyncio.create_task(server.ask("rows", [[1.0, 0.0, 0.0]]))
        await until(lambda: server.servable("rows").queue_depth == 1)
        status, _ = await server.ask("rows", [[2.0, 0.0, 0.0]])
        assert status == 200
        assert (await alone)[0] == 200
        await server.manage("PUT", "/models/rows?max_batch_delay=0")
        assert (await server.ask("rows", [[1.0, 0.0, 0.0]]))[0] == 200

    async def test_lingering_a_worker_waits_for_those_it_has_answered(
        self, server: RunningServer
    ) -> None:
        minute = 60_000
        row = [[1.0, 0.0, 0.0]]
        together = {"batch_size": 2, "max_batch_delay": minute, "linger": minute}
        await server.manage("PUT", "/models/rows", together)
        pair = await asyncio.gather(*(server.ask("rows", row) for _ in range(2)))
        assert [status for status, _ in pair] == [200, 200]
        await server.manage("PUT", "/models/rows?max_batch_delay=0")
        alone = asyncio.create_task(server.ask("rows", row))
        await until(lambda: server.servable("rows").queue_depth == 1)
        assert (await server.ask("rows", row))[0] == 200
        assert (await alone)[0] == 200
        await server.manage("PUT", "/models/rows?linger=0")
        assert (await server.ask("rows", row))[0] == 200

    async def test_a_shorter_response_timeout_ends_what_hangs(
        self, server: RunningServer, notes: Path
    ) -> None:
        await server.manage("PUT", "/models/one?response_timeout=0.2")
        assert (await describe(server, "one"))["responseTimeout"] == 0.2
        assert (await server.ask("one", ["wait", str(notes)]))[0] == 504
        await until(lambda: server.servable("one").restarts["timeout"] == 1)
        await until(lambda: len(server.servable("one").pids) == 1)

    async def test_settings_and_workers_change_in_one_call(self, server: RunningServer) -> None:
        parameters = {"min_worker": 2, "batch_size": 5, "synchronous": True}
        answer = await server.manage("PUT", "/models/one", parameters)
        assert answer == (200, {"status": "Workers scaled"})
        document = await describe(server, "one")
        assert (document["batchSize"], len(document["workers"])) == (5, 2)


class TestUnregister:
    async def test_what_was_accepted_is_answered_and_then_everything_is_gone(
        self, server: RunningServer, notes: Path
    ) -> None:
        await register(server, "faulty")
        unpacked = set(os.listdir(server.workspace))
        running = asyncio.create_task(server.ask("faulty", ["wait", str(notes)]))
        (worker,) = await waiting(notes)
        queued = asyncio.create_task(server.ask("faulty", ["echo", 5]))
        await until(lambda: server.servable("faulty").queue_depth == 1)
        answer = await server.manage("DELETE", "/models/faulty")
        assert answer == (200, {"status": 'Model "faulty" unregistered'})
        assert (await server.ask("faulty", ["echo", 5]))[0] == 404
        assert (await server.manage("GET", "/models/faulty"))[0] == 404
        let_go(notes)
        assert await running == (200, "went")
        assert await queued == (200, 5)
        await until(lambda: not os.path.exists(f"/proc/{worker}"))
        await until(lambda: set(os.listdir(server.workspace)) < unpacked)

    async def test_the_name_is_free_again_at_once(self, server: RunningServer) -> None:
        await register(server, "m", "v1")
        await server.manage("DELETE", "/models/m")
        await register(server, "m", "v2")
        assert await server.ask("m", []) == (200, "v2")


class TestOptions:
    async def test_the_description_is_openapi_with_every_route(self, server: RunningServer) -> None:
        status, document = await server.manage("OPTIONS", "/")
        assert status == 200
        assert document["openapi"].startswith("3.")
        assert set(document["info"]) >= {"title", "version"}
        found = {
            (method.upper(), path)
            for path, operations in document["paths"].items()
            for method in operations
        }
        assert found == {
            ("OPTIONS", "/"),
            ("GET", "/api-description"),
            ("GET", "/models"),
            ("POST", "/models"),
            ("GET", "/models/{model}"),
            ("PUT", "/models/{model}"),
            ("DELETE", "/models/{model}"),
            ("PUT", "/models/{model}/traffic"),
            ("GET", "/models/{model}/{version}"),
            ("PUT", "/models/{model}/{version}"),
            ("DELETE", "/models/{model}/{version}"),
            ("PUT", "/models/{model}/{version}/set-default"),
            ("POST", "/v2/repository/index"),
            ("POST", "/v2/repository/models/{model}/load"),
            ("POST", "/v2/repository/models/{model}/unload"),
        }
        operations = [o for path in document["paths"].values() for o in path.values()]
        ids = [operation["operationId"] for operation in operations]
        assert len(set(ids)) == len(ids)
        for path, of_path in document["paths"].items():
            for operation in of_path.values():
                in_path = [p for p in operation["parameters"] if p["in"] == "path"]
                names = {p["name"] for p in in_path}
                assert names == {n for n in ("model", "version") if f"{{{n}}}" in path}
                assert all(p["required"] and p["schema"] for p in in_path)
                assert operation["responses"]["200"]["description"]
                assert operation["summary"]
        validate(document)
