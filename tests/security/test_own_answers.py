"""Every client gets the answer to its own request, whatever a service does with its memory."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.archives import signature
from tests.kit.server import RunningServer, StartServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVICES = Path(__file__).parent / "services"
CLIENTS = 40
ROUNDS = 3

#: What each kind of service does, and a word of the reason why its requests are not joined.
KINDS = {
    "executor": "self.executor, a Executor",
    "module": "self.engines[0], a Module",
    "bucketing": "self.bucketing, a BucketingModule",
    "input_buffer": "self.numbers",
    "input_ndarray": "self.array",
    "odd_input": "self.state",
    "output_buffer": "",
    "output_ndarray": "",
    "dict": "self.state",
    "list": "self.values",
    "object": "self.thing",
    "nested": "self.nested",
    "class": "Reusing.last",
    "module_global": "LAST",
    "bound_method": "the original service",
    "array_state": "self.numbers",
    "answer_object": "self.answer",
    "answer_array": "self.numbers",
    "answer_bytes": "self.raw",
    "generator": "self.numbers",
}
#: These are right when joined, and are.
JOINED = ("attribute", "clean")


def make_service(folder: Path, kind: str) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(SERVICES / "reusing.py", folder / "service.py")
    (folder / "kind").write_text(kind)
    (folder / "signature.json").write_text(json.dumps(signature([0, 3])))
    manifest = {
        "Model-Archive-Version": 0.1,
        "Model": {
            "Service": "service.py",
            "Signature": "signature.json",
            "Model-Name": kind,
            "Model-Format": "Gluon-Imperative",
            "Description": "",
        },
        "Engine": {"MXNet": "1.9.1"},
        "Model-Archive-Description": "",
        "Model-Server": "0.4",
        "License": "Apache 2.0",
    }
    (folder / "MANIFEST.json").write_text(json.dumps(manifest))
    return folder


def make_handler(folder: Path) -> Path:
    folder.mkdir(parents=True)
    shutil.copy(SERVICES / "reusing_handler.py", folder / "service.py")
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    settings = {"batch_size": 8, "threads": 1}
    models: dict[str, Any] = {
        kind: (make_service(folder / kind, kind), settings) for kind in (*KINDS, *JOINED)
    }
    handler = {**settings, "handler": "service:handle"}
    models["handler"] = (make_handler(folder / "handler"), handler)
    return await start_shared({"management_port": 0}, **models)


def first_number(value: Any) -> float:
    """Return the first number in an answer, however it is wrapped."""
    while not isinstance(value, (int, float)):
        if isinstance(value, str):
            value = json.loads(value)
        elif isinstance(value, dict):
            value = value.get("outputs") or value.get("data") or next(iter(value.values()))
            if isinstance(value, list) and isinstance(value[0], dict) and "datatype" in value[0]:
                value = value[0]["data"]
        else:
            value = value[0]
    return float(value)


async def answer(server: RunningServer, route: str, model: str, token: int) -> float:
    row = [token, 0.5, -1.0]
    if route == "v2":
        tensor: dict[str, Any] = {"name": "data", "datatype": "FP32", "shape": [1, 3], "data": row}
        if model == "handler":
            tensor["name"] = "body"
        url = f"/v2/models/{model}/infer"
        body: Any = {"inputs": [tensor]}
    else:
        paths = {"plain": "/predictions/{}", "v0.4": "/{}/predict", "1.x": "/models/{}/invoke"}
        url = paths[route].format(model)
        body = [row] if model == "handler" else {"data": [row]}
    async with server.session.post(server.url + url, json=body) as response:
        text = await response.text()
        assert response.status == 200, text
        return first_number(json.loads(text))


async def wrong_answers(server: RunningServer, route: str, model: str) -> list[tuple[int, float]]:
    """Send bursts of requests with a token each; return the answers that hold another one."""
    wrong = []
    for burst in range(ROUNDS):
        tokens = [burst * CLIENTS + client + 1 for client in range(CLIENTS)]
        answers = await asyncio.gather(*(answer(server, route, model, t) for t in tokens))
        wrong += [(t, a) for t, a in zip(tokens, answers, strict=True) if t != a]
    return wrong


@pytest.mark.parametrize("batch_size", [8, 4, 1])
@pytest.mark.parametrize("model", [*KINDS, *JOINED, "handler"])
async def test_nobody_gets_anothers_answer(
    server: RunningServer, model: str, batch_size: int
) -> None:
    status, said = await server.manage("PUT", f"/models/{model}", {"batch_size": batch_size})
    assert status == 200, said
    for route in ("plain", "v0.4", "1.x", "v2"):
        assert await wrong_answers(server, route, model) == []


@pytest.mark.parametrize("model", KINDS)
async def test_what_cannot_be_joined_says_why(server: RunningServer, model: str) -> None:
    await server.manage("PUT", f"/models/{model}", {"batch_size": 8})
    _, described = await server.manage("GET", f"/models/{model}")
    assert not described["batching"]["joined"]
    assert KINDS[model] in described["batching"]["reason"]


@pytest.mark.parametrize("model", JOINED)
async def test_what_keeps_nothing_between_requests_is_joined(
    server: RunningServer, model: str
) -> None:
    await server.manage("PUT", f"/models/{model}", {"batch_size": 8})
    _, described = await server.manage("GET", f"/models/{model}")
    assert described["batching"] == {"joined": True, "reason": ""}
