"""--gen-api: the Python client's source, and generators for other languages."""

from __future__ import annotations

import ast
import asyncio
import json
import logging
import os
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest

from mms.archive.signature import Signature, TensorSpec
from mms.config.settings import TOKEN_VARIABLE, ServerSettings
from mms.errors import ConfigError
from mms.http.openapi.description import ModelDescription
from mms.http.openapi.document import Route
from mms.http.openapi.generate import ClientGenerator, find_generator, python_client
from mms.serving.pool.child import reap_orphans
from tests.kit.server import StartServer
from tests.kit.waiting import until

ROUTES = [Route("POST", "/predictions/{model}", "predictions", "Predict.")]
URL = "http://127.0.0.1:8080"
HOSTILE = '"""\nimport os\nos.abort()\n\'\\'


def model(name: str, *inputs: str, kind: str = "application/json") -> ModelDescription:
    specs = tuple(TensorSpec(text, (0, 2)) for text in inputs)
    signature = Signature(specs, kind, specs, "application/json") if inputs else None
    return ModelDescription(name, "1", True, signature, Path())


class TestPythonClient:
    def methods(self, source: str) -> dict[str, ast.FunctionDef]:
        """Return the methods of the class Client."""
        classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
        assert classes[-1].name == "Client"
        return {node.name: node for node in classes[-1].body if isinstance(node, ast.FunctionDef)}

    def test_methods_have_names_that_python_allows_and_that_are_free(self) -> None:
        names = ["a-b", "a.b", "18", "class", "is_ready", "timeout_s", "_send", "plain"]
        source = python_client([model(name, "data") for name in names], URL)
        assert list(self.methods(source))[1:] == [
            "a_b",
            "a_b_2",
            "model_18",
            "class_2",
            "is_ready_2",
            "timeout_s_2",
            "_send_2",
            "plain",
        ]

    def test_nothing_in_an_archive_becomes_code(self) -> None:
        inputs = (HOSTILE, "version", "self", "lambda", "x, y")
        source = python_client([model("m", *inputs)], f"http://[::1]:1/{HOSTILE}")
        methods = self.methods(source)
        arguments = [argument.arg for argument in methods["m"].args.args]
        assert len(set(arguments)) == len(arguments) == 1 + len(inputs)
        imported = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import)]
        assert "abort" not in {alias.name for node in imported for alias in node.names}
        done = subprocess.run(
            [sys.executable, "-I", "-c", f"{source}\nprint(Client().url)"],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
        assert done.stdout.startswith("http://[::1]:1/")

    def test_it_imports_the_standard_library_only(self) -> None:
        imported = set()
        for node in ast.walk(ast.parse(python_client([model("m", "data")], URL))):
            if isinstance(node, ast.Import):
                imported |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                imported.add(str(node.module))
        assert {name.partition(".")[0] for name in imported} <= sys.stdlib_module_names

    def test_it_is_typed(self, tmp_path: Path) -> None:
        models = [
            model("numbers", "data"),
            model("two", "left", "right"),
            model("image", "data", kind="image/jpeg"),
            model("free"),
        ]
        file = tmp_path / "mms_client.py"
        file.write_text(python_client(models, URL))
        use = tmp_path / "use.py"
        use.write_text(
            "from mms_client import Client\n"
            "c = Client(timeout_s=3)\n"
            "c.numbers([[1.0, 2]], version='1'), c.two([[1.0]], right=[[2.0]])\n"
            "c.image(b''), c.image('cat.jpg'), c.free(b'', 'text/csv')\n"
            "c.numbers('text')\n"
            "c.image(3)\n"
        )
        command = [sys.executable, "-m", "mypy", "--strict", "use.py", "mms_client.py"]
        done = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, timeout=100, check=False
        )
        lines = [line for line in done.stdout.splitlines() if "error" in line]
        assert [line.partition(": ")[0] for line in lines[:-1]] == ["use.py:5", "use.py:6"], lines

    def test_only_the_default_version_has_a_method(self) -> None:
        other = ModelDescription("m", "2", False, None, Path())
        assert list(self.methods(python_client([model("m", "data"), other], URL))) == [
            "__init__",
            "m",
        ]


def settings(folder: Path, language: str) -> ServerSettings:
    return ServerSettings(gen_api=language, gen_api_dir=str(folder / "deep" / "build"))


def install(folder: Path, name: str, script: str) -> None:
    """Put a command on the PATH's folder."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(script)}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def bin_(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the only folder where commands are found."""
    folder = tmp_path / "bin"
    monkeypatch.setenv("PATH", str(folder))
    return folder


GENERATOR = """
    import json, os, sys
    arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
    paths = list(json.load(open(arguments["-i"]))["paths"])
    with open(arguments["-o"] + "/client.txt", "w") as file:
        json.dump([sys.argv[1], arguments, paths, sorted(os.environ)], file)
"""


