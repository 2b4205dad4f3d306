"""The command with models that are elsewhere: names, restarts, signals, and what it prints."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.test_cli import LIMIT_S, Command, ask, last_line, run, wait_for
from tests.kit.archives import make_archive
from tests.kit.fileserver import FileServer, Handler, closed_port, digest_of, file_server, silence


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_archive(tmp_path_factory.mktemp("echo"), "echo").read_bytes()


@pytest.fixture
def files(content: bytes) -> Iterator[FileServer]:
    with file_server() as server:
        server.add("/echo.model", content)
        yield server


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return {
        "XDG_CACHE_HOME": str(tmp_path / "caches"),
        "MMS_PORT": "0",
        "MMS_MANAGEMENT_PORT": "-1",
    }


@contextlib.contextmanager
def serving(folder: Path, *args: str, environment: dict[str, str]) -> Iterator[Command]:
    """Run the server; it is killed afterwards if it still runs."""
    command = Command(folder, *args, environment=environment)
    try:
        yield command
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.process.pid, signal.SIGKILL)
        command.process.wait()
        psutil.wait_procs(psutil.Process().children(), timeout=LIMIT_S)


def test_models_are_served_from_urls_and_after_a_restart_without_the_network(
    tmp_path: Path, content: bytes, environment: dict[str, str]
) -> None:
    config = tmp_path / "mms.yaml"
    with file_server() as files:
        url = files.add("/echo.model", content)
        pinned = f"{url}#sha256={digest_of(content)}"
        config.write_text(f"models:\n  third: '{url}?in=file&sig=hunter'\n")
        args = ["--config", str(config), "--load", "lazy"]
        args += [
            "--models",
            f"first={url}?sig=a=hunter",
            f"{url}?sig=b=hunter",
            f"second={pinned}",
        ]
        with serving(tmp_path, *args, environment=environment) as command:
            base = command.url()
            for name in ("first", "echo", "second", "third"):
                assert f"{base}/predictions/{name}\n" in command.output
            assert ask(f"{base}/predictions/first", [1]) == [1]
            command.process.terminate()
            assert command.end() == 0
            assert f"downloading {url} (" in command.output
            assert f"downloaded {url}: " in command.output
            assert "hunter" not in command.output
        folder = tmp_path / "caches" / "mxnet-model-server"
        assert [path.name for path in folder.glob("blobs/*")] == [digest_of(content)]
    with serving(tmp_path, *args, environment=environment) as command:
        base = command.url()
        assert ask(f"{base}/predictions/echo", [2]) == [2]
        assert command.output.count("serving the cached copy") >= 3
        assert "hunter" not in command.output


def test_a_download_that_fails_ends_the_command_with_one_clear_line(
    files: FileServer, environment: dict[str, str], tmp_path: Path
) -> None:
    for name in ("", "m="):
        result = run("serve", "--models", f"{name}{files.url}/none?sig=hunter", **environment)
        assert result.returncode == 3
        assert last_line(result.stderr) == (f"Error: {files.url}/none: there is no such file (404)")
        assert "Traceback" not in result.stderr
        assert "hunter" not in result.stderr
    result = run("serve", "--models", "ftp://host/x", **environment)
    assert result.returncode == 3
    assert "ftp:// is not supported" in last_line(result.stderr)
    result = run("serve", "--models", f"m={files.url}/echo.model#sha256=12", **environment)
    assert result.returncode == 3
    assert "64 hexadecimal digits" in last_line(result.stderr)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_that_hangs_on_a_download(
    tmp_path: Path, files: FileServer, environment: dict[str, str], number: signal.Signals
) -> None:
    files.odd["/hangs"] = silence
    with serving(tmp_path, "--models", f"m={files.url}/hangs", environment=environment) as command:
        wait_for(lambda: files.seen)
        command.process.send_signal(number)
        assert command.end() == 0
        assert len(files.seen) == 1


def test_on_a_terminal_a_line_shows_how_it_goes_on(
    tmp_path: Path, files: FileServer, content: bytes, environment: dict[str, str]
) -> None:
    def in_two_halves(handler: Handler) -> None:
        del files.odd["/echo.model"]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content[: len(content) // 2])
        half.append(wait_for(lambda: b"%" in shown() and shown()))
        handler.wfile.write(content[len(content) // 2 :])

    half: list[Any] = []
    drawn: list[bytes] = []
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)

    def shown() -> bytes:
        with contextlib.suppress(BlockingIOError):
            drawn.append(os.read(ours, 1 << 16))
        return b"".join(drawn)

    files.odd["/echo.model"] = in_two_halves
    command = [sys.executable, "-m", "mms.cli.serve", "--models", f"{files.url}/echo.model"]
    command += ["--load", "lazy"]
    environment = {**os.environ, **environment, "MMS_WORK_DIR": str(tmp_path), "COLUMNS": "100"}
    try:
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment
        ) as process:
            wait_for(lambda: b"listening on" in shown())
            process.terminate()
            assert process.wait(LIMIT_S) == 0
    finally:
        os.close(ours)
        os.close(theirs)
    assert half
    assert b"downloading echo.model  [############------------]  50% of" in half[0]


def test_printing_the_configuration_downloads_nothing_and_shows_no_secret(
    tmp_path: Path, files: FileServer, environment: dict[str, str]
) -> None:
    url = f"{files.url}/echo.model?sig=hunter"
    printed = run("serve", "--models", f"m={url}", "--print-config", **environment)
    assert printed.returncode == 0
    path = f"path: '{files.url}/echo.model'  # password and query removed; add them again"
    assert path in printed.stdout
    assert "hunter" not in printed.stdout
    assert files.connections == 0


def test_a_user_without_a_home_is_told_what_to_set() -> None:
    url = f"http://127.0.0.1:{closed_port()}/x"
    program = (
        # First what is imported: the user may not be one who may read it.
        "import os, sys\nfrom mms.cli.serve import main\nos.setuid(54321)\n"
        "sys.argv[1:] = ['--models', sys.argv[1]]\nmain()"
    )
    if os.getuid() != 0:
        pytest.skip("only root can become a user that the system does not know")
    environment = {k: v for k, v in os.environ.items() if k not in ("HOME", "XDG_CACHE_HOME")}
    result = subprocess.run(
        [sys.executable, "-c", program, url],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        env=environment,
        check=False,
    )
    assert result.returncode == 2
    assert "set cache_dir" in last_line(result.stderr)
