"""Cross-origin requests: pages of the origins that the operator names may read the answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mms.config.build import Config
from mms.config.settings import TOKEN_VARIABLE, ServerSettings
from mms.errors import ConfigError
from mms.server import Server
from tests.kit.archives import make_archive, signature
from tests.kit.server import RunningServer, StartServer, fresh_client, resolved, running_servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = "http://page.example"
ORIGIN, METHODS, HEADERS = (
    f"Access-Control-Allow-{name}" for name in ("Origin", "Methods", "Headers")
)
#: What 0.4 answered to any preflight.
ALL_METHODS = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"
#: Requests whose answers are of every kind: of a model, of the server, and errors.
ASKED = [
    ("POST", "/m/predict", "[[1]]", 200),
    ("POST", "/predictions/m", "[[1]]", 200),
    ("POST", "/predictions/m", "not JSON", 400),
    ("POST", "/predictions/m", f"[[{'1,' * 40_000}1]]", 200),
    ("POST", "/predictions/missing", "[[1]]", 404),
    ("GET", "/no/such/route", None, 404),
    ("DELETE", "/ping", None, 405),
    ("GET", "/ping", None, 200),
    ("GET", "/metrics", None, 200),
    ("GET", "/", None, 200),
    ("GET", "/v2/health/live", None, 200),
    ("POST", "/v2/models/m/infer", "{}", 400),
    ("POST", "/invocations", "[[1]]", 200),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    archive = make_archive(folder, "echo", signature([0, 3]))
    return await start_shared({"cors_allowed_origin": "*", "management_port": 0}, m=archive)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_by_one(
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[RunningServer]:
    """A server for the pages of one origin, with all that 1.x has settings for, and a token."""
    folder = tmp_path_factory.mktemp("one")
    settings = {
        "cors_allowed_origin": PAGE,
        "cors_allowed_methods": "GET, POST",
        "cors_allowed_headers": "X-Custom",
        "management_port": 0,
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(TOKEN_VARIABLE, "a token of some length")
        async with running_servers(folder) as start:
            yield await start(settings, m=make_archive(folder, "echo", signature([0, 3])))


@pytest_asyncio.fixture(loop_scope="module")
async def one(shared_by_one: RunningServer) -> AsyncIterator[RunningServer]:
    async with fresh_client(shared_by_one) as server:
        yield server


@pytest_asyncio.fixture(loop_scope="module")
async def start_server(tmp_path: Path) -> AsyncIterator[StartServer]:
    async with running_servers(tmp_path) as start:
        yield start


async def ask(
    server: RunningServer,
    method: str,
    path: str,
    body: str | None = None,
    origin: str | None = PAGE,
    base: str = "",
    **headers: str,
) -> tuple[int, Any]:
    """Return the status and the headers of an answer."""
    sent = {"Content-Type": "application/json", **headers}
    if origin:
        sent["Origin"] = origin
    url = (base or server.url) + path
    async with server.session.request(method, url, data=body, headers=sent) as response:
        return response.status, response.headers


async def preflight(server: RunningServer, path: str, origin: str = PAGE, base: str = "") -> Any:
    asked = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type",
    }
    return await ask(server, "OPTIONS", path, None, origin, base, **asked)


def shared_headers(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name.startswith("Access-Control")}


class TestAnyPage:
    """``*``: what 0.4 sent always."""

    @pytest.mark.parametrize(("method", "path", "body", "status"), ASKED)
    @pytest.mark.parametrize("origin", [None, PAGE, "null"])
    async def test_every_answer_may_be_read(
        self,
        server: RunningServer,
        method: str,
        path: str,
        body: str | None,
        status: int,
        origin: str | None,
    ) -> None:
        got, headers = await ask(server, method, path, body, origin)
        assert (got, shared_headers(headers)) == (status, {ORIGIN: "*"})

    @pytest.mark.parametrize(
        "path",
        [
            "/m/predict",
            "/predictions/m",
            "/predictions/m/1",
            "/invocations",
            "/models/m/invoke",
            "/v2/models/m/infer",
            "/ping",
            "/",
            "/no/such/route",
        ],
    )
    async def test_every_route_answers_a_preflight(self, server: RunningServer, path: str) -> None:
        status, headers = await preflight(server, path)
        assert status == 200
        assert shared_headers(headers) == {
            ORIGIN: "*",
            METHODS: ALL_METHODS,
            HEADERS: "authorization, content-type",
        }
        assert headers["X-Request-Id"]

    async def test_a_request_that_cannot_be_parsed_may_be_read(self, server: RunningServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nbad header\r\n\r\n")
        head = (await reader.read()).split(b"\r\n\r\n")[0]
        writer.close()
        assert head.startswith(b"HTTP/1.1 400 ")
        assert b"Access-Control-Allow-Origin: *" in head

    async def test_another_host_name_is_refused_as_ever(self, server: RunningServer) -> None:
        status, _ = await ask(server, "GET", "/ping", Host="page.example")
        assert status == 403

    async def test_it_does_not_count_for_the_management_api(self, server: RunningServer) -> None:
        base = server.management_url
        for method in ("GET", "OPTIONS"):
            status, headers = await ask(server, method, "/models", base=base)
            assert (status, shared_headers(headers)) == (403, {})
        assert (await preflight(server, "/models", base=base))[0] == 403

    async def test_nor_where_models_are_managed_on_the_inference_port(
        self, start_server: StartServer
    ) -> None:
        server = await start_server({"cors_allowed_origin": "*", "multi_model": True})
        assert (await ask(server, "GET", "/models"))[0] == 403
        assert (await ask(server, "GET", "/ping"))[0] == 200


class TestOneOrigin:
    """1.1.11 sends what its three settings say on every answer, whoever asks."""

    @pytest.mark.parametrize("origin", [None, PAGE])
    @pytest.mark.parametrize("path", ["/ping", "/no/such/route"])
    async def test_every_answer_has_what_is_set(
        self, one: RunningServer, path: str, origin: str | None
    ) -> None:
        _, headers = await ask(one, "GET", path, origin=origin)
        assert shared_headers(headers) == {ORIGIN: PAGE, METHODS: "GET, POST", HEADERS: "X-Custom"}

    async def test_a_prediction_has_them_too(self, one: RunningServer) -> None:
        status, headers = await ask(one, "POST", "/predictions/m", "[[1]]")
        assert (status, headers[ORIGIN]) == (200, PAGE)

    async def test_the_preflight_has_what_is_set(self, one: RunningServer) -> None:
        for base in (one.url, one.management_url):
            status, headers = await preflight(one, "/models", base=base)
            assert status == 200
            assert shared_headers(headers) == {
                ORIGIN: PAGE,
                METHODS: "GET, POST",
                HEADERS: "X-Custom",
            }

    async def test_on_the_management_port_the_token_is_needed_all_the_same(
        self, one: RunningServer
    ) -> None:
        base = one.management_url
        status, headers = await ask(one, "GET", "/models", base=base)
        assert (status, headers[ORIGIN]) == (401, PAGE)
        token = "Bearer a token of some length"
        status, headers = await ask(one, "GET", "/models", base=base, Authorization=token)
        assert (status, headers[ORIGIN]) == (200, PAGE)

    @pytest.mark.parametrize("origin", ["http://other.example", "https://page.example", "null"])
    async def test_a_page_of_another_origin_is_refused(
        self, one: RunningServer, origin: str
    ) -> None:
        for base in (one.url, one.management_url):
            assert (await ask(one, "GET", "/ping", origin=origin, base=base))[0] == 403
            assert (await preflight(one, "/ping", origin, base))[0] == 403


async def test_without_the_setting_there_are_no_headers(
    tmp_path: Path, start_server: StartServer
) -> None:
    server = await start_server(m=make_archive(tmp_path, "echo", signature([0, 3])))
    for method, path, body, status in ASKED:
        got, headers = await ask(server, method, path, body, origin=None)
        assert (got, shared_headers(headers), headers.get("Vary")) == (status, {}, None)
    assert (await preflight(server, "/ping"))[0] == 403


async def test_of_several_origins_the_asking_one_is_sent(start_server: StartServer) -> None:
    server = await start_server({"cors_allowed_origin": f"{PAGE}/, https://other.example"})
    for origin, expected in [
        (PAGE, {ORIGIN: PAGE}),
        ("https://other.example", {ORIGIN: "https://other.example"}),
        (None, {}),
    ]:
        _, headers = await ask(server, "GET", "/ping", origin=origin)
        assert (shared_headers(headers), headers["Vary"]) == (expected, "Origin")


async def test_a_route_without_a_preflight_says_its_methods(server: RunningServer) -> None:
    """0.4: 200 with Allow, for each of its routes."""
    status, headers = await ask(server, "OPTIONS", "/ping", origin=None)
    assert (status, headers["Allow"]) == (200, "GET, HEAD, OPTIONS")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cors_allowed_origin", "page.example"),
        ("cors_allowed_origin", "http://page.example/path"),
        ("cors_allowed_origin", "http://page.example\r\nX: y"),
        ("cors_allowed_methods", "GET POST"),
        ("cors_allowed_headers", "X-A\r\nX-B: c"),
    ],
)
async def test_a_setting_that_makes_no_sense_stops_the_start(key: str, value: str) -> None:
    settings = resolved(ServerSettings, {"port": 0, "management_port": -1, key: value})
    with pytest.raises(ConfigError, match=key):
        Server(Config(settings, (), {}))
