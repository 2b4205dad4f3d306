"""Both APIs on one port: what 1.x does if inference_address and management_address are equal."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from mms.config.settings import TOKEN_VARIABLE
from mms.errors import ConfigError
from tests.kit.archives import make_archive
from tests.kit.server import RunningServer, StartServer

TOKEN = "0123456789abcdef"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def start(start_server: StartServer, folder: Path, **settings: object) -> RunningServer:
    port = free_port()
    shared = {"port": port, "management_port": port, "model_store": str(folder), **settings}
    return await start_server(server=shared, echo=make_archive(folder, "echo"))


async def test_both_apis_answer_on_it(start_server: StartServer, tmp_path: Path) -> None:
    server = await start(start_server, tmp_path)
    assert server.management_port == server.port
    assert await server.ask("echo", [1]) == (200, [1])
    status, listed = await server.manage("GET", "/models")
    assert (status, [model["modelName"] for model in listed["models"]]) == (200, ["echo"])
    status, _ = await server.manage("POST", "/models?url=echo.model&model_name=b&initial_workers=1")
    assert status == 200
    assert await server.ask("b", [2]) == (200, [2])
    assert (await server.manage("PUT", "/models/b?min_worker=2&synchronous=true"))[0] == 200
    assert (await server.manage("DELETE", "/models/b"))[0] == 200
    # The routes of the inference API are still there.
    assert (await server.get("/models/echo/ready"))[0] == 200
    assert (await server.manage("POST", "/models/echo/invoke", [3])) == (200, [3])


async def test_the_guard_is_that_of_the_management_api(
    start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    server = await start(start_server, tmp_path)
    assert (await server.manage("GET", "/models"))[0] == 401
    assert (await server.manage("DELETE", "/models/echo"))[0] == 401
    assert (await server.manage("PUT", "/models/echo?min_worker=3"))[0] == 401
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    assert (await server.manage("GET", "/models", headers=bearer))[0] == 200
    page = {**bearer, "Origin": "http://evil.example"}
    assert (await server.manage("GET", "/models", headers=page))[0] == 403
    # Inference asks for no token.
    assert await server.ask("echo", [1]) == (200, [1])


async def test_an_open_port_without_a_token_is_refused(
    start_server: StartServer, tmp_path: Path
) -> None:
    hosts = {"host": "0.0.0.0", "management_host": "0.0.0.0"}
    with pytest.raises(ConfigError, match="can be reached from elsewhere"):
        await start(start_server, tmp_path, **hosts)
