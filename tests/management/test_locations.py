"""Models that the management API fetches: from where it may, and without telling secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mms.config.build import build_config
from mms.errors import ConfigError
from tests.kit.fileserver import FileServer, closed_port, digest_of, file_server, redirect, silence
from tests.kit.server import RunningServer, fresh_client, running_servers
from tests.kit.waiting import until
from tests.management.stores import Traces, make_store, says

pytestmark = pytest.mark.asyncio(loop_scope="module")

#: Any port: each test has servers of its own.
ALLOWED = r"http://127\.0\.0\.1:\d+/models/.*,http://localhost:\d+/models/.*,s3://models/.*"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("locations")
    make_store(folder)
    (folder / "permitted").mkdir()
    return folder


def settings(folder: Path, **others: Any) -> dict[str, Any]:
    return {
        "management_port": 0,
        "model_store": str(folder / "store"),
        "cache_dir": str(folder / "cache"),
        "allowed_urls": f"{ALLOWED},file://{folder}/permitted/.*",
        "allow_private_urls": True,
        **others,
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path) -> AsyncIterator[RunningServer]:
    async with running_servers(folder) as start:
        yield await start(settings(folder))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared_and_strict(folder: Path) -> AsyncIterator[RunningServer]:
    """A server that permits URLs, but none that lead inside."""
    strict = settings(folder, allow_private_urls=False, allowed_urls="http://.*,s3://models/.*")
    async with running_servers(folder / "strict") as start:
        yield await start(strict)


@pytest_asyncio.fixture(loop_scope="module")
async def strict(shared_and_strict: RunningServer) -> AsyncIterator[RunningServer]:
    async with fresh_client(shared_and_strict) as server:
        yield server


@pytest.fixture
def files() -> Iterator[FileServer]:
    with file_server() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(folder: Path) -> Path:
    """The cache, empty."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return folder / "cache"


@pytest.fixture
def content(folder: Path) -> bytes:
    """An archive."""
    return (folder / "store" / "echo.model").read_bytes()


def kept(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if path.is_file() and "locks" not in path.parts]


async def post(
    server: RunningServer, url: str, name: str | None = "m", **parameters: Any
) -> tuple[int, Any]:
    """Register a model; without workers, which take their time, unless told so."""
    named = {"model_name": name} if name else {}
    return await server.manage("POST", "/models", {"url": url, **named, **parameters})


async def digest(server: RunningServer, name: str) -> Any:
    """Return the sha256 of a registered model's archive."""
    status, document = await server.manage("GET", f"/models/{name}")
    assert status == 200
    return document["archive"]["digest"]


