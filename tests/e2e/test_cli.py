"""The installed commands as a user runs them: flags, signals, exit statuses, what they print."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from tests.kit.archives import make_archive, make_folder, write_linear

LIMIT_S = 60.0
#: For servers that are not told another one: somebody else may listen on the default port.
ANY_MANAGEMENT_PORT = {"MMS_MANAGEMENT_PORT": "0"}


def wait_for(condition: Callable[[], Any]) -> Any:
    """Wait until a condition holds, and return what it gave."""
    deadline = time.monotonic() + LIMIT_S
    pause = threading.Event()
    while not (value := condition()):
        assert time.monotonic() < deadline
        pause.wait(0.01)
    return value


class Command:
    """A running server command."""

    def __init__(self, folder: Path, *args: str, environment: dict[str, str] | None = None) -> None:
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mms.cli.serve", "--port", "0", "--workers", "1", *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={
                    **os.environ,
                    **ANY_MANAGEMENT_PORT,
                    "MMS_WORK_DIR": str(folder / "work"),
                    **(environment or {}),
                },
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self.log.read_text()

    def url(self) -> str:
        """Wait until the server has announced itself."""

        def announced() -> str:
            assert self.process.poll() is None, self.output
            match = re.search(r"listening on (http://\S+)\n", self.output)
            return match[1] if match else ""

        return str(wait_for(announced))

    def port(self) -> int:
        return int(self.url().rsplit(":", 1)[1])

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self) -> int:
        return self.process.wait(LIMIT_S)


Serve = Callable[..., Command]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Return a function that runs the server; it is killed afterwards if it still runs."""
    commands: list[Command] = []

    def run(*args: str, environment: dict[str, str] | None = None) -> Command:
        commands.append(Command(tmp_path, *args, environment=environment))
        return commands[-1]

    yield run
    for command in commands:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()
    # Servers in this process have made it the parent of what loses its own.
    psutil.wait_procs(psutil.Process().children(), timeout=LIMIT_S)


def run(module: str, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", f"mms.cli.{module}", *args],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env={**os.environ, **ANY_MANAGEMENT_PORT, **environment},
        check=False,
    )