class TestOtherLanguages:
    @pytest.mark.parametrize(
        ("name", "flag"),
        [("openapi-generator-cli", "-g"), ("openapi-generator", "-g"), ("swagger-codegen", "-l")],
    )
    async def test_an_installed_generator_gets_document_language_and_folder(
        self,
        bin_: Path,
        tmp_path: Path,
        name: str,
        flag: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        caplog.set_level(logging.INFO, "mms.generate")
        monkeypatch.setenv(TOKEN_VARIABLE, "secret")
        install(bin_, name, GENERATOR)
        generator = find_generator(settings(tmp_path, "java"))
        assert generator is not None
        await generator.generate(ROUTES, [model("crepe", "data")], URL)
        build = tmp_path / "deep" / "build"
        document = build / "openapi.json"
        verb, arguments, paths, environment = json.loads((build / "client.txt").read_text())
        assert verb == "generate"
        assert arguments == {"-i": str(document), flag: "java", "-o": str(build)}
        assert paths == ["/predictions/crepe"]
        assert TOKEN_VARIABLE not in environment
        assert sorted(path.name for path in build.iterdir()) == ["client.txt", "openapi.json"]
        assert "the java client is in" in caplog.text

    def test_without_one_the_error_names_a_command_that_installs_one(
        self, bin_: Path, tmp_path: Path
    ) -> None:
        with pytest.raises(ConfigError, match="npm install -g @openapitools/openapi-generator-cli"):
            find_generator(settings(tmp_path, "java"))
        assert not (tmp_path / "deep").exists()

    @pytest.mark.parametrize("language", ["-java", "--help", "ja va", "../x", "a;b", "é"])
    def test_what_is_no_language_is_refused(
        self, bin_: Path, tmp_path: Path, language: str
    ) -> None:
        install(bin_, "openapi-generator", GENERATOR)
        with pytest.raises(ConfigError, match="is not a language name"):
            find_generator(settings(tmp_path, language))

    def test_python_needs_none_and_nothing_asks_for_none(self, bin_: Path, tmp_path: Path) -> None:
        assert find_generator(ServerSettings()) is None
        for language in ("python", "Python"):
            generator = find_generator(settings(tmp_path, language))
            assert generator is not None
            assert not generator.command

    def test_a_folder_that_cannot_be_made_is_an_error_at_start(self, tmp_path: Path) -> None:
        (tmp_path / "deep").touch()
        with pytest.raises(ConfigError, match=r"gen_api_dir .* cannot be created"):
            find_generator(settings(tmp_path, "python"))

    async def test_a_generator_that_is_no_program_is_logged(
        self, bin_: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        install(bin_, "openapi-generator", "")
        (bin_ / "openapi-generator").write_text("#!/no/such/interpreter\n")
        generator = find_generator(settings(tmp_path, "java"))
        assert generator is not None
        await generator.generate(ROUTES, [], URL)
        assert "cannot be run" in caplog.text

    async def test_a_folder_that_is_gone_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        await ClientGenerator("python", tmp_path / "gone").generate(ROUTES, [], URL)
        assert "no client was generated" in caplog.text

    async def test_stopping_ends_the_generator_and_what_it_has_started(
        self, bin_: Path, tmp_path: Path
    ) -> None:
        script = f"""
            import subprocess, time
            child = subprocess.Popen([{sys.executable!r}, "-c", "import time; time.sleep(600)"])
            open({str(tmp_path / "pid")!r}, "w").write(str(child.pid) + chr(10))
            time.sleep(600)
        """
        install(bin_, "openapi-generator", script)
        generator = find_generator(settings(tmp_path, "java"))
        assert generator is not None
        task = asyncio.create_task(generator.generate(ROUTES, [], URL))
        pid = tmp_path / "pid"
        await until(lambda: pid.exists() and pid.read_text().endswith("\n"))
        grandchild = psutil.Process(int(pid.read_text()))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not is_alive(grandchild))


def is_alive(process: psutil.Process) -> bool:
    # A server that ran in this process before has made it the heir of orphans.
    reap_orphans()
    return process.is_running()


class TestServer:
    async def test_a_generator_that_fails_keeps_nobody_from_being_served(
        self,
        start_server: StartServer,
        bin_: Path,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        install(bin_, "openapi-generator", "print('no such language')\nraise SystemExit(3)")
        gen_api = {"gen_api": "cobol", "gen_api_dir": str(tmp_path / "build")}
        server = await start_server(gen_api)
        assert (await server.get("/ping"))[0] == 200
        (line,) = [r.getMessage() for r in caplog.records if r.name == "mms.generate"]
        assert line.startswith("no cobol client was generated: ")
        assert line.endswith("exited with code 3: no such language")
        document = json.loads((tmp_path / "build" / "openapi.json").read_text())
        assert document["servers"] == [{"url": server.url}]

    def test_a_language_without_generator_ends_the_command_with_status_2(
        self, bin_: Path, tmp_path: Path
    ) -> None:
        args = ["--models", "m=/no/such.model", "--port", "0", "--gen-api", "java"]
        done = subprocess.run(
            [sys.executable, "-m", "mms.cli.serve", *args],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2
        assert "npm install" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "build").exists()
