"""SageMaker's multi-model routes, and what it says in its environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from mms.config.build import build_config
from tests.kit.archives import make_archive, make_mar
from tests.kit.fileserver import digest_of, file_server
from tests.kit.server import RunningServer, StartServer

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


async def load(server: RunningServer, name: str, url: str) -> tuple[int, Any]:
    document = json.dumps({"model_name": name, "url": url}).encode()
    return await ask(server, "/models", document, JSON)


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


async def test_a_model_is_fetched_from_a_url_that_is_permitted(
    start_server: StartServer, tmp_path: Path
) -> None:
    content = make_archive(tmp_path, "echo").read_bytes()
    settings = {
        "multi_model": True,
        "cache_dir": str(tmp_path / "cache"),
        "allowed_urls": r"http://127\.0\.0\.1:\d+/models/.*",
        "allow_private_urls": True,
    }
    server = await start_server(settings)
    with file_server() as files:
        url = files.add("/models/echo.model", content)
        assert (await load(server, "fetched", url))[0] == 200
        assert (await load(server, "pinned", f"{url}#sha256={digest_of(b'')}"))[0] == 400
        assert (await load(server, "refused", files.add("/echo.model", content)))[0] == 403
    listed = {"modelName": "fetched", "modelUrl": url}
    assert await ask(server, "/models", method="GET") == (200, {"models": [listed]})
    assert await ask(server, "/models/fetched/invoke", b"[1]", JSON) == (200, [1])


async def test_a_pin_behind_a_folder_is_that_of_the_archive_in_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "store" / "a"
    folder.mkdir(parents=True)
    archive = make_archive(tmp_path, "echo").rename(folder / "echo.model")
    server = await start_server({"multi_model": True, "model_store": str(tmp_path / "store")})
    good, bad = digest_of(archive.read_bytes()), digest_of(b"")
    assert (await load(server, "a", f"{folder}#sha256={bad}"))[0] == 400
    assert (await load(server, "a", f"{folder}#sha256={good}"))[0] == 200
    listed = {"modelName": "a", "modelUrl": f"{archive}#sha256={good}"}
    assert await ask(server, "/models/a", method="GET") == (200, listed)


async def test_models_are_listed_a_page_at_a_time(
    start_server: StartServer, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, "echo")
    lazy = (archive, {"load": "lazy"})
    server = await start_server({"multi_model": True}, c=lazy, a=lazy, b=lazy)
    status, first = await ask(server, "/models?limit=2", method="GET")
    assert (status, first["nextPageToken"]) == (200, "2")
    status, last = await ask(server, "/models?limit=2&next_page_token=2", method="GET")
    assert (status, set(last)) == (200, {"models"})
    assert [row["modelName"] for row in first["models"] + last["models"]] == ["a", "b", "c"]
    # As in 1.1.11: what is no number is not heeded.
    assert (await ask(server, "/models?limit=x", method="GET"))[0] == 200


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
    models = yaml.safe_load(print_config(tmp_path).stdout)["models"]
    assert models["echo"]["path"] == str(folder / "any.model")
    assert models["handled"]["path"] == str(folder / "handled.mar")
