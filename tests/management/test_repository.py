"""The model repository extension of the Open Inference Protocol V2."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.archives import HANDLERS, source_of
from tests.kit.server import RunningServer, StartServer, running_servers
from tests.kit.waiting import LIMIT_S
from tests.v2.models import write_mar

pytestmark = pytest.mark.asyncio(loop_scope="module")

_MANIFEST = {"model": {"modelName": "any", "handler": "service:handle"}, "runtime": "python"}
LOADED = {"name": "outside", "version": "1", "state": "READY", "reason": ""}
#: What lies in the store, by name, and is no model that loads.
BROKEN = ("broken", "garbage")


def says(text: str) -> str:
    source = source_of("says", HANDLERS)
    assert '"a text"' in source
    return source.replace('"a text"', repr(text))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    store = folder / "store"
    (store / "unpacked" / "MAR-INF").mkdir(parents=True)
    (store / "unpacked" / "MAR-INF" / "MANIFEST.json").write_text(json.dumps(_MANIFEST))
    (store / "unpacked" / "service.py").write_text(says("unpacked"))
    (store / "no-archive").mkdir()
    (store / "notes.txt").write_text("nothing to load")
    (store / "garbage.model").write_bytes(b"this is no zip file")
    write_mar(store / "packed.mar", says("packed"))
    write_mar(store / "broken.mar", "raise ValueError('the load is broken')")
    outside = write_mar(folder / "outside.mar", says("outside"))
    return await start_shared(
        {"management_port": 0, "model_store": str(store)},
        outside=(outside, {"preload": False}),
    )


async def index(server: RunningServer, **document: Any) -> dict[str, dict[str, str]]:
    """Return the index by name; of several versions the last."""
    status, entries = await server.manage("POST", "/v2/repository/index", document)
    assert status == 200
    return {entry["name"]: entry for entry in entries}


async def load(server: RunningServer, name: str, **parameters: Any) -> tuple[int, Any]:
    document = {"parameters": parameters} if parameters else None
    return await server.manage("POST", f"/v2/repository/models/{name}/load", document)


async def unload(server: RunningServer, name: str) -> tuple[int, Any]:
    document = {"parameters": {"unload_dependents": True}}
    return await server.manage("POST", f"/v2/repository/models/{name}/unload", document)


async def answer(server: RunningServer, name: str) -> tuple[str, int]:
    """Return what a model says, and the pid of the worker that said it."""
    status, document = await server.ask(name, None)
    assert status == 200, document
    text, pid = document
    return text, pid


async def test_the_index_has_what_is_loaded_and_what_could_be(server: RunningServer) -> None:
    entries = await index(server)
    assert entries == {
        "outside": LOADED,
        **{
            name: {"name": name, "state": "UNAVAILABLE", "reason": "not loaded"}
            for name in ("packed", "unpacked", *BROKEN)
        },
    }
    assert await index(server, ready=True) == {"outside": LOADED}
    async with server.session.post(f"{server.management_url}/v2/repository/index") as response:
        assert {entry["name"]: entry for entry in await response.json()} == entries


@pytest.mark.parametrize("name", ["packed", "unpacked"])
async def test_a_model_of_the_store_is_loaded_and_unloaded_by_its_name(
    server: RunningServer, name: str
) -> None:
    for _ in range(2):
        assert await load(server, name) == (200, {"name": name, "load": True})
        assert (await answer(server, name))[0] == name
        assert (await index(server))[name] == {**LOADED, "name": name}
        assert await unload(server, name) == (200, {"name": name, "unload": True})
        assert (await server.ask(name, None))[0] == 404
        entry = (await index(server))[name]
        assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", "unloaded")
        assert name not in await index(server, ready=True)


async def test_settings_may_be_given_with_the_load(server: RunningServer) -> None:
    parameters = {"url": "packed.mar", "version": 7, "workers": 1, "batch_size": 3}
    assert (await load(server, "other", **parameters))[0] == 200
    status, document = await server.manage("GET", "/models/other/7")
    assert status == 200
    assert (document["minWorkers"], document["batchSize"]) == (1, 3)
    # As it was, not by the name, which the store does not have.
    assert (await unload(server, "other"))[0] == 200
    assert (await load(server, "other"))[0] == 200
    assert (await server.manage("GET", "/models/other/7"))[1]["batchSize"] == 3


@pytest.mark.parametrize(
    ("name", "parameters", "status", "text"),
    [
        ("nobody", {}, 404, "looked for nobody.model, nobody.mar, nobody"),
        ("no\\\\name", {}, 400, "cannot be used in a URL"),
        ("packed", {"url": "../outside.mar"}, 403, "is not in the model store"),
        ("packed", {"url": "nowhere.mar"}, 404, "Model not found in model store: nowhere.mar"),
        ("packed", {"config": "{}"}, 400, "'config' is not supported"),
        ("packed", {"file:1/service.py": "eA=="}, 400, "'file:1/service.py' is not supported"),
        ("packed", {"service": "/tmp/x.py"}, 400, "'service' is not supported"),
        ("packed", {"batchsize": 2}, 400, "unknown parameter 'batchsize'"),
        ("packed", {"batch_size": "many"}, 400, "request: batch_size: expected an integer"),
        ("outside", {"batch_size": 2}, 409, "is loaded; unload it first"),
    ],
)
async def test_a_load_that_is_refused(
    server: RunningServer, name: str, parameters: dict[str, Any], status: int, text: str
) -> None:
    found, document = await load(server, name, **parameters)
    assert (found, list(document)) == (status, ["error"])
    assert text in document["error"]
    assert set(await index(server, ready=True)) == {"outside"}


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [("broken", 500, "the load is broken"), ("garbage", 400, "garbage.model")],
)
async def test_what_does_not_load_leaves_only_its_reason(
    server: RunningServer, name: str, status: int, text: str
) -> None:
    found, document = await load(server, name)
    assert (found, text in document["error"]) == (status, True)
    entry = (await index(server))[name]
    assert (entry["state"], entry["reason"]) == ("UNAVAILABLE", document["error"])
    assert name not in server.names


async def test_a_model_that_is_loaded_is_loaded_again_without_a_gap(
    server: RunningServer, store: Path
) -> None:
    write_mar(store / "changing.mar", says("before"))
    assert (await load(server, "changing", workers=1))[0] == 200
    before = await answer(server, "changing")
    write_mar(store / "changing.mar", says("after"))
    loading = asyncio.create_task(load(server, "changing"))
    heard = []
    while not loading.done():
        heard.append((await answer(server, "changing"))[0])
    assert await loading == (200, {"name": "changing", "load": True})
    after = await answer(server, "changing")
    assert (before[0], after[0]) == ("before", "after")
    assert before[1] != after[1]
    assert sorted(heard, reverse=True) == heard
    (store / "changing.mar").write_bytes(b"no archive any more")
    assert (await load(server, "changing"))[0] == 400
    assert await answer(server, "changing") == after
    (store / "changing.mar").unlink()


async def test_a_model_from_elsewhere_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    outside = write_mar(tmp_path / "outside.mar", says("outside"))
    packed = write_mar(tmp_path / "store" / "packed.mar", says("packed"))
    async with running_servers(tmp_path) as start:
        server = await start(
            {"management_port": 0, "model_store": str(packed.parent)},
            outside=(outside, {"preload": False}),
            other=(outside, {"preload": False}),
        )
        document = {"url": "packed.mar", "model_name": "outside", "version": "2"}
        status, _ = await server.manage("POST", "/models", {**document, "initial_workers": 1})
        assert status == 200
        assert (await answer(server, "outside"))[0] == "packed"
        assert await unload(server, "outside") == (200, {"name": "outside", "unload": True})
        assert (await index(server))["outside"]["reason"] == "unloaded"
        # Readiness does not wait for what was unloaded on purpose.
        assert (await server.get("/v2/health/ready"))[0] == 200

        content = packed.read_bytes()
        packed.write_bytes(b"no archive any more")
        status, failure = await load(server, "outside")
        assert status == 400
        assert "outside" not in server.names
        assert (await index(server))["outside"]["reason"] == failure["error"]
        packed.write_bytes(content)

        assert (await load(server, "outside"))[0] == 200
        versions = server.versions("outside")
        assert (set(versions), server.default("outside")) == ({"1", "2"}, "2")
        assert [versions[version].is_startup for version in ("1", "2")] == [True, False]
        assert not versions["1"].settings.preload
        assert [len(versions[version].pids) for version in ("1", "2")] == [1, 1]
        assert (await answer(server, "outside"))[0] == "packed"


@pytest.mark.parametrize(
    ("path", "body", "text"),
    [
        ("index", b"{", "not valid JSON"),
        ("index", b"[]", "must be a JSON object"),
        ("index", b'{"ready": 1}', "ready must be true or false"),
        ("models/packed/load", b'{"parameters": [1]}', "parameters must be an object"),
        ("models/outside/unload", b'{"parameters": {"now": true}}', "unknown parameter 'now'"),
    ],
)
async def test_a_malformed_body_changes_nothing(
    server: RunningServer, path: str, body: bytes, text: str
) -> None:
    url = f"{server.management_url}/v2/repository/{path}"
    async with server.session.post(url, data=body) as response:
        document = await response.json()
        assert (response.status, list(document)) == (400, ["error"])
        assert text in document["error"]
    assert set(await index(server, ready=True)) == {"outside"}


async def test_unloading_what_is_not_there(server: RunningServer) -> None:
    status, document = await unload(server, "nobody")
    assert (status, list(document)) == (404, ["error"])


async def test_it_is_behind_the_guard_and_not_on_the_inference_port(
    server: RunningServer,
) -> None:
    headers = {"Origin": "http://elsewhere.example"}
    status, document = await server.manage("POST", "/v2/repository/index", {}, headers)
    assert (status, list(document)) == (403, ["error"])
    async with server.session.post(f"{server.url}/v2/repository/index") as response:
        assert response.status == 404


async def test_without_a_store_nothing_new_can_be_loaded(tmp_path: Path) -> None:
    async with running_servers(tmp_path) as start:
        server = await start({"management_port": 0})
        status, document = await load(server, "packed")
        assert (status, "--model-store" in document["error"]) == (403, True)
        assert await index(server) == {}


_CLIENT = """
import json, sys
import tritonclient.http as triton
client = triton.InferenceServerClient(sys.argv[1])
def states():
    return {entry["name"]: entry["state"] for entry in client.get_model_repository_index()}
client.load_model("packed")
loaded = states()
client.unload_model("packed")
try:
    client.load_model("broken")
except triton.InferenceServerException as error:
    text = error.message()
print(json.dumps([loaded, states(), text]))
client.close()
"""


async def test_the_client_of_the_protocol_manages_models(server: RunningServer) -> None:
    address = server.management_url.removeprefix("http://")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _CLIENT, address, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0
    loaded, unloaded, text = json.loads(output)
    assert (loaded["packed"], unloaded["packed"]) == ("READY", "UNAVAILABLE")
    assert "the load is broken" in text
