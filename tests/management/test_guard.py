"""Who may use the management API: not web pages, and elsewhere only who brings the token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mms.config.build import Config
from mms.config.settings import TOKEN_VARIABLE, ServerSettings
from mms.errors import ConfigError, MMSError
from mms.server import Server
from tests.kit.server import RunningServer, StartServer, fresh_client, running_servers
from tests.management.stores import make_store

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "a token of some length"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    store = make_store(folder)
    return await start_shared({"management_port": 0, "model_store": str(store)}, m=store / "v1")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_with_token(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningServer]:
    """A server that can be reached from elsewhere, and so has a token."""
    folder = tmp_path_factory.mktemp("token")
    store = make_store(folder)
    settings = {
        "management_port": 0,
        "management_host": "0.0.0.0",
        "model_store": str(store),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, TOKEN)
        async with running_servers(folder) as start:
            yield await start(settings, m=store / "v1")


@pytest_asyncio.fixture(loop_scope="module")
async def server_with_token(shared_with_token: RunningServer) -> AsyncIterator[RunningServer]:
    async with fresh_client(shared_with_token) as server:
        yield server


async def routes(server: RunningServer) -> list[tuple[str, str]]:
    """Return every verb and path that the router itself knows, and some that it does not."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    _, document = await server.manage("OPTIONS", "/", headers=headers)
    known = [
        (method.upper(), path.replace("{model}", "m").replace("{version}", "1"))
        for path, operations in document["paths"].items()
        for method in operations
    ]
    assert len(known) >= 11
    verbs = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE")
    paths = {path for _, path in known}
    return sorted({*known, *((verb, path) for verb in verbs for path in {*paths, "/none"})})


async def refused(server: RunningServer, headers: dict[str, str], status: int) -> None:
    """Check that all routes refuse requests with these headers, and that nothing happens."""
    before = sorted(server.names)
    for method, path in await routes(server):
        url = server.management_url + path
        async with server.session.request(method, url, headers=headers) as response:
            assert response.status == status, (method, path)
            if status == 401:
                assert response.headers["WWW-Authenticate"] == "Bearer"
    assert sorted(server.names) == before
    assert await server.ask("m", []) == (200, "v1")


async def raw(server: RunningServer, head: bytes) -> bytes:
    """Send a request's bytes to the management port and return the answer's."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.management_port)
    writer.write(head + b"Connection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


class TestWebPages:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "evil.example"},
            {"Host": "evil.example:8081"},
            {"Host": "127.0.0.1.evil.example"},
            {"Host": "localhost.evil.example"},
            {"Host": "user@evil.example"},
            {"Origin": "http://evil.example"},
            {"Origin": "http://localhost:1"},
            {"Origin": "null"},
            {"Origin": "http://["},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "same-site"},
        ],
        ids=str,
    )
    async def test_are_refused_on_every_route(
        self, server: RunningServer, headers: dict[str, str]
    ) -> None:
        await refused(server, headers, 403)

    @pytest.mark.parametrize("host", [b"[", b"[::1", b"", b"\xff", b"::1]", b"a b", b"%"])
    async def test_a_host_header_that_is_none_is_refused(
        self, server: RunningServer, host: bytes
    ) -> None:
        answer = await raw(server, b"GET /models HTTP/1.1\r\nHost: " + host + b"\r\n")
        assert answer.split()[1] in (b"400", b"403"), answer

    @pytest.mark.parametrize(
        "headers",
        [
            {"Host": "localhost"},
            {"Host": "LOCALHOST:8081"},
            {"Host": "127.0.0.1:8081"},
            {"Host": "[::1]:8081"},
            {"Sec-Fetch-Site": "none"},
            {"Sec-Fetch-Site": "same-origin"},
        ],
        ids=str,
    )
    async def test_others_are_served(self, server: RunningServer, headers: dict[str, str]) -> None:
        assert (await server.manage("GET", "/models", headers=headers))[0] == 200

    async def test_a_page_of_this_very_server_is_served(self, server: RunningServer) -> None:
        headers = {"Origin": server.management_url}
        assert (await server.manage("GET", "/models", headers=headers))[0] == 200


class TestToken:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::"])
    async def test_without_one_a_management_api_for_elsewhere_does_not_start(
        self, tmp_path: Path, host: str
    ) -> None:
        settings = ServerSettings(
            port=0, management_port=0, management_host=host, work_dir=str(tmp_path)
        )
        server = Server(Config(settings, (), {}))
        with pytest.raises(ConfigError, match=TOKEN_VARIABLE):
            await server.start()
        await server.stop()

    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer"},
            {"Authorization": "Bearer "},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Bearer {TOKEN[:-1]}"},
            {"Authorization": f"Basic {TOKEN}"},
            {"Authorization": TOKEN},
            {"Authorization": "Bearer töken"},
        ],
        ids=str,
    )
    async def test_without_the_right_one_every_route_answers_401(
        self, server_with_token: RunningServer, headers: dict[str, str]
    ) -> None:
        await refused(server_with_token, headers, 401)

    async def test_bytes_that_are_no_text_are_a_wrong_token(
        self, server_with_token: RunningServer
    ) -> None:
        head = b"GET /models HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer \xff\xfe\r\n"
        assert (await raw(server_with_token, head)).startswith(b"HTTP/1.1 401")

    @pytest.mark.parametrize("scheme", ["Bearer", "bearer"])
    async def test_with_the_right_one_it_serves(
        self, server_with_token: RunningServer, scheme: str
    ) -> None:
        headers = {"Authorization": f"{scheme} {TOKEN}"}
        server = server_with_token
        assert (await server.manage("GET", "/models", headers=headers))[0] == 200
        path = "/models/m?min_worker=1&synchronous=true"
        assert (await server.manage("PUT", path, headers=headers))[0] == 200
        path = "/models/m/1/set-default"
        assert (await server.manage("PUT", path, headers=headers))[0] == 200

    async def test_web_pages_are_refused_even_with_it(
        self, server_with_token: RunningServer
    ) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}", "Origin": "http://evil.example"}
        assert (await server_with_token.manage("GET", "/models", headers=headers))[0] == 403

    async def test_inference_needs_none(self, server_with_token: RunningServer) -> None:
        assert await server_with_token.ask("m", []) == (200, "v1")
        assert (await server_with_token.get("/ping"))[0] == 200

    async def test_services_do_not_see_it(self, server_with_token: RunningServer) -> None:
        status, environment = await server_with_token.ask("m", ["environment"])
        assert status == 200
        assert TOKEN not in environment.values()


class TestPort:
    async def test_a_port_that_is_taken_is_named(
        self, server: RunningServer, tmp_path: Path
    ) -> None:
        taken = server.management_port
        settings = ServerSettings(port=0, management_port=taken, work_dir=str(tmp_path))
        second = Server(Config(settings, (), {}))
        with pytest.raises(MMSError, match=f"{taken}.*--management-port"):
            await second.start()
        await second.stop()

    async def test_minus_1_turns_it_off(self, tmp_path: Path) -> None:
        settings = ServerSettings(port=0, management_port=-1, work_dir=str(tmp_path))
        server = Server(Config(settings, (), {}))
        await server.start()
        assert server.management_port == 0
        await server.stop()

    async def test_inference_routes_and_management_routes_do_not_mix(
        self, server: RunningServer
    ) -> None:
        assert (await server.get("/models"))[0] == 404
        assert (await server.manage("POST", "/predictions/m", []))[0] == 404
