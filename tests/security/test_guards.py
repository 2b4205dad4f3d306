"""The guard, on every port: walked through the routers' own tables, so no new route misses it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yarl

from mms.config.build import Config
from mms.config.settings import TOKEN_VARIABLE, ServerSettings
from mms.errors import ConfigError
from mms.http.audit import LONGEST_DELAY_S, MOST_ADDRESSES, Failures
from mms.http.guard import MIN_TOKEN_CHARS
from mms.server import Server
from tests.kit.server import RunningServer, fresh_client, running_servers
from tests.kit.waiting import LIMIT_S, until
from tests.management.stores import Traces, says

pytestmark = pytest.mark.asyncio(loop_scope="module")

TOKEN = "a token of some length"
RIGHT = {"Authorization": f"Bearer {TOKEN}"}
VERBS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PURGE")
HOSTILE: list[dict[str, str]] = [
    {"Host": "evil.example"},
    {"Host": "127.0.0.1:9305, evil.com"},
    {"Host": "localhost evil.com"},
    {"Host": "localhost:99999"},
    {"Host": "localhost:80:80"},
    {"Host": "localhost/evil.com"},
    {"Host": "evil.com#localhost"},
    {"Host": "[::1].evil.com"},
    {"Host": "localhost.evil.com"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "file://"},
    {"Host": "localhost:1", "Origin": "https://localhost:1"},
    {"Host": "localhost:1", "Origin": "http://localhost:2"},
    {"Host": "localhost:1", "Origin": "http://127.0.0.1:1"},
    {"Host": "localhost:1", "Origin": "http://localhost:1, http://evil.com"},
    {"Host": "localhost:1", "Origin": "http://localhost:1@evil.com"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "whatever"},
]
HARMLESS: list[dict[str, str]] = [
    {},
    {"Host": "localhost"},
    {"Host": "LOCALHOST:9000"},
    {"Host": "127.0.0.1:9000"},
    {"Host": "10.1.2.3:8081"},
    {"Host": "[::1]:8080"},
    {"Host": "[fe80::1]"},
    {"Host": "localhost:9000", "Origin": "http://localhost:9000"},
    {"Host": "localhost", "Origin": "http://localhost:80"},
    {"Host": "localhost:080", "Origin": "http://LOCALHOST"},
    {"Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Site": "same-origin"},
]


async def serve(folder: Path, start: Any, **settings: Any) -> RunningServer:
    store = folder / "store"
    says(store / "m", "m")
    says(store / "n", "n")
    given = {"management_port": 0, "multi_model": True, "model_store": str(store), **settings}
    server: RunningServer = await start(given, m=store / "m")
    return server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def servers(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[dict[str, RunningServer]]:
    """Three servers.

    `loopback` serves this machine only, and has no token. `public` serves everybody, and has one.
    `container` is as SageMaker starts it: it serves everybody, and has none.
    """
    folder = tmp_path_factory.mktemp("servers")
    async with running_servers(folder) as start:
        found = {"loopback": await serve(folder / "loopback", start)}
        found["container"] = await serve(
            folder / "container", start, host="0.0.0.0", allowed_hosts="mms, proxy.example"
        )
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(TOKEN_VARIABLE, TOKEN)
            found["public"] = await serve(
                folder / "public", start, host="0.0.0.0", management_host="0.0.0.0"
            )
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def server(
    request: pytest.FixtureRequest, servers: dict[str, RunningServer]
) -> AsyncIterator[RunningServer]:
    async with fresh_client(servers[request.param]) as server:
        yield server


def on(name: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("server", [name], indirect=True)


def state(server: RunningServer) -> Any:
    """Return all that a request could have changed."""
    return [
        (
            name,
            server.default(name),
            server.traffic(name),
            {version: servable.size for version, servable in server.versions(name).items()},
        )
        for name in sorted(server.names)
    ]


def paths(app_urls: set[str]) -> set[str]:
    return {
        re.sub(r"\{(\w+)\}", lambda found: "1" if "version" in found[1] else "m", path)
        for path in app_urls
    }


async def tables(server: RunningServer) -> list[tuple[str, str, str]]:
    """Return (base URL, verb, path) of every route of both routers, in every spelling."""
    found = []
    for base in (server.url, server.management_url):
        async with server.session.options(base + "/", headers=RIGHT) as response:
            known = paths(set((await response.json())["paths"]))
        assert len(known) > 5
        known |= paths({route.split()[1] for route in await routes_of(server, base)})
        for path in known:
            for spelling in {
                path,
                f"/{path}",
                f"{path}/",
                path.replace("models", "model%73"),
                path.replace("models", "%2e/models"),
                path.replace("models", "MODELS"),
                f"/x/%2e%2e{path}",
            }:
                found += [(base, verb, spelling) for verb in VERBS]
    return found


async def routes_of(server: RunningServer, base: str) -> list[str]:
    if base != server.url:
        return ["POST /models"]
    async with server.session.get(base + "/") as response:
        return list((await response.json())["routes"])


#: Answered 2xx to anybody on a port that everybody may reach; none of them changes anything.
OPEN = (
    "/ping", "/health", "/metrics", "/predictions", "/invocations", "/v1", "/v2", "/openapi.json",
    "/docs", "/api-description", "/models/m/invoke", "/models/m/ready", "/m/predict",
)  # fmt: skip


def is_open(base: str, server: RunningServer, path: str, verb: str) -> bool:
    # Not parsed, which would take what follows two slashes for a host.
    plain = yarl.URL.build(path=path, encoded=True).path.replace("//", "/").replace("/x/..", "")
    # The methods of a route are no secret: the reference has them.
    is_known = plain == "/" or plain.startswith(OPEN) or verb == "OPTIONS"
    return base == server.url and is_known


async def walk(
    server: RunningServer, headers: dict[str, str], every: int = 1
) -> list[tuple[str, str, str, int]]:
    """Send everything; return what was answered, and check that nothing has changed."""
    before, answers = state(server), []
    for base, verb, path in (await tables(server))[::every]:
        url = yarl.URL(base + path, encoded=True)
        body = b'{"model_name": "new", "url": "n"}' if verb == "POST" else None
        sent = {"Content-Type": "text/plain", **headers}
        async with server.session.request(verb, url, data=body, headers=sent) as response:
            await response.read()
            answers.append((base, verb, path, response.status))
        assert state(server) == before, (verb, path, headers)
    return answers


class TestV10:
    @on("public")
    @pytest.mark.parametrize(
        "credentials",
        [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Bearer {TOKEN}x"},
            {"Authorization": f"Basic {TOKEN}"},
        ],
        ids=str,
    )
    async def test_v10_nothing_is_managed_without_the_token_whatever_the_port(
        self, server: RunningServer, credentials: dict[str, str]
    ) -> None:
        for base, verb, path, status in await walk(server, credentials):
            assert is_open(base, server, path, verb) or not 200 <= status < 300, (
                verb,
                path,
                status,
            )

    @on("public")
    @pytest.mark.parametrize("hostile", HOSTILE[::4], ids=str)
    async def test_v10_a_web_page_manages_nothing_even_with_the_token(
        self, server: RunningServer, hostile: dict[str, str]
    ) -> None:
        for base, verb, path, status in await walk(server, {**RIGHT, **hostile}):
            assert is_open(base, server, path, verb) or not 200 <= status < 300, (
                verb,
                path,
                status,
            )

    @on("public")
    async def test_v10_with_the_token_models_come_and_go(self, server: RunningServer) -> None:
        await load_and_unload(server, RIGHT)

    @on("container")
    async def test_v10_where_no_token_is_set_sagemaker_needs_none(
        self, server: RunningServer
    ) -> None:
        for host in ("model.aws.local:8080", "mms:8081"):
            await load_and_unload(server, {"Host": host})

    @on("container")
    @pytest.mark.parametrize("hostile", HOSTILE, ids=str)
    async def test_v10_a_web_page_does_not_load_or_unload_in_a_container(
        self, server: RunningServer, hostile: dict[str, str]
    ) -> None:
        before = state(server)
        for verb, path in (
            ("POST", "/models"),
            ("DELETE", "/models/m"),
            ("GET", "/models"),
            ("GET", "/models/m"),
        ):
            body = b'{"model_name": "new", "url": "n"}' if verb == "POST" else None
            async with server.session.request(
                verb, server.url + path, data=body, headers=hostile
            ) as response:
                assert response.status in (400, 403), (verb, path)
        assert state(server) == before

    @on("container")
    async def test_v10_no_paths_for_those_who_have_no_token(
        self, server: RunningServer, tmp_path: Path
    ) -> None:
        folder = server.settings.model_store
        (Path(folder) / "bad.model").write_bytes(b"no zip file")
        said = []
        for verb, path, document in (
            ("GET", "/models", None),
            ("GET", "/models/m", None),
            ("POST", "/models", {"model_name": "x", "url": f"{folder}/bad.model"}),
            ("POST", "/models", {"model_name": "x", "url": "missing.model"}),
            ("POST", "/models", {"model_name": "x", "url": "../m"}),
        ):
            async with server.session.request(verb, server.url + path, json=document) as response:
                said.append(await response.text())
        assert '"modelUrl":"m"' in said[0]
        assert "not a model archive" in said[2]
        assert not [text for text in said if str(Path(folder).parent) in text]

    @on("loopback")
    async def test_v10_unknown_names_leave_nothing_behind(self, server: RunningServer) -> None:
        def locks() -> int:
            gc.collect()
            return sum(type(found) is asyncio.Lock for found in gc.get_objects())

        before = locks()
        for number in range(50):
            name = f"{number}" + "x" * 2_000
            assert (await server.manage("DELETE", f"/models/{name}"))[0] == 404
            async with server.session.delete(f"{server.url}/models/{name}") as response:
                assert response.status == 404
        assert locks() <= before


async def load_and_unload(server: RunningServer, headers: dict[str, str]) -> None:
    traces, document = Traces(server), {"model_name": "new", "url": "n"}
    async with server.session.post(
        server.url + "/models", json=document, headers=headers
    ) as response:
        assert response.status == 200, await response.text()
    async with server.session.delete(server.url + "/models/new", headers=headers) as response:
        assert response.status == 200
    async with server.session.get(server.url + "/models", headers=headers) as response:
        assert [model["modelName"] for model in (await response.json())["models"]] == ["m"]
    await until(lambda: len(traces.unpacked()) <= 1)
    await traces.settle()


class TestV31V32:
    @on("loopback")
    @pytest.mark.parametrize("hostile", HOSTILE, ids=str)
    async def test_v31_v32_a_web_page_reaches_no_route_of_either_port(
        self, server: RunningServer, hostile: dict[str, str]
    ) -> None:
        for _, verb, path, status in await walk(server, hostile, every=5):
            assert status in (400, 403), (verb, path, status)

    @on("loopback")
    @pytest.mark.parametrize("harmless", HARMLESS, ids=str)
    async def test_v31_v32_everybody_else_does(
        self, server: RunningServer, harmless: dict[str, str]
    ) -> None:
        for url in (f"{server.url}/ping", f"{server.management_url}/models"):
            async with server.session.get(url, headers=harmless) as response:
                assert response.status == 200, url
        assert await server.ask("m", [], harmless) == (200, "m")

    @on("container")
    async def test_v32_a_public_port_answers_by_any_name(self, server: RunningServer) -> None:
        assert await server.ask("m", [], {"Host": "models.example"}) == (200, "m")

    @on("container")
    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Host": "proxy.example"}, 200),
            ({"Host": "PROXY.example:443", "Origin": "https://proxy.example"}, 200),
            ({"Origin": "https://proxy.example", "Sec-Fetch-Site": "same-site"}, 200),
            ({"Host": "proxy.example.evil.com"}, 403),
            ({"Origin": "https://evil.example", "Host": "proxy.example"}, 403),
        ],
        ids=str,
    )
    async def test_v31_allowed_hosts_name_servers_and_pages(
        self, server: RunningServer, headers: dict[str, str], status: int
    ) -> None:
        assert (await server.manage("GET", "/models", headers=headers))[0] == status

    @on("loopback")
    @pytest.mark.parametrize(
        ("head", "status"),
        [
            (b"GET /ping HTTP/1.0\r\n", b"200"),
            (b"GET /ping HTTP/1.1\r\n", b"400"),
            (b"GET /ping HTTP/1.1\r\nHost: localhost\r\nHost: evil.com\r\n", b"400"),
            (b"GET /ping HTTP/1.0\r\nOrigin: http://evil.com\r\n", b"403"),
        ],
    )
    async def test_v31_no_host_or_two(
        self, server: RunningServer, head: bytes, status: bytes
    ) -> None:
        for port in (server.port, server.management_port):
            path = b"/ping" if port == server.port else b"/models"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head.replace(b"/ping", path) + b"Connection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), LIMIT_S)
            writer.close()
            await writer.wait_closed()
            assert answer.split()[1] == status, answer


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TestV26:
    async def test_v26_guessing_becomes_slower_and_is_forgiven(self) -> None:
        clock = Clock()
        failures = Failures(clock=clock)
        delays = [failures.note("192.0.2.1", "x") for _ in range(2_000)]
        assert delays[0] < 0.1
        assert delays == sorted(delays)
        assert delays[-1] == LONGEST_DELAY_S
        assert failures.note("192.0.2.2", "x") == delays[0]
        clock.now += 61
        assert failures.note("192.0.2.1", "x") == delays[0]

    async def test_v26_an_address_has_one_line_a_second(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = Clock()
        failures = Failures(clock=clock)
        for _ in range(500):
            failures.note("192.0.2.1", "wrong token")
        clock.now += 1
        failures.note("192.0.2.1", "wrong token")
        lines = [r.message for r in caplog.records if r.name == "mms.audit"]
        assert lines == [
            "wrong token from 192.0.2.1",
            "wrong token from 192.0.2.1 (499 more since the last line)",
        ]

    @pytest.mark.parametrize(
        "addresses",
        [
            (f"10.{a}.{b}.1" for a, b in itertools.product(range(40), range(100))),
            (f"2001:db8:{a:x}::{b}" for a, b in itertools.product(range(2_000), range(2))),
        ],
    )
    async def test_v26_the_table_of_addresses_is_bounded(self, addresses: Iterator[str]) -> None:
        failures = Failures(clock=Clock())
        for address in addresses:
            failures.note(address, "x")
        assert len(failures) == MOST_ADDRESSES

    async def test_v26_one_network_is_one_guesser(self, caplog: pytest.LogCaptureFixture) -> None:
        failures = Failures(clock=Clock())
        delays = [failures.note(f"2001:db8::{n:x}", "x") for n in range(1, 100)]
        assert len(failures) == 1
        assert delays[-1] == LONGEST_DELAY_S
        assert len([r for r in caplog.records if r.name == "mms.audit"]) == 1

    @pytest.mark.asyncio(loop_scope="function")
    async def test_v26_a_wrong_token_is_logged_with_its_address(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
        # A server of its own: one address gets one line a second, and its first failure one.
        async with running_servers(tmp_path) as start:
            server = await start({"management_port": 0, "management_host": "0.0.0.0"})
            await server.manage("DELETE", "/models/m\x1b", headers={"Authorization": "Bearer no"})
        [line] = [r for r in caplog.records if r.name == "mms.audit"]
        assert line.levelno == logging.WARNING
        assert "127.0.0.1" in line.message
        assert "\x1b" not in line.message
        assert TOKEN not in line.message

    @pytest.mark.parametrize("token", ["x", "y" * (MIN_TOKEN_CHARS - 1)])
    async def test_v26_a_short_token_is_refused_at_start(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, token: str
    ) -> None:
        monkeypatch.setenv(TOKEN_VARIABLE, token)
        settings = ServerSettings(port=0, management_port=0, work_dir=str(tmp_path))
        server = Server(Config(settings, (), {}))
        with pytest.raises(
            ConfigError, match=f"{TOKEN_VARIABLE} is shorter than {MIN_TOKEN_CHARS}"
        ):
            await server.start()
        await server.stop()
