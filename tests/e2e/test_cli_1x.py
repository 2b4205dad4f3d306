"""The commands as scripts and images of MMS 1.x start them.

What 1.1.11 does was read and run; where this server does otherwise, docs/migration.md says so.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from mms.cli.background import MARK
from tests.e2e.test_cli import LIMIT_S, ask, last_line, wait_for
from tests.kit.archives import make_archive

OK = """\
def handle(data, context):
    return None if data is None else [{"from": "1.x"}] * len(data)
"""


class Shell:
    """A user's session: a folder to stand in, a temporary folder, and an environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.ports = ["--port", str(self.port), "--management-port", "-1", "--workers", "1"]
        clean = {name: text for name, text in os.environ.items() if not name.startswith("MMS_")}
        root = str(Path(__file__).parents[2])
        self.environment = {**clean, "TMPDIR": str(self.temporary), "PYTHONPATH": root}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self, *args: str, program: str = "main") -> subprocess.CompletedProcess[str]:
        """Run a command that ends, though what it started may not."""
        log = self.folder / "log"
        with log.open("w+") as output:
            done = subprocess.run(
                self.command(*args, program=program),
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=LIMIT_S,
                check=False,
            )
        return subprocess.CompletedProcess(done.args, done.returncode, log.read_text(), "")

    def command(self, *args: str, program: str = "main") -> list[str]:
        code = f"import sys; from mms.cli.serve import {program}; {program}()"
        return [sys.executable, "-c", code, *args]

    def servers(self) -> list[psutil.Process]:
        """Find the server as SageMaker's toolkits do: the word is one of its arguments.

        Its port tells it from those of other tests.
        """
        return [
            process
            for process in psutil.process_iter(["cmdline"])
            if {MARK, str(self.port)} <= set(process.info["cmdline"] or [])
        ]

    def is_up(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/ping", timeout=5):
            return True
        return False


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.run("--stop")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model store: an archive of 0.4, a folder with a manifest, and what is no model."""
    store = tmp_path_factory.mktemp("store")
    make_archive(store, "echo")
    folder = store / "unpacked"
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "MAR-INF" / "MANIFEST.json").write_text(
        '{"specificationVersion": "1.0", "runtime": "python",'
        ' "model": {"modelName": "inner", "handler": "svc:handle"}}'
    )
    (folder / "svc.py").write_text(OK)
    (store / ".hidden").mkdir()
    (store / "no-model").mkdir()
    (store / "broken.mar").write_bytes(b"PK")
    (store / "notes.txt").write_text("")
    return store


def predict(shell: Shell, model: str) -> Any:
    return ask(f"{shell.url}/predictions/{model}", [1])


def test_start_returns_and_leaves_a_server_that_stop_ends(shell: Shell, store: Path) -> None:
    started = shell.run("--start", "--models", f"m={store}/echo.model", *shell.ports)
    assert started.returncode == 0, started.stdout
    assert "1.x" in last_line(started.stdout)
    wait_for(shell.is_up)
    assert predict(shell, "m") == [1]

    [server] = shell.servers()
    file = shell.temporary / ".model_server.pid"
    # 1.x's own script reads the first line.
    assert int(file.read_text().splitlines()[0]) == server.pid
    children = server.children(recursive=True)
    assert children
    assert not any(MARK in child.cmdline() for child in children)

    again = shell.run("--start", *shell.ports)
    assert again.returncode == 2
    assert f"a server runs already, as process {server.pid}; end it with --stop" in again.stdout

    stopped = shell.run("--stop")
    assert (stopped.returncode, "1.x" in last_line(stopped.stdout)) == (0, True)
    assert not any(process.is_running() for process in [server, *children])
    assert not file.exists()
    assert not shell.is_up()

    nothing = shell.run("--stop")
    assert (nothing.returncode, "no server runs" in nothing.stdout) == (0, True)


def test_a_start_that_fails_says_so(shell: Shell) -> None:
    refused = shell.run("--start", "--batch-size", "0")
    assert (refused.returncode, shell.servers()) == (2, [])
    assert "batch_size: must be at least 1" in last_line(refused.stdout)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", shell.port))
        taken.listen()
        failed = shell.run("--start", *shell.ports)
    assert failed.returncode == 4
    assert "cannot listen on" in last_line(failed.stdout)
    assert not (shell.temporary / ".model_server.pid").exists()


def test_the_file_of_a_dead_or_another_process_does_not_count(shell: Shell, store: Path) -> None:
    file = shell.temporary / ".model_server.pid"
    # This very process: it lives, and is no server.
    file.write_text(str(os.getpid()))
    assert "no server runs" in shell.run("--stop").stdout
    file.write_text("rubbish")
    args = ["--start", "--models", f"m={store}/echo.model", *shell.ports]
    assert shell.run(*args).returncode == 0
    assert len(shell.servers()) == 1


def test_multi_model_server_serves_the_store_beside_what_is_broken(
    shell: Shell, store: Path
) -> None:
    # 1.x: a warning for each that does not load, and neither means --start.
    args = ["--model-store", str(store), "--models", "ALL", *shell.ports]
    started = shell.run(*args, program="multi_model_server")
    assert started.returncode == 0, started.stdout
    wait_for(shell.is_up)
    assert predict(shell, "echo") == [1]
    assert predict(shell, "inner") == {"from": "1.x"}
    assert "broken.mar" in started.stdout
    assert "no-model" in started.stdout
    assert ".hidden" not in started.stdout
    assert "notes.txt" not in started.stdout


def test_a_configuration_is_found_in_the_current_folder(shell: Shell, store: Path) -> None:
    (shell.folder / "config.properties").write_text(
        f"# as in 1.x's containers\n"
        f"inference_address=http://127.0.0.1:$$PORT$$\n"
        f"management_address=http://127.0.0.1:$$PORT$$\n"
        f"model_store={store}\n"
        f"load_models=e=echo.model,no-such.mar,x=broken.mar\n"
        f"default_workers_per_model=1\n"
        f"number_of_netty_threads=4\n"
    )
    shell.environment["PORT"] = str(shell.port)
    started = shell.run("--start")
    assert started.returncode == 0, started.stdout
    wait_for(shell.is_up)
    assert predict(shell, "e") == [1]
    assert "number_of_netty_threads is ignored" in started.stdout
    assert "a model is left out: " in started.stdout
    assert "no-such.mar" in started.stdout
    assert "x does not load and is left out: " in started.stdout
    with urllib.request.urlopen(f"{shell.url}/models", timeout=LIMIT_S) as response:
        assert b'"e"' in response.read()


def test_without_an_option_of_1x_the_current_folder_configures_nothing(shell: Shell) -> None:
    (shell.folder / "config.properties").write_text("job_queue_size=77\n")
    assert "queue_size: 77" not in shell.run("--print-config").stdout
    assert "queue_size: 77" in shell.run("--print-config", "--start").stdout
    shell.environment["MMS_CONFIG_FILE"] = "config.properties"
    printed = shell.run("--print-config").stdout
    assert "queue_size: 77  # config.properties: job_queue_size" in printed


def test_foreground_serves_in_the_process_itself(shell: Shell, store: Path) -> None:
    args = ["--start", "--foreground", "--log-config", "log4j2.xml", "--vmargs", "-Xmx1g"]
    log = shell.folder / "foreground"
    with log.open("wb") as output:
        process = subprocess.Popen(
            shell.command(*args, "--models", f"m={store}/echo.model", *shell.ports),
            cwd=shell.folder,
            env=shell.environment,
            stdout=output,
            stderr=output,
        )
    try:
        wait_for(shell.is_up)
        assert [server.pid for server in shell.servers()] == [process.pid]
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    finally:
        process.kill()
        process.wait()
    assert "--log-config log4j2.xml is ignored" in log.read_text()
    assert "--vmargs is ignored" in log.read_text()
    assert not (shell.temporary / ".model_server.pid").exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--start", "--stop"], "exclude each other, as in 1.x"),
        (["--restart"], "use --stop and then --start, as with 1.x"),
        (["--config", "c.properties"], "for a config.properties of 1.x, use --mms-config c.prop"),
        (["--mms-config", "no-such"], "no-such: cannot be read: No such file or directory"),
        (["--mms-config", "sagemaker"], "Invalid Environment Variable SAGEMAKER_"),
        (["--models", "ALL"], "name it with --model-store"),
        (["dev"], "name the folder of the model"),
        (["--st"], "ambiguous: it could be --start, --state-file, --stop"),
    ],
)
def test_a_mistake_is_one_clear_line(shell: Shell, args: list[str], message: str) -> None:
    result = shell.run(*args)
    assert result.returncode == 2
    assert message in last_line(result.stdout)
    assert not (shell.temporary / ".model_server.pid").exists()


def test_a_model_may_be_a_plain_word(shell: Shell, store: Path) -> None:
    printed = shell.run(f"{store}/echo.model", "b=b.model", "--print-config").stdout
    assert "\n  echo:\n" in printed
    assert "\n  b:\n" in printed


def test_a_folder_without_a_manifest_is_named_after_itself(shell: Shell, tmp_path: Path) -> None:
    # 1.x: the file's name, and _ for each character that is no word character.
    folder = tmp_path / "my-model v1"
    folder.mkdir()
    (folder / "svc.py").write_text(OK)
    printed = shell.run(str(folder), "--handler", "svc:handle", "--print-config").stdout
    assert "\n  my_model_v1:\n" in printed


def test_the_old_exporter_names_the_new_ones() -> None:
    code = "from mms.cli.export import multi_model_export; multi_model_export()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "model-archiver" in done.stderr
    assert "mxnet-model-export" in done.stderr