def ask(url: str, value: Any) -> Any:
    request = urllib.request.Request(
        url, json.dumps(value).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        return json.load(response)


def metrics(url: str) -> str:
    with urllib.request.urlopen(f"{url}/metrics", timeout=LIMIT_S) as response:
        return str(response.read().decode())


def last_line(text: str) -> str:
    return text.rstrip().rsplit("\n", 1)[-1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    return make_archive(folder, "faulty", files={"sample.json": b'["echo", "it\'s"]'})


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_archive(tmp_path_factory.mktemp("echo"), "echo")


@pytest.mark.skipif(shutil.which("curl") is None, reason="the printed command needs curl")
def test_the_table_names_every_model_its_curl_line_works_and_sigterm_ends_with_0(
    serve: Serve, archive: Path, echo: Path
) -> None:
    command = serve(
        "--models", f"first={archive}", f"second={echo}", str(echo), "--log-format", "json"
    )
    url = command.url()
    for name in ("first", "second", "echo"):
        assert f"{url}/predictions/{name}\n" in command.output
    assert ask(f"{url}/predictions/second", [1]) == [1]
    assert ask(f"{url}/predictions/echo", [2]) == [2]
    curl = wait_for(lambda: re.search(r"^  (curl .*)$", command.output, re.MULTILINE))[1]
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True)
    assert answer.stdout == '"it\'s"'
    command.process.terminate()
    assert command.end() == 0
    assert "Traceback" not in command.output
    records = [json.loads(line) for line in command.output.splitlines() if line.startswith("{")]
    assert {record["model"] for record in records if "model" in record} == {
        "first",
        "second",
        "echo",
    }
    for record in records:
        assert {"time", "level", "logger", "message"} <= set(record)


def test_sigterm_lets_a_running_request_finish_and_a_second_one_ends_it_now(
    serve: Serve, archive: Path, tmp_path: Path
) -> None:
    answers: list[Any] = []

    def start(folder: Path) -> tuple[Command, threading.Thread]:
        folder.mkdir()
        command = serve("--models", f"faulty={archive}", "--log-file", str(folder / "server.log"))
        url = command.url()

        def client() -> None:
            try:
                answers.append(ask(f"{url}/predictions/faulty", ["wait", str(folder)]))
            except OSError as error:
                answers.append(error)

        thread = threading.Thread(target=client)
        thread.start()
        wait_for(lambda: [path for path in folder.iterdir() if path.name.isdecimal()])
        command.process.terminate()
        return command, thread

    command, client = start(tmp_path / "patient")
    # No longer listening, but not gone while the request runs.
    wait_for(lambda: not accepts(command.port()))
    assert command.process.poll() is None
    (tmp_path / "patient" / "go").touch()
    assert command.end() == 0
    client.join()
    assert answers.pop() == "went"
    assert "ready with 1 workers" in (tmp_path / "patient" / "server.log").read_text()
    assert "ready with 1 workers" not in command.output

    command, client = start(tmp_path / "hasty")
    wait_for(lambda: not accepts(command.port()))
    command.process.terminate()
    assert command.end() == 0
    client.join()
    assert isinstance(answers.pop(), OSError)


def accepts(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_ctrl_c_ends_with_0_and_without_a_traceback(serve: Serve, echo: Path) -> None:
    command = serve("--models", str(echo))
    command.url()
    workers = command.workers()
    # A terminal signals the whole process group.
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.end() == 0
    assert "Traceback" not in command.output
    assert "KeyboardInterrupt" not in command.output
    wait_for(lambda: not any(worker.is_running() for worker in workers))


def test_a_killed_server_leaves_no_worker_and_the_next_start_removes_its_folder(
    serve: Serve, archive: Path, tmp_path: Path
) -> None:
    command = serve("--models", f"faulty={archive}", "--workers", "2")
    url = command.url()
    workers = command.workers()
    assert len(workers) == 3

    def client() -> None:
        with contextlib.suppress(OSError):
            ask(f"{url}/predictions/faulty", ["hang_native"])

    hanging = threading.Thread(target=client)
    hanging.start()
    wait_for(lambda: re.search(r"^mms_in_flight\{.*\} 1\.0$", metrics(url), re.MULTILINE))
    command.process.kill()
    command.process.wait()
    hanging.join()
    wait_for(lambda: not any(w.is_running() and w.status() != "zombie" for w in workers))
    (orphan,) = (tmp_path / "work").iterdir()
    again = serve("--models", f"faulty={archive}")
    assert ask(f"{again.url()}/predictions/faulty", ["echo", 1]) == 1
    assert not orphan.exists()
    again.process.terminate()
    assert again.end() == 0
    assert list((tmp_path / "work").iterdir()) == []


def test_a_taken_port_is_exit_status_4(echo: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = run("serve", "--models", str(echo), "--port", port)
    assert result.returncode == 4
    assert last_line(result.stderr).startswith(f"Error: cannot listen on 127.0.0.1:{port}:")
    assert "Traceback" not in result.stderr


def test_a_broken_model_is_exit_status_3_with_the_users_own_traceback(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "broken", "def weights():\n    return 1 / 0\nweights()\n")
    result = run("serve", "--models", f"broken={folder}", "--port", "0")
    assert result.returncode == 3
    assert 'service.py", line 2, in weights' in result.stderr
    assert "mms/worker" not in result.stderr
    assert last_line(result.stderr).startswith("Error: model 'broken'")


def test_a_model_that_hangs_while_it_loads_is_exit_status_3(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "hanging", "while True: pass\n")
    result = run("serve", "--models", f"h={folder}", "--port", "0", "--load-timeout", "3")
    assert result.returncode == 3
    assert "load" in last_line(result.stderr)


@pytest.mark.parametrize(
    ("args", "status", "message"),
    [
        (["--models", "a=/no/such.model", "--port", "0"], 3, "no such file or folder"),
        (["--models", "/no/such.model"], 3, "no such file or folder"),
        (["--models", "a{b=/x.model"], 2, "cannot be used in a URL"),
        (["--models", "=x"], 2, "NAME=PATH"),
        ([], 2, "no model to serve"),
        (["--no-such-flag"], 2, "--no-such-flag"),
        (["--workers", "many"], 2, "many"),
        (["--batch-size", "0", "--models", "a=x"], 2, "batch_size: must be at least 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_clear_line(
    args: list[str], status: int, message: str
) -> None:
    result = run("serve", *args)
    assert result.returncode == status
    assert message in last_line(result.stderr)
    assert "Traceback" not in result.stderr


def test_the_banner_names_the_address_of_the_management_api(echo: Path, serve: Serve) -> None:
    command = serve("--models", f"e={echo}", "--load", "lazy", "--management-host", "127.0.0.2")
    command.url()
    match = wait_for(lambda: re.search(r"Management on (http://\S+)\n", command.output))
    assert match[1].startswith("http://127.0.0.2:")
    with urllib.request.urlopen(match[1], timeout=LIMIT_S) as response:
        assert [model["modelName"] for model in json.load(response)["models"]] == ["e"]


def test_print_config_tells_each_values_origin(echo: Path, tmp_path: Path) -> None:
    file = tmp_path / "mms.yaml"
    file.write_text(f"batch_size: 4\nmodels:\n  yaml: {{path: {echo}, batch_size: 5}}\n")
    args = ["--models", f"e={echo}", "--config", str(file), "--workers", "2", "--print-config"]
    result = run("serve", *args, MMS_KEEPALIVE_TIMEOUT="7")
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert "#port: 8080  # default" in lines
    assert "keepalive_timeout: 7.0  # environment" in lines
    models = lines[lines.index("models:") :]
    e, own = models[models.index("  e:") :], models[models.index("  yaml:") : models.index("  e:")]
    assert "    workers: 2  # flag" in e
    assert f"    batch_size: 4  # {file}" in e
    assert f"    batch_size: 5  # {file}: models.yaml" in own


def test_what_print_config_prints_is_a_config_file(echo: Path, tmp_path: Path) -> None:
    file = tmp_path / "mms.yaml"
    args = ["--models", f"e={echo}", "--memory-budget", "2GB", "--response-timeout", "500ms"]
    first = run("serve", *args, "--gpu", "0,1", "--allowed-hosts", "a,b", "--print-config")
    assert "memory_budget: 2000000000  # flag" in first.stdout.splitlines()
    file.write_text(first.stdout)
    again = run("serve", "--config", str(file), "--print-config")
    assert again.returncode == 0, again.stderr
    assert yaml.safe_load(again.stdout) == yaml.safe_load(first.stdout)
    assert yaml.safe_load(again.stdout)["models"]["e"] == {
        "path": str(echo),
        "response_timeout": 0.5,
        "gpu": [0, 1],
    }


def test_an_unknown_variable_is_a_warning_with_a_suggestion(echo: Path, serve: Serve) -> None:
    command = serve("--models", str(echo), environment={"MMS_BATCH_SIZ": "1"})
    command.url()
    assert command.output.count("MMS_BATCH_SIZ is ignored") == 1
    assert "did you mean 'MMS_BATCH_SIZE'?" in command.output


class TestExport:
    def test_check_runs_the_sample_of_a_symbolic_model(self, tmp_path: Path) -> None:
        folder = write_linear(tmp_path / "linear")
        (folder / "sample.json").write_text("[[1, 2, 3]]")
        args = ["--model-name", "linear", "--model-path", str(folder), "--export-path"]
        result = run("export", *args, str(tmp_path), "--check")
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "linear.model").is_file()
        assert last_line(result.stdout).startswith(
            "check: the archive loads and answers its sample"
        )
        assert "[[1.0, 15.0]]" in result.stdout

    def test_a_check_that_fails_is_exit_status_3_with_the_users_traceback(
        self, tmp_path: Path
    ) -> None:
        source = tmp_path / "bad"
        source.mkdir()
        (source / "service.py").write_text(
            "from mms.model_service.model_service import SingleNodeService\n"
            "class Service(SingleNodeService):\n    def _inference(self, data):\n        1 / 0\n"
        )
        shutil.copy(make_folder(tmp_path / "other", "").joinpath("signature.json"), source)
        (source / "sample.json").write_text("[1]")
        args = ["--model-name", "bad", "--model-path", str(source), "--export-path"]
        result = run("export", *args, str(tmp_path), "--check")
        assert result.returncode == 3
        assert 'service.py", line 4, in _inference' in result.stderr
        assert "sample request" in last_line(result.stderr)

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ([], "no signature.json"),
            (["signature.json"], "no model found"),
            (["signature.json", "net-symbol.json"], "has no parameter file"),
            (["signature.json", "net-0000.params"], "needs its service file"),
        ],
    )
    def test_a_folder_that_is_no_model_is_exit_status_3(
        self, tmp_path: Path, files: list[str], message: str
    ) -> None:
        source = tmp_path / "source"
        source.mkdir()
        complete = make_folder(tmp_path / "complete", "")
        for name in files:
            (source / name).write_text("{}")
            if name == "signature.json":
                shutil.copy(complete / name, source)
        args = ["--model-name", "m", "--model-path", str(source), "--export-path", str(tmp_path)]
        result = run("export", *args)
        assert result.returncode == 3
        assert message in last_line(result.stderr)
        assert not (tmp_path / "m.model").exists()

    def test_an_archive_is_only_replaced_when_forced(self, echo: Path, tmp_path: Path) -> None:
        source = tmp_path / "echo"
        shutil.unpack_archive(echo, source, "zip")
        args = ["--model-name", "m", "--model-path", str(source), "--export-path", str(tmp_path)]
        assert run("export", *args).returncode == 0
        result = run("export", *args)
        assert result.returncode == 3
        assert "--force" in last_line(result.stderr)
        assert run("export", *args, "--force").returncode == 0
