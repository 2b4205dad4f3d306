"""What anybody may ask for often: metrics; and what messages and banners show."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

from mms.cli.terminal import printable, shell_word
from mms.config.settings import ServerSettings
from mms.errors import DownloadFailed, ManifestError, ModelNotFound, VersionNotFound
from mms.serving.archives import Fetching
from mms.serving.registry import Registry
from mms.telemetry.counters import ServableMetrics, ServerMetrics
from mms.telemetry.prometheus import Exporter, ServableSnapshot
from tests.kit.fileserver import file_server
from tests.kit.server import StartServer
from tests.kit.waiting import until
from tests.management.stores import says


class Counted:
    """A source that counts how often it is asked, and takes its time by the clock it is given."""

    def __init__(self, cost_s: float = 0.0) -> None:
        self.asked = 0
        self.now = 100.0
        self._cost_s = cost_s

    def snapshots(self) -> Iterable[ServableSnapshot]:
        self.asked += 1
        self.now += self._cost_s
        metrics = ServableMetrics("m", "1")
        return [ServableSnapshot(metrics, "ready", ["ready"], 0, 0, 0, {}, [10, 20])]

    def clock(self) -> float:
        return self.now


class TestV13:
    def test_v13_metrics_are_rendered_once_a_second_however_many_ask(self) -> None:
        source = Counted()
        exporter = Exporter(source, ServerMetrics(), 1.0, source.clock)
        for _ in range(1_000):
            exporter.render()
        assert source.asked == 1
        source.now += 0.99
        exporter.render()
        assert source.asked == 1
        source.now += 0.01
        exporter.render()
        assert source.asked == 2

    def test_v13_with_many_models_it_has_a_twentieth_of_the_loop(self) -> None:
        source = Counted(cost_s=0.6)
        exporter = Exporter(source, ServerMetrics(), 1.0, source.clock)
        started = source.now
        while source.now < started + 600:
            exporter.render()
            source.now += 0.01
        assert source.asked * 0.6 <= 600 / 20 + 1

    async def test_v13_clients_that_loop_on_it_get_the_same_text(
        self, start_server: StartServer
    ) -> None:
        server = await start_server(metrics_age_s=3_600.0)
        texts = {await server.metrics() for _ in range(50)}
        assert len(texts) == 1


class TestV30:
    def test_v30_workers_are_numbered_and_no_pid_is_shown(self) -> None:
        text = Exporter(Counted(), ServerMetrics()).render().decode()
        found = re.findall(r"^mms_worker_memory_bytes\{(.*)\} (\S+)$", text, re.MULTILINE)
        assert found == [
            ('model="m",version="1",worker="0"', "10.0"),
            ('model="m",version="1",worker="1"', "20.0"),
        ]
        assert "pid=" not in text

    async def test_v30_a_404_lists_few_names(
        self, start_server: StartServer, tmp_path: Path
    ) -> None:
        says(tmp_path / "m", "m")
        models = {f"model{n:02}": (tmp_path / "m", {"load": "lazy"}) for n in range(12)}
        server = await start_server(**models)
        with pytest.raises(ModelNotFound, match=r"model00, .*model07 and 4 more$") as caught:
            server.versions("none")
        assert "model08" not in str(caught.value)
        with pytest.raises(VersionNotFound, match=r"its versions: 1$"):
            server.servable("model00", "2")
        with pytest.raises(ModelNotFound, match="loaded models: none"):
            Registry().model("x")


HOSTILE = [
    "'; touch /tmp/owned; echo '",
    "$(id)",
    "`id`",
    "a\nb",
    "\x1b]0;owned\x07",
    "\u202eab",
    "\0",
]


class TestV25:
    @pytest.mark.parametrize("text", HOSTILE)
    def test_v25_a_word_for_the_shell_stays_one_word(self, text: str) -> None:
        word = shell_word(text)
        assert word.isprintable()
        [found] = shlex.split(word)
        assert found == "".join(c if c.isprintable() else "?" for c in text)
        said = subprocess.run(["sh", "-c", f"printf %s {word}"], capture_output=True, check=True)
        assert said.stdout.decode() == found

    @pytest.mark.parametrize("text", HOSTILE)
    def test_v25_a_message_has_nothing_that_a_terminal_obeys(self, text: str) -> None:
        assert all(c.isprintable() or c in "\n\t" for c in printable(text))

    @pytest.mark.parametrize("text", HOSTILE)
    async def test_v25_the_banner_of_a_hostile_archive_is_one_harmless_command(
        self,
        start_server: StartServer,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        text: str,
    ) -> None:
        folder = tmp_path / "m"
        says(folder, "m")
        manifest = json.loads((folder / "MANIFEST.json").read_text())
        (folder / "sample.json").write_text("[1]")
        sample = {"file": "sample.json", "content_type": f"application/json{text}"}
        manifest["Serving"] = {"sample": sample}
        (folder / "MANIFEST.json").write_text(json.dumps(manifest))
        try:
            server = await start_server(m=(folder, {"load": "lazy"}))
        except ManifestError:
            # Refused earlier is as good.
            return
        server.announce()
        banner = capsys.readouterr().err
        assert all(c.isprintable() or c == "\n" for c in banner)
        [line] = [line for line in banner.splitlines() if "curl -X POST" in line]
        words = shlex.split(line)
        assert words[:3] == ["curl", "-X", "POST"]
        assert len(words) == 8


class TestV28:
    async def test_v28_a_slow_host_does_not_hold_all_downloads(self, tmp_path: Path) -> None:
        """Two downloads from it are on their way, ten more wait; another host is served."""
        settings = ServerSettings(
            cache_dir=str(tmp_path), allowed_urls=("http://.*",), allow_private_urls=True
        )
        fetching = Fetching(settings)
        going_on = threading.Event()
        with file_server() as slow, file_server() as fast:

            def hold(handler: object) -> None:
                going_on.wait(60)

            urls = [slow.add(f"/{n}.model", b"") for n in range(12)]
            for n in range(12):
                slow.odd[f"/{n}.model"] = hold
            waiting = [asyncio.create_task(fetching.fetch(url, is_trusted=False)) for url in urls]
            try:
                await until(lambda: slow.connections >= 2)
                path = await fetching.fetch(fast.add("/a.model", b"fast"), is_trusted=False)
                assert path.read_bytes() == b"fast"
                assert slow.connections == 2
            finally:
                for task in waiting:
                    task.cancel()
                going_on.set()
                await asyncio.gather(*waiting, return_exceptions=True)
        await _threads_end()

    async def test_v28_a_download_has_a_deadline_unless_the_operator_asked(
        self, tmp_path: Path
    ) -> None:
        settings = ServerSettings(
            cache_dir=str(tmp_path), allowed_urls=("http://.*",), allow_private_urls=True
        )
        going_on = threading.Event()
        with file_server() as files:
            url = files.add("/a.model", b"")

            def hold(_: object) -> None:
                going_on.wait(60)

            files.odd["/a.model"] = hold
            fetching = Fetching(settings, deadline_s=0.05)
            trusted = asyncio.create_task(fetching.fetch(url, is_trusted=True))
            with pytest.raises(DownloadFailed, match=r"did not finish within 0.05 s; repeat"):
                await fetching.fetch(url, is_trusted=False)
            assert not trusted.done()
            trusted.cancel()
            going_on.set()
            await asyncio.gather(trusted, return_exceptions=True)
        await _threads_end()


async def _threads_end() -> None:
    await until(lambda: not any(t.name == "fetch" for t in threading.enumerate()))
