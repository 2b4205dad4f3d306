"""Changes that come from files: watched archives, SIGHUP, and the state kept over a restart."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mms.config.build import Config, build_config
from mms.errors import ConfigError, MMSError
from mms.export.package import export_model
from tests.kit.server import RunningServer, ServableView, StartServer, fresh_client, running_servers
from tests.kit.waiting import until
from tests.management.stores import WAITS_FOR, Traces, make_store, move, read, register, says, write

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def loop_of_the_module() -> None:
    """Have the loop there before a test's open files are counted, whichever test is the first."""


def packed(folder: Path, text: str, load: str = "") -> Path:
    """Return an archive file whose service answers a text."""
    folder.mkdir()
    says(folder / "source", text, load)
    (folder / "source" / "MANIFEST.json").unlink()
    return export_model("m", folder / "source", Path("service.py"), folder).path


def is_unloaded(servable: ServableView) -> bool:
    return servable.state == "unloaded"


def replace_file(target: Path, source: Path) -> None:
    """Put a file in place of another in one step, as a careful deployment does."""
    copy = target.with_suffix(".new")
    shutil.copy(source, copy)
    os.replace(copy, target)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watching_server(folder: Path, start_shared: StartServer) -> RunningServer:
    target = packed(folder / "first", "first").rename(folder / "m.model")
    says(folder / "f", "first")
    return await start_shared({"watch": True, "watch_interval": 0.05}, m=target, f=folder / "f")


@pytest_asyncio.fixture(loop_scope="module")
async def watched(watching_server: RunningServer) -> AsyncIterator[RunningServer]:
    async with fresh_client(watching_server) as server:
        traces = Traces(server)
        yield server
        await until(lambda: len(traces.unpacked()) <= 1)
        await traces.settle()


