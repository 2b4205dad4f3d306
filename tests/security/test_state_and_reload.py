"""What is read at start and on SIGHUP: files that others wrote, and files that are half written."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mms.config.build import Config, build_config
from mms.errors import ConfigError
from mms.serving.state import SavedTraffic, State, read_state, write_state
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until
from tests.management.stores import says

EMPTY: dict[str, Any] = {"models": [], "traffic": {}}


def entry(name: str, path: Path, **settings: Any) -> dict[str, Any]:
    return {
        "name": name,
        "version": "1",
        "path": str(path),
        "size": None,
        "settings": {"workers": 1, "load": "lazy", **settings},
    }


class TestV20:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return tmp_path / "state.json"

    def test_v20_a_link_in_the_way_is_not_followed(self, tmp_path: Path, file: Path) -> None:
        victim = tmp_path / "victim"
        victim.write_text("precious")
        for name in ("state.json.new", "state.json.tmp", ".state.json.new"):
            (tmp_path / name).symlink_to(victim)
        write_state(str(file), State([], {}))
        assert victim.read_text() == "precious"
        assert read_state(str(file)) == State([], {})

    def test_v20_a_file_in_the_way_does_not_open_the_state_to_others(
        self, tmp_path: Path, file: Path
    ) -> None:
        planted = tmp_path / "state.json.new"
        planted.touch()
        planted.chmod(0o666)
        write_state(str(file), State([], {}))
        assert file.stat().st_mode & 0o777 == 0o600

    def test_v20_a_state_file_that_is_a_link_is_replaced_not_written_through(
        self, tmp_path: Path, file: Path
    ) -> None:
        victim = tmp_path / "victim"
        victim.write_text(json.dumps(EMPTY))
        file.symlink_to(victim)
        changed = State([], {"m": SavedTraffic("", {}, "", "")})
        write_state(str(file), changed)
        assert json.loads(victim.read_text()) == EMPTY
        assert not file.is_symlink()

    @pytest.mark.parametrize("mode", [0o666, 0o602, 0o620, 0o777])
    @pytest.mark.parametrize("is_link", [False, True])
    def test_v20_what_others_may_write_is_refused(
        self, tmp_path: Path, file: Path, mode: int, is_link: bool
    ) -> None:
        real = tmp_path / "real" if is_link else file
        real.write_text(json.dumps(EMPTY))
        real.chmod(mode)
        if is_link:
            file.symlink_to(real)
        with pytest.raises(ConfigError, match="written by other users"):
            read_state(str(file))
        real.chmod(0o644)
        assert read_state(str(file)) == State([], {})

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
    def test_v20_what_another_user_owns_is_refused(self, tmp_path: Path, file: Path) -> None:
        file.write_text(json.dumps(EMPTY))
        os.chown(file, 65534, 65534)
        with pytest.raises(ConfigError, match="written by other users"):
            read_state(str(file))
        os.chown(file, 0, 0)
        link = tmp_path / "link"
        link.symlink_to(file)
        os.lchown(link, 65534, 65534)
        with pytest.raises(ConfigError, match="written by other users"):
            read_state(str(link))

    def test_v20_a_pipe_does_not_hold_the_start_up(self, file: Path) -> None:
        os.mkfifo(file, 0o600)
        with pytest.raises(ConfigError, match="is not a file"):
            read_state(str(file))

    async def test_v20_it_never_names_code_and_keeps_within_bounds(
        self,
        start_server: StartServer,
        tmp_path: Path,
        file: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        store, mark = tmp_path / "store", tmp_path / "ran"
        says(store / "good", "good")
        evil = tmp_path / "evil.py"
        evil.write_text(f"open({str(mark)!r}, 'w').close()\n")
        says(tmp_path / "outside", "", f"open({str(mark)!r}, 'w').close()")
        entries = [
            entry("named", store / "good", service=str(evil)),
            entry("outside", tmp_path / "outside", load="eager"),
            entry("climbs", store / ".." / "outside", load="eager"),
            entry("linked", store / "link", load="eager"),
            entry("large", store / "good", max_workers=10**9),
            {**entry("crowd", store / "good"), "size": 10**9},
        ]
        (store / "link").symlink_to(tmp_path / "outside")
        file.write_text(json.dumps({"models": entries, "traffic": {}}))
        file.chmod(0o600)
        server = await start_server(
            {"management_port": 0, "model_store": str(store), "state_file": str(file)}
        )
        assert sorted(server.names) == ["named"]
        assert await server.ask("named", []) == (200, "good")
        assert "named: the service file in the state file is ignored" in caplog.text
        assert not mark.exists()
        for name in ("outside", "climbs", "linked", "large", "crowd"):
            assert f"{name} cannot be registered again" in caplog.text


Reload = Callable[[], Awaitable[str]]


class TestV19:
    async def serve(
        self, start_server: StartServer, folder: Path, **models: Any
    ) -> tuple[RunningServer, Path]:
        says(folder / "store" / "m", "m")
        file = folder / "mms.yaml"
        file.write_text("{}")

        def reread() -> Config:
            return build_config([], {"work_dir": str(folder / "work")}, {}, file)

        settings = {"management_port": 0, "model_store": str(folder / "store")}
        return await start_server(settings, reread, **models), file

    async def reload(self, server: RunningServer, caplog: pytest.LogCaptureFixture) -> str:
        caplog.clear()
        caplog.set_level(logging.INFO)
        server.request_reload()
        await until(lambda: [m for m in caplog.messages if "configuration" in m])
        return next(m for m in caplog.messages if "configuration" in m)

    async def test_v19_a_file_that_leaves_no_model_is_refused(
        self, start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        model = (tmp_path / "store" / "m", {"load": "lazy"})
        server, file = await self.serve(start_server, tmp_path, m=model)
        for text in ("", "{}", "models: {}", "# port: 1\n", "workers: 2\n"):
            file.write_text(text)
            assert "not applied: it names no model" in await self.reload(server, caplog)
            assert "m" in server.names
        assert (await server.get("/ping"))[0] == 200
        assert await server.ask("m", []) == (200, "m")

    async def test_v19_not_ready_once_all_models_are_gone(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        model = (tmp_path / "store" / "m", {"load": "lazy"})
        server, _ = await self.serve(start_server, tmp_path, m=model)
        assert (await server.get("/ping"))[0] == 200
        assert (await server.manage("DELETE", "/models/m"))[0] == 200
        for path in ("/ping", "/health/ready", "/v2/health/ready"):
            assert (await server.get(path))[0] == 503, path
        assert (await server.get("/health/live"))[0] == 200
        # Another one in its place will do.
        document = {"url": "m", "model_name": "other", "initial_workers": 0}
        assert (await server.manage("POST", "/models", document))[0] == 200
        assert (await server.get("/ping"))[0] == 200

    async def test_v19_a_server_that_waits_for_its_models_is_ready(
        self, start_server: StartServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """As SageMaker starts it: none is configured, so none is missing."""
        server, file = await self.serve(start_server, tmp_path)
        assert (await server.get("/ping"))[0] == 200
        file.write_text("")
        assert "no changes" in await self.reload(server, caplog)
        await asyncio.sleep(0)
        assert (await server.get("/ping"))[0] == 200