class TestRegister:
    async def test_a_model_is_fetched_and_served(
        self, server: RunningServer, files: FileServer, content: bytes
    ) -> None:
        url = files.add("/models/echo.model", content)
        answer = await post(server, url, initial_workers=1)
        assert answer == (200, {"status": "Workers scaled"})
        assert await server.ask("m", [1]) == (200, [1])
        _, document = await server.manage("GET", "/models/m")
        assert document["modelUrl"] == url
        assert document["archive"]["digest"] == digest_of(content)
        # To read its name and to load it, it is fetched once.
        assert len(files.seen) == 1

    async def test_the_call_of_1x_names_it_in_the_query_and_the_manifest_names_the_model(
        self, server: RunningServer, files: FileServer, content: bytes
    ) -> None:
        url = files.add("/models/anything", content)
        status, answer = await server.manage("POST", f"/models?url={url}")
        assert (status, answer) == (200, {"status": 'Model "echo" registered'})
        assert await digest(server, "echo") == digest_of(content)

    async def test_s3_is_asked_where_the_environment_says(
        self,
        server: RunningServer,
        files: FileServer,
        content: bytes,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", files.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        files.add("/models/crepe/echo.model", content)
        assert (await post(server, "s3://models/crepe/echo.model"))[0] == 200
        assert await digest(server, "m") == digest_of(content)
        assert (await post(server, "s3://others/echo.model", "n"))[0] == 403

    async def test_a_file_outside_the_store_is_served_if_it_is_permitted(
        self, server: RunningServer, folder: Path, content: bytes
    ) -> None:
        permitted = folder / "permitted"
        shutil.copy(folder / "store" / "echo.model", permitted / "outside.model")
        assert (await post(server, f"file://{permitted}/outside.model", "m"))[0] == 200
        assert (await post(server, f"{permitted}/outside%2Emodel", "n"))[0] == 404
        assert (await post(server, f"file://{permitted}/outside%2Emodel", "o"))[0] == 200
        assert (await post(server, f"{permitted}/outside.model", "n"))[0] == 200
        assert await digest(server, "n") == digest_of(content)
        (folder / "secret").mkdir(exist_ok=True)
        says(folder / "secret" / "folder", "secret")
        (permitted / "link").symlink_to(folder / "secret" / "folder")
        for path in ("link", "../secret/folder", "%2e%2e/secret/folder", "none/../.."):
            assert (await post(server, f"file://{permitted}/{path}", "p"))[0] == 403
        for path in ("none", "x" * 5000):
            assert (await post(server, f"file://{permitted}/{path}", "p"))[0] == 404

    async def test_a_pin_holds_for_files_of_the_store_too(
        self, server: RunningServer, content: bytes
    ) -> None:
        good, bad = digest_of(content), digest_of(b"")
        assert (await post(server, f"echo.model#sha256={good}"))[0] == 200
        status, answer = await post(server, f"echo.model#sha256={bad}", "n")
        assert (status, answer["error"]["code"]) == (400, "invalid_archive")
        assert good in answer["message"]
        assert bad in answer["message"]

    async def test_what_is_asynchronous_is_fetched_before_it_is_answered(
        self, server: RunningServer, files: FileServer, content: bytes
    ) -> None:
        url = files.add("/models/echo.model", content)
        assert (await post(server, url, initial_workers=1, synchronous=False))[0] == 202
        assert len(files.seen) == 1
        await until(lambda: "m" in server.names and server.servable("m").is_ready)
        status, answer = await post(
            server, f"{files.url}/models/none", "n", initial_workers=1, synchronous=False
        )
        assert (status, answer["error"]["code"]) == (400, "download_failed")

    async def test_a_client_that_leaves_ends_the_download(
        self, server: RunningServer, files: FileServer, cache: Path
    ) -> None:
        files.odd["/models/x"] = silence
        asking = asyncio.create_task(post(server, f"{files.url}/models/x"))
        await until(lambda: files.seen)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        files.closing.set()
        # Whoever comes next need not wait for it to try again.
        del files.odd["/models/x"]
        assert (await post(server, f"{files.url}/models/x"))[0] == 400
        assert len(files.seen) == 2
        assert kept(cache) == []
        assert "m" not in server.names


class TestFailures:
    @pytest_asyncio.fixture(autouse=True, loop_scope="module")
    async def nothing_stays(self, server: RunningServer, cache: Path) -> AsyncIterator[None]:
        before, traces = await server.manage("GET", "/models"), Traces(server)
        unpacked = traces.unpacked()
        yield
        assert await server.manage("GET", "/models") == before
        assert traces.unpacked() == unpacked
        assert kept(cache) == []

    @pytest.mark.parametrize("status", [404, 403])
    async def test_a_server_that_says_no_is_quoted(
        self, server: RunningServer, files: FileServer, status: int
    ) -> None:
        url = f"{files.url}/models/x"
        files.odd["/models/x"] = lambda handler: handler.answer(status)
        code, answer = await post(server, f"{url}?sig=SECRET")
        assert (code, answer["error"]["code"]) == (400, "download_failed")
        assert answer["message"].startswith(f"{url}: ")
        assert str(status) in answer["message"]
        assert "SECRET" not in str(answer)

    async def test_a_server_that_is_not_there_is_named(self, server: RunningServer) -> None:
        status, answer = await post(server, f"http://127.0.0.1:{closed_port()}/models/x")
        assert (status, answer["error"]["code"]) == (400, "download_failed")
        assert "Connection refused" in answer["message"]

    @pytest.mark.parametrize("name", ["m", None])
    async def test_what_is_no_archive_is_named_by_its_url(
        self, server: RunningServer, files: FileServer, name: str | None
    ) -> None:
        url = files.add("/models/page.html", b"<html>")
        status, answer = await post(server, f"{url}?sig=SECRET", name)
        assert (status, answer["error"]["code"]) == (400, "invalid_archive")
        assert answer["message"].startswith(f"{url}: a web page, and not a model archive")

    async def test_a_wrong_pin_names_both_digests(
        self, server: RunningServer, files: FileServer, content: bytes
    ) -> None:
        url = files.add("/models/echo.model", content)
        status, answer = await post(server, f"{url}#sha256={digest_of(b'')}")
        assert status == 400
        assert digest_of(content) in answer["message"]
        assert digest_of(b"") in answer["message"]

    async def test_what_can_be_refused_without_it_is_not_downloaded(
        self, server: RunningServer, files: FileServer, content: bytes
    ) -> None:
        url = files.add("/models/echo.model", content)
        for parameters in (
            {"name": "a/b"},
            {"batch_size": 0},
            {"runtime": "java8"},
            {"initial_workers": -1},
        ):
            assert (await post(server, url, **parameters))[0] == 400
        assert files.connections == 0

    @pytest.mark.parametrize(
        "url", ["http://[", "http://127.0.0.1:x/models/x", "http:///models/x", "s3://models"]
    )
    async def test_a_url_that_is_none_is_a_400(self, server: RunningServer, url: str) -> None:
        status, answer = await post(server, url)
        assert (status, answer["error"]["code"]) == (400, "invalid_archive")


class TestRefusals:
    @pytest_asyncio.fixture(autouse=True, loop_scope="module")
    async def nothing_stays(self, folder: Path, cache: Path) -> AsyncIterator[None]:
        store = set(os.listdir(folder / "store"))
        yield
        assert set(os.listdir(folder / "store")) == store
        assert kept(cache) == []

    @pytest.mark.parametrize(
        "url",
        [
            "{url}/x.model",
            "{url}/models/../x.model",
            "{url}/models/%2e%2e/x.model",
            "{url}/models/..;/x.model",
            "http://user@127.0.0.1:{port}/models/x.model",
            "http://127.0.0.2:{port}/models/x.model",
            "http://127.0.0.1.:{port}/models/x.model",
            "ftp://127.0.0.1:{port}/models/x.model",
            "gopher://127.0.0.1:{port}/models/x.model",
            "file:///etc/passwd",
            "s3://others/models/x.model",
        ],
    )
    async def test_what_is_not_permitted_is_not_asked_for(
        self, server: RunningServer, files: FileServer, content: bytes, url: str
    ) -> None:
        for path in ("/x.model", "/models/x.model"):
            files.add(path, content)
        url = url.format(url=files.url, port=files.port)
        status, answer = await post(server, url)
        assert (status, answer["error"]["code"]) == (403, "forbidden"), answer
        assert files.connections == 0
        assert (await post(server, "x.model"))[0] == 404

    async def test_a_redirect_to_what_is_not_permitted_is_not_followed(
        self, server: RunningServer, files: FileServer, content: bytes
    ) -> None:
        with file_server() as canary:
            files.odd["/models/x"] = redirect(canary.add("/elsewhere", content))
            status, answer = await post(server, f"{files.url}/models/x")
            assert (status, answer["error"]["code"]) == (403, "forbidden")
            assert f"{canary.url}/elsewhere" in answer["message"]
            assert canary.connections == 0

    @pytest.mark.parametrize(
        "host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0", "2130706433", "0x7f.1"]
    )
    async def test_this_machine_is_not_asked_whatever_it_is_called(
        self, strict: RunningServer, files: FileServer, content: bytes, host: str
    ) -> None:
        files.add("/x.model", content)
        status, answer = await post(strict, f"http://{host}:{files.port}/x.model")
        assert (status, answer["error"]["code"]) == (403, "forbidden")
        assert "allow_private_urls" in answer["message"]
        assert files.connections == 0

    @pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "[fd00:ec2::254]"])
    async def test_neither_is_the_network_around_it(self, strict: RunningServer, host: str) -> None:
        status, answer = await post(strict, f"http://{host}/latest/meta-data/")
        assert (status, answer["error"]["code"]) == (403, "forbidden")

    async def test_what_the_operator_has_fetched_is_not_served_by_a_url_that_is_refused(
        self, strict: RunningServer, server: RunningServer, files: FileServer, content: bytes
    ) -> None:
        url = files.add("/models/echo.model", content)
        assert (await post(server, url))[0] == 200
        assert (await post(strict, url))[0] == 403
        shutil.rmtree(server.settings.cache_dir)