class TestWatch:
    async def test_a_changed_archive_is_served_and_no_request_fails(
        self, watched: RunningServer, tmp_path: Path
    ) -> None:
        old = watched.servable("m")
        answers: list[Any] = []
        stopping = asyncio.Event()

        async def keep_asking() -> None:
            while not stopping.is_set():
                answers.append(await watched.ask("m", []))

        clients = [asyncio.create_task(keep_asking()) for _ in range(4)]
        target = old.source
        replace_file(target, packed(tmp_path / "second", "second"))
        await until(lambda: (200, "second") in answers)
        stopping.set()
        await asyncio.gather(*clients)
        assert {status for status, _ in answers} == {200}
        assert await watched.ask("m", []) == (200, "second")
        assert watched.servable("m").digest != old.digest
        # The counts go on.
        for counted in ("mms_requests_total", "mms_batch_size_sum"):
            assert await watched.metric(counted, model="m") > len(answers)
        await until(lambda: is_unloaded(old))

    async def test_a_change_that_cannot_be_loaded_leaves_the_old_one_and_says_why(
        self, watched: RunningServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        old = watched.servable("m")
        answer = await watched.ask("m", [])
        target = old.source
        replace_file(target, packed(tmp_path / "third", "", "raise ValueError('no weights')"))

        def said(text: str) -> bool:
            return any("cannot be loaded" in m and text in m for m in caplog.messages)

        await until(lambda: said("no weights"))
        write(target, b"cut short")
        await until(lambda: said("not a model archive"))
        assert watched.servable("m") == old
        assert await watched.ask("m", []) == answer
        assert (await watched.get("/ping"))[0] == 200
        replace_file(target, packed(tmp_path / "fourth", "fourth"))
        await until(lambda: watched.servable("m") != old)
        assert await watched.ask("m", []) == (200, "fourth")

    async def test_an_archive_that_is_gone_is_still_served(
        self, watched: RunningServer, tmp_path: Path
    ) -> None:
        old = watched.servable("m")
        answer = await watched.ask("m", [])
        target = old.source
        kept = move(target, target.with_suffix(".kept"))
        folder = watched.servable("f")
        says(folder.source, "still watched")
        await until(lambda: watched.servable("f") != folder)
        assert watched.servable("m") == old
        assert await watched.ask("m", []) == answer
        move(kept, target)

    async def test_a_changed_file_of_a_folder_is_served(self, watched: RunningServer) -> None:
        old = watched.servable("f")
        says(old.source, "changed")
        await until(lambda: watched.servable("f") != old)
        assert await watched.ask("f", []) == (200, "changed")
        await until(lambda: is_unloaded(old))
        assert (old.source / "service.py").exists()


class TestSighup:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "mms.yaml"

    @pytest_asyncio.fixture(loop_scope="module")
    async def server(self, tmp_path: Path, file: Path) -> AsyncIterator[RunningServer]:
        for text in ("a", "b", "c"):
            says(tmp_path / text, text)
        async with running_servers(tmp_path) as start:

            def reread() -> Config:
                return build_config([], {"work_dir": str(tmp_path / "work")}, {}, file)

            yield await start(
                {"management_port": 0, "model_store": str(tmp_path)},
                reread,
                a=(tmp_path / "a", {"load": "lazy"}),
                b=(tmp_path / "b", {"load": "lazy"}),
            )

    def write(self, file: Path, **models: Any) -> None:
        """Write a configuration; models load with their first request if it does not say else."""
        folder = file.parent
        document = {
            "models": {
                name: {"path": str(folder / name), "workers": 1, "load": "lazy", **settings}
                for name, settings in models.items()
            }
        }
        file.write_text(json.dumps(document))

    async def reload(self, server: RunningServer, caplog: pytest.LogCaptureFixture) -> str:
        """Have the configuration read again and return what was logged at the end."""
        caplog.clear()
        caplog.set_level("INFO")
        server.request_reload()

        def ends() -> list[str]:
            return [m for m in caplog.messages if "configuration" in m]

        await until(ends)
        return ends()[-1]

    async def test_models_come_go_and_change_as_the_file_says(
        self, server: RunningServer, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        a, b = server.servable("a"), server.servable("b")
        self.write(file, a={"batch_size": 4}, c={})
        said = await self.reload(server, caplog)
        assert server.names == {"a", "c"}
        assert await server.ask("a", []) == (200, "a")
        assert await server.ask("c", []) == (200, "c")
        assert (await server.ask("b", []))[0] == 404
        assert server.servable("a").batch_size == 4
        assert server.servable("a") != a
        assert "a: loaded with its new settings" in said
        assert "b: unregistered" in said
        assert "c: registered" in said
        await until(lambda: is_unloaded(a) and is_unloaded(b))
        kept = server.servable("a")
        assert "no changes" in await self.reload(server, caplog)
        assert server.servable("a") == kept

    async def test_a_file_that_is_wrong_changes_nothing(
        self, server: RunningServer, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        kept = server.servables()
        for text in ("models: [", "modles: {}", "models: {a: {path: a, bach_size: 1}}"):
            write(file, text)
            assert "not applied" in await self.reload(server, caplog)
        assert server.servables() == kept
        assert await server.ask("a", []) == (200, "a")

    async def test_a_model_that_does_not_load_keeps_no_other_and_not_readiness_from_going_on(
        self, server: RunningServer, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        says(file.parent / "aaa", "", "raise ValueError('no weights')")
        self.write(file, aaa={"load": "eager"}, a={}, b={"workers": 2}, c={})
        await self.reload(server, caplog)
        assert "no weights" in caplog.text
        assert await server.ask("c", []) == (200, "c")
        # It sleeps on, and wakes up as it is to be now.
        assert await server.ask("b", []) == (200, "b")
        await until(lambda: len(server.servable("b").pids) == 2)
        assert (await server.get("/ping"))[0] == 200
        # The next attempt finds it mended.
        says(file.parent / "aaa", "mended")
        await self.reload(server, caplog)
        assert await server.ask("aaa", []) == (200, "mended")

    async def test_a_change_that_does_not_load_is_tried_again_the_next_time(
        self, server: RunningServer, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = file.parent / "a"
        assert await server.ask("a", []) == (200, "a")
        says(source, "", "raise ValueError('no weights')")
        self.write(file, a={"batch_size": 4}, b={})
        await self.reload(server, caplog)
        assert await server.ask("a", []) == (200, "a")
        says(source, "mended")
        await self.reload(server, caplog)
        assert await server.ask("a", []) == (200, "mended")

    async def test_a_model_that_loads_does_not_flip_readiness(
        self, server: RunningServer, file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        go = tmp_path / "go"
        says(tmp_path / "c", "c", WAITS_FOR.format(path=str(go)))
        self.write(file, a={}, b={}, c={"load": "eager"})
        server.request_reload()
        await until(lambda: "c" in server.names)
        assert (await server.get("/ping"))[0] == 200
        go.touch()
        await until(lambda: server.servable("c").is_ready)
        assert await server.ask("c", []) == (200, "c")
        # From now on, it counts.
        await until(lambda: server.servable("c").is_startup)

    async def test_models_of_the_management_api_stay(
        self, server: RunningServer, file: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await register(server, "mine", "c")
        self.write(file, a={}, b={})
        await self.reload(server, caplog)
        assert await server.ask("mine", []) == (200, "c")


class TestStateFile:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "state.json"

    def settings(self, file: Path, store: Path) -> dict[str, Any]:
        return {"management_port": 0, "model_store": str(store), "state_file": str(file)}

    async def test_registrations_settings_defaults_and_weights_outlive_the_server(
        self, start_server: StartServer, tmp_path: Path, file: Path
    ) -> None:
        store = make_store(tmp_path)
        settings = self.settings(file, store)
        first = await start_server(settings, start=(store / "v3", {"load": "lazy"}))
        await register(first, "m", "v1", batch_size=3)
        await register(first, "m", "v2", version="2", workers=1)
        await register(first, "gone", "v1", workers=0)
        await register(first, "empty", "v1", workers=0)
        await first.manage("PUT", "/models/m/1/set-default")
        await first.manage("PUT", "/models/m/2", {"min_worker": 2, "queue_size": 7})
        traffic = {"weights": {"1": 1, "2": 3}, "sticky_header": "X-User", "shadow": "2"}
        assert (await first.manage("PUT", "/models/m/traffic", traffic))[0] == 200
        await first.manage("DELETE", "/models/gone")
        await first.stop()
        second = await start_server(settings, start=(store / "v3", {"load": "lazy"}))
        traffic_now, versions = second.traffic("m"), second.versions("m")
        assert second.default("m") == "1"
        assert traffic_now.weights == {"1": 1, "2": 3}
        assert (traffic_now.sticky_header, traffic_now.shadow) == ("X-User", "2")
        assert await second.ask("m/1", []) == (200, "v1")
        assert await second.ask("m/2", []) == (200, "v2")
        assert versions["1"].settings.batch_size == 3
        assert versions["2"].queue_size == 7
        assert len(versions["2"].pids) == 2
        assert second.servable("empty").pids == []
        assert "gone" not in second.names
        # What the command line names is its own business.
        names = {entry["name"] for entry in read(file)["models"]}
        assert names == {"m", "empty"}

    async def test_a_model_that_does_not_load_any_more_is_logged_and_not_forgotten(
        self,
        start_server: StartServer,
        tmp_path: Path,
        file: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        store = make_store(tmp_path)
        settings = self.settings(file, store)
        first = await start_server(settings)
        await register(first, "a", "v1")
        await register(first, "b", "v2")
        await first.stop()
        away = move(store / "v1", tmp_path / "away")
        second = await start_server(settings)
        assert any(m.startswith("a cannot be registered again") for m in caplog.messages)
        assert await second.ask("b", []) == (200, "v2")
        assert (await second.get("/ping"))[0] == 200
        # A change of something else does not make the file forget it.
        assert (await second.manage("DELETE", "/models/b"))[0] == 200
        await second.stop()
        move(away, store / "v1")
        third = await start_server(settings)
        assert await third.ask("a", []) == (200, "v1")
        assert "b" not in third.names

    async def test_a_setting_that_happens_to_be_the_default_still_outweighs_the_archives(
        self, start_server: StartServer, tmp_path: Path, file: Path
    ) -> None:
        store = tmp_path / "store"
        says(store / "m", "m")
        manifest = json.loads((store / "m" / "MANIFEST.json").read_text())
        manifest["Serving"] = {"batch_size": 4}
        (store / "m" / "MANIFEST.json").write_text(json.dumps(manifest))
        settings = self.settings(file, store)
        first = await start_server(settings)
        await register(first, "m", "m", workers=0, batch_size=1)
        await register(first, "n", "m", workers=0)
        assert first.servable("m").batch_size == 1
        assert first.servable("n").batch_size == 4
        await first.stop()
        second = await start_server(settings)
        assert second.servable("m").batch_size == 1
        assert second.servable("n").batch_size == 4

    @pytest.mark.parametrize("place", ["missing/state.json", "file/state.json", "folder"])
    async def test_a_file_that_cannot_be_written_costs_nothing_but_a_line_in_the_log(
        self,
        start_server: StartServer,
        tmp_path: Path,
        place: str,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        store = tmp_path / "store"
        says(store / "m", "m")
        (tmp_path / "file").touch()
        path = tmp_path / place
        server = await start_server(self.settings(path, store))
        if place == "folder":
            path.mkdir()
        await register(server, "m", "m", workers=0)
        assert any(m.startswith(f"state_file {path} cannot be written") for m in caplog.messages)

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "{",
            "[]",
            "{}",
            '{"models": 1, "traffic": {}}',
            '{"models": "abc", "traffic": {}}',
            '{"models": {}, "traffic": []}',
            '{"models": [1], "traffic": {}}',
            '{"models": [{"name": "m"}], "traffic": {}}',
            '{"models": [], "traffic": []}',
            '{"models": [], "traffic": {"m": 1}}',
            '{"models": [], "traffic": {"m": {}}}',
            '{"models": [], "traffic": {"m": {"default": "1", "weights": {"1": "x"}, '
            '"sticky_header": "", "shadow": ""}}}',
            '{"models": [{"name": 1, "version": "1", "path": "p", "size": 1, "settings": {}}], '
            '"traffic": {}}',
            '{"models": [{"name": "m", "version": "1", "path": "p", "size": "x", "settings": {}}],'
            ' "traffic": {}}',
            '{"models": [{"name": "m", "version": "1", "path": "p", "size": 1, "settings": []}], '
            '"traffic": {}}',
        ],
    )
    async def test_a_broken_file_keeps_the_server_from_starting(
        self, start_server: StartServer, file: Path, text: str
    ) -> None:
        write(file, text)
        with pytest.raises(ConfigError, match=r"state_file .*state\.json"):
            await start_server({"state_file": str(file)})


class TestStart:
    async def test_a_model_of_the_command_line_that_does_not_load_fails_the_start(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        says(tmp_path / "good", "good")
        says(tmp_path / "bad", "", "raise ValueError('no weights')")
        with pytest.raises(MMSError, match="no weights") as caught:
            await start_server(good=tmp_path / "good", bad=tmp_path / "bad")
        assert caught.value.detail is not None
        assert "service.py" in caught.value.detail.traceback

    async def test_a_lazy_model_is_ready_from_the_start_and_not_once_it_has_failed(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        says(tmp_path / "bad", "", "raise ValueError('no weights')")
        server = await start_server(bad=(tmp_path / "bad", {"load": "lazy"}))
        assert (await server.get("/ping"))[0] == 200
        assert (await server.ask("bad", []))[0] == 503
        status, document = await server.get("/health/ready")
        assert status == 503
        assert document["models"]["bad/1"] == {"ready": False, "state": "failed"}

    async def test_stopping_while_a_registration_loads_leaves_nothing(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        store = tmp_path / "store"
        says(store / "endless", "", WAITS_FOR.format(path=str(tmp_path / "never")))
        server = await start_server({"management_port": 0, "model_store": str(store)})
        parameters = {
            "url": "endless",
            "model_name": "m",
            "initial_workers": 1,
            "synchronous": False,
        }
        assert (await server.manage("POST", "/models", parameters))[0] == 202
        await until(lambda: "m" in server.names)
        servable = server.servable("m")
        await server.stop()
        assert servable.pids == []


async def test_new_settings_are_not_lost_to_a_reload_of_the_files_at_the_same_moment(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = says(tmp_path / "m", "first")
    server = await start_server(m=folder)
    flags = {"port": 0, "management_port": -1, "workers": 1, "queue_size": 77}
    config = build_config([("m", str(folder))], flags, {})
    begun, go = tmp_path / "begun", tmp_path / "go"
    load = f"open({str(begun)!r}, 'w').close(); " + WAITS_FOR.format(path=str(go))
    says(folder, "second", load.replace("; ", "\n"))
    reloading = asyncio.create_task(server.reload("m"))
    await until(begun.exists)
    # The reload has read its settings and loads on; the new ones come meanwhile.
    applying = asyncio.create_task(server.apply(config))
    await asyncio.sleep(0)
    go.touch()
    await asyncio.gather(reloading, applying)
    assert server.servable("m").queue_size == 77
