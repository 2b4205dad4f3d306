"""SageMaker's multi-model routes, and what it says in its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from mms.config import build_config
from tests.conftest import RunningServer, StartServer
from tests.models import make_archive, make_mar

JSON = {"Content-Type": "application/json"}
TEXT = {"Content-Type": "text/plain"}


async def ask(
    server: RunningServer,
    path: str,
    data: Any = None,
    headers: dict[str, str] | None = None,
    method: str = "POST",
) -> tuple[int, Any]:
    url = server.url + path
    async with server.session.request(method, url, data=data, headers=headers) as response:
        return response.status, await response.json()


async def test_sagemakers_multi_model_routes(start_server: StartServer, tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "a1" / "model").mkdir(parents=True)
    make_mar(store / "a1" / "model", "in_class", "service", "inside")
    server = await start_server({"multi_model": True, "model_store": str(store)})
    url = str(store / "a1" / "model")

    async def call(method: str, path: str, document: Any = None) -> tuple[int, Any]:
        data = None if document is None else json.dumps(document).encode()
        return await ask(server, path, data, JSON, method)

    status, answer = await call("POST", "/models", {"model_name": "a1", "url": url})
    assert status == 200, answer
    status, _ = await call("POST", "/models", {"model_name": "a1", "url": url})
    assert status == 409
    listed = {"modelName": "a1", "modelUrl": f"{url}/inside.mar"}
    assert await call("GET", "/models") == (200, {"models": [listed]})
    assert await call("GET", "/models/a1") == (200, listed)
    status, answer = await ask(server, "/models/a1/invoke", b"x", TEXT)
    assert (status, answer["batch"]) == (200, 1)
    status, answer = await ask(server, "/invocations", b"x", TEXT)
    assert (status, answer["batch"]) == (200, 1)
    status, answer = await call("POST", "/models", {"model_name": "b", "url": "/etc"})
    assert (status, answer["error"]["code"]) == (403, "forbidden")
    status, _ = await call("POST", "/models", {"url": url})
    assert status == 400
    assert (await call("DELETE", "/models/a1"))[0] == 200
    for method in ("GET", "DELETE"):
        assert (await call(method, "/models/a1"))[0] == 404
    assert (await call("POST", "/models/a1/invoke"))[0] == 404


async def test_a_model_that_exhausts_memory_while_loading_is_a_507(
    start_server: StartServer, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    source = "def handle(data, context):\n    raise MemoryError\n"
    make_mar(store, source, name="large")
    server = await start_server({"multi_model": True, "model_store": str(store)})
    document = json.dumps({"model_name": "large", "url": str(store / "large.mar")}).encode()
    status, answer = await ask(server, "/models", document, JSON)
    assert (status, answer["error"]["code"]) == (507, "out_of_memory")
    assert (await ask(server, "/models", method="GET"))[1] == {"models": []}


def test_sagemakers_variables_are_weaker_than_every_setting() -> None:
    environment = {"SAGEMAKER_BIND_TO_PORT": "9000", "SAGEMAKER_MULTI_MODEL": "true"}
    server = build_config([], {}, environment).server
    assert (server.host, server.port, server.multi_model) == ("0.0.0.0", 9000, True)
    assert server.model_store == "/opt/ml/models"
    server = build_config([], {"port": 7000}, environment | {"MMS_HOST": "127.0.0.1"}).server
    assert (server.host, server.port) == ("127.0.0.1", 7000)
    server = build_config([], {}, {"SAGEMAKER_MULTI_MODEL": "false"}).server
    assert (server.host, server.port, server.multi_model) == ("127.0.0.1", 8080, False)


def print_config(base: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SAGEMAKER_BASE_DIR": str(base)}
    command = [sys.executable, "-m", "mms.cli.serve", "serve", "--print-config"]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_serve_finds_the_models_that_sagemaker_has_unpacked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    done = print_config(tmp_path)
    assert done.returncode == 2
    assert f"{folder} holds neither a .model or .mar file" in done.stderr
    folder.mkdir()
    make_archive(tmp_path, "echo").rename(folder / "any.model")
    make_mar(folder, "in_class", "service", "handled")
    lines = print_config(tmp_path).stdout.splitlines()
    assert f"models.echo.path: {str(folder / 'any.model')!r}" in lines
    assert f"models.handled.path: {str(folder / 'handled.mar')!r}" in lines
