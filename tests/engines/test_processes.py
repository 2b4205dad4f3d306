"""Engines in processes of their own: forks, threads, memory, what they write and send."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mms.archive.candidates import EngineName
from mms.engines.registry import engine
from tests.engines.networks import ENGINES, linear_file, write
from tests.kit.onnx_models import convolutions, linear

ROOT = Path(__file__).parents[2]
#: Design: a further worker takes no more before its first batch.
_MAX_PRIVATE_MIB = 20


def run(*arguments: object, **environment: str) -> str:
    """Run Python with this checkout on its path, and return what it printed."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("threads", [1, 2])
def test_forked_networks_answer_as_their_parent_does(
    name: EngineName, threads: int, tmp_path: Path
) -> None:
    path = write(tmp_path, convolutions())
    parent, *children = json.loads(run("-m", "tests.engines.forking", name, threads, 25, path))
    assert parent["can_fork"]
    assert len(children) == 25
    for child in children:
        assert child["status"] == 0
        assert child["error"] <= 1e-5 * child["scale"]
        assert child["private"] <= _MAX_PRIVATE_MIB
        # Each child has the threads of its own that it was promised.
        assert child["threads"] >= threads


@pytest.mark.parametrize("name", ENGINES)
def test_a_network_of_several_threads_forks_only_if_it_knows(
    name: EngineName, tmp_path: Path
) -> None:
    for options, can_fork in (
        ({"threads": 1}, True),
        ({"threads": 2}, False),
        ({"threads": 2, "forks": True}, True),
    ):
        assert engine(name).open(linear_file(tmp_path, **options)).can_fork is can_fork


LOAD = """
import json, os, sys, threading
from pathlib import Path
import numpy as np
from mms.engines.registry import engine, installed
from tests.engines.networks import linear_file
versions = installed()
imported = [name for name in ("mxnet", "onnxruntime", "openvino") if name in sys.modules]
name, path, cache = sys.argv[1:]
network = engine(name).open(linear_file(Path(path), cache=cache))
answer = network.run([np.ones((1, 3), np.float32)])[0].tolist()
print(json.dumps({
    "versions": versions,
    "imported": imported,
    "answer": answer,
    "threads": threading.active_count(),
    "telemetry": bool(sys.modules.get("openvino_telemetry")),
}))
"""


def load(name: EngineName, path: Path, cache: Path | str = "", **environment: str) -> Any:
    return json.loads(run("-c", LOAD, name, path, cache, **environment))


#: In the place of the package that reports to OpenVINO's maker.
TELEMETRY = """
import os
from pathlib import Path
(Path(os.environ["HOME"]) / "intel").mkdir()
class Telemetry:
    def __init__(self, *args, **kwargs): pass
    def __getattr__(self, name): return lambda *args, **kwargs: None
"""


class TestTelemetry:
    @pytest.fixture
    def environment(self, tmp_path: Path) -> dict[str, str]:
        package = tmp_path / "path" / "openvino_telemetry"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(TELEMETRY)
        home = tmp_path / "home"
        home.mkdir()
        paths = os.pathsep.join([str(package.parent), str(ROOT)])
        # OpenVINO itself reports nothing where CI is set.
        return {"HOME": str(home), "PYTHONPATH": paths, "CI": ""}

    def test_openvino_reports_nothing_and_writes_nothing(
        self, environment: dict[str, str], tmp_path: Path
    ) -> None:
        found = load("openvino", write(tmp_path, linear()), **environment)
        assert not found["telemetry"]
        assert found["threads"] == 1
        assert list(Path(environment["HOME"]).iterdir()) == []

    def test_it_would_if_it_were_let(self, environment: dict[str, str]) -> None:
        run("-c", "import openvino", **environment)
        assert [path.name for path in Path(environment["HOME"]).iterdir()] == ["intel"]


@pytest.mark.parametrize("name", ENGINES)
def test_asking_for_versions_imports_no_engine(name: EngineName, tmp_path: Path) -> None:
    found = load(name, write(tmp_path, linear()))
    assert set(found["versions"]) == {"mxnet", *ENGINES}
    assert found["imported"] == []
    assert found["answer"] == [[1, 12]]


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("onnxruntime", "onnxruntime", "onnx"), ("openvino", "openvino", "openvino")],
)
def test_a_missing_engine_is_named_with_the_extra_that_installs_it(
    name: EngineName, module: str, extra: str, tmp_path: Path
) -> None:
    lines = [
        f"import sys; sys.modules[{module!r}] = None",
        "from mms.engines.registry import engine, installed",
        "from mms.errors import EngineMissing",
        "from tests.engines.networks import linear_file",
        "from pathlib import Path",
        f"assert {name!r} not in installed()",
        f"try: engine({name!r}).open(linear_file(Path({str(tmp_path)!r})))",
        f"except EngineMissing as error: print(engine({name!r}).extra, error, sep='|')",
    ]
    given, message = run("-c", "\n".join(lines)).strip().split("|")
    assert given == extra
    assert message.endswith(f"run: pip install 'mxnet-model-server[{extra}]'")


class TestCompiledNetworks:
    """The folder for compiled networks."""

    CODE = """
import sys
from pathlib import Path
import numpy as np
from mms.engines import openvino_engine
from tests.engines.networks import linear_file
import openvino
seen = []
create = openvino.CompiledModel.create_infer_request
def noted(compiled):
    seen.append(compiled.get_property("LOADED_FROM_CACHE"))
    return create(compiled)
openvino.CompiledModel.create_infer_request = noted
path, cache, precision = sys.argv[1:]
file = linear_file(Path(path), cache=cache, precision=precision)
network = openvino_engine.OpenVINOEngine().open(file)
print(seen, network.run([np.array([[1, 2, 3]], np.float32)])[0].tolist())
"""

    def open(self, path: Path, cache: Path, precision: str = "f32") -> str:
        return run("-c", self.CODE, path, cache, precision).strip()

    def test_the_second_process_does_not_compile_again(self, tmp_path: Path) -> None:
        path, cache = write(tmp_path, linear()), tmp_path / "cache"
        assert self.open(path, cache) == "[False] [[1.0, 15.0]]"
        assert self.open(path, cache) == "[True] [[1.0, 15.0]]"

    def test_another_network_of_the_same_name_is_compiled(self, tmp_path: Path) -> None:
        cache = tmp_path / "cache"
        self.open(write(tmp_path, linear()), cache)
        other = linear()
        other.graph.initializer[1].raw_data = other.graph.initializer[1].raw_data[::-1]
        assert self.open(write(tmp_path, other), cache).startswith("[False]")

    @pytest.mark.parametrize("content", [b"", b"junk" * 100, None], ids=["empty", "junk", "half"])
    def test_a_damaged_file_there_is_compiled_again(
        self, content: bytes | None, tmp_path: Path
    ) -> None:
        path, cache = write(tmp_path, linear()), tmp_path / "cache"
        self.open(path, cache)
        (kept,) = cache.iterdir()
        data = kept.read_bytes()
        kept.write_bytes(data[: len(data) // 2] if content is None else content)
        assert self.open(path, cache) == "[False] [[1.0, 15.0]]"
        assert self.open(path, cache) == "[True] [[1.0, 15.0]]"

    def test_a_folder_that_cannot_be_written_does_not_matter(self, tmp_path: Path) -> None:
        # Root may write to read-only folders, but nobody below a file, nor here.
        for cache in (write(tmp_path, linear(), "file.onnx") / "cache", Path("/proc/cache")):
            answer = self.open(write(tmp_path, linear()), cache)
            assert answer.endswith(" [[1.0, 15.0]]")
            assert "True" not in answer