class TestSecrets:
    async def test_neither_answers_nor_logs_hold_what_a_url_hides(
        self,
        server: RunningServer,
        files: FileServer,
        content: bytes,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.DEBUG)
        url = files.add("/models/echo.model", content, cuts=[100])
        secret = f"{url}?signature=SECRET"
        assert (await post(server, secret))[0] == 200
        refused = f"{files.url}/other?signature=SECRET"
        answers = [
            await post(server, secret),
            await post(server, secret, version="1"),
            await post(server, refused, "n"),
            await server.manage("GET", "/models"),
            await server.manage("GET", "/models/m"),
        ]
        await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
        assert [status for status, _ in answers] == [409, 409, 403, 200, 200]
        assert answers[3][1]["models"][0]["modelUrl"] == url
        assert answers[4][1]["modelUrl"] == url
        assert any(f"register m from {url}" in message for message in caplog.messages)
        for text in [json.dumps(answers), *caplog.messages]:
            assert "SECRET" not in text


class TestRestart:
    async def test_what_was_registered_is_there_again_even_without_the_network(
        self,
        folder: Path,
        tmp_path: Path,
        content: bytes,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        state = tmp_path / "state.json"
        kept = settings(folder, state_file=str(state), cache_dir=str(tmp_path / "cache"))
        with file_server() as files:
            url = files.add("/models/echo.model", content) + "?sig=SECRET"
            async with running_servers(tmp_path) as start:
                assert (await post(await start(kept), url))[0] == 200
            # Whoever is to fetch it again needs all of it; nobody else does.
            assert json.loads(state.read_bytes())["models"][0]["path"] == url
            assert state.stat().st_mode & 0o777 == 0o600
            async with running_servers(tmp_path) as start:
                server = await start(kept)
                assert await digest(server, "m") == digest_of(content)
            assert files.bodies("/models/echo.model?sig=SECRET") == 1
        caplog.clear()
        async with running_servers(tmp_path) as start:
            server = await start(kept)
            assert await digest(server, "m") == digest_of(content)
            assert any("serving the cached copy" in m for m in caplog.messages)
            assert (await server.manage("DELETE", "/models/m"))[0] == 200

    async def test_what_is_permitted_no_more_is_not_fetched_again(
        self,
        folder: Path,
        tmp_path: Path,
        files: FileServer,
        content: bytes,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        state = tmp_path / "state.json"
        kept = settings(folder, state_file=str(state), cache_dir=str(tmp_path / "cache"))
        url = files.add("/models/echo.model", content)
        async with running_servers(tmp_path) as start:
            assert (await post(await start(kept), url))[0] == 200
        connections = files.connections
        async with running_servers(tmp_path) as start:
            server = await start({**kept, "allowed_urls": ""})
            assert "m" not in server.names
        assert any("m cannot be registered again" in message for message in caplog.messages)
        assert files.connections == connections
        assert json.loads(state.read_bytes())["models"][0]["path"] == url


async def test_a_pattern_that_is_none_keeps_the_server_from_starting() -> None:
    message = r"allowed_urls: .https://\[. is not a regular expression"
    with pytest.raises(ConfigError, match=message):
        build_config([], {"allowed_urls": "https://["}, {})


async def test_the_command_line_may_name_any_location(
    folder: Path, tmp_path: Path, files: FileServer, content: bytes
) -> None:
    local = says(tmp_path / "local", "first")
    async with running_servers(tmp_path) as start:
        plain = {"cache_dir": str(tmp_path / "cache"), "watch": True, "watch_interval": 0.05}
        url = files.add("/anywhere", content)
        pinned = f"file://{folder}/store/echo.model#sha256={digest_of(content)}"
        lazy = {"load": "lazy"}
        server = await start(plain, a=(url, lazy), b=(pinned, lazy), c=(local, lazy))
        assert await server.ask("a", [1]) == (200, [1])
        assert server.servable("b").digest == digest_of(content)
        # What is remote is asked when it is loaded, and not watched like what is here.
        before = [server.servable(name) for name in "abc"]
        says(tmp_path / "local", "changed")
        await until(lambda: server.servable("c") is not before[2])
        assert [server.servable(name) for name in "ab"] == before[:2]
        assert len(files.seen) == 1
