"""Who may import what, and what nobody may do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mms

PACKAGE = Path(mms.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TREES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imports(module: str) -> set[str]:
    """Return the absolute names that a module imports, wherever in it the statement stands."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            base = node.module or ""
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found |= {name for name in inner if name in TREES} or {base}
    return found


def is_below(module: str, *packages: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def ours(module: str) -> set[str]:
    return {name for name in imports(module) if is_below(name, "mms")}


ENGINE_ROOMS = ("mms.worker", "mms.model_service", "mms.quantization", "mms.utils")


def test_only_the_rooms_of_the_model_import_mxnet_or_numpy() -> None:
    guilty = {
        module: name
        for module in TREES
        if not is_below(module, *ENGINE_ROOMS)
        for name in imports(module)
        if is_below(name, "mxnet", "numpy", "PIL", "onnxruntime")
    }
    assert not guilty


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("mms.errors", set()),
        ("mms.version", set()),
        ("mms.serving.lifecycle", set()),
        ("mms.protocol", {"mms.errors"}),
        ("mms.serving.linger", set()),
        ("mms.serving.poison", {"mms.errors"}),
        (
            "mms.serving.dispatcher",
            {"mms.errors", "mms.serving.linger", "mms.serving.poison"},
        ),
        ("mms.serving.pool.restarts", set()),
        ("mms.serving.pool.slot", {"mms.serving.lifecycle"}),
        (
            "mms.serving.pool.machine",
            {"mms.errors", "mms.serving.pool.restarts", "mms.serving.pool.slot"},
        ),
        ("mms.quoting", set()),
        ("mms.archive.signature", {"mms.errors", "mms.quoting"}),
        ("mms.archive.manifest", {"mms.errors", "mms.quoting"}),
        ("mms.archive.workspace", set()),
        ("mms.archive.location", {"mms.errors"}),
        ("mms.archive.source", {"mms.archive.location"}),
        ("mms.log", {"mms.errors"}),
        ("mms.service", set()),
    ],
)
def test_the_foundations_import_nothing_above_them(module: str, allowed: set[str]) -> None:
    assert ours(module) <= allowed


FORBIDDEN = {
    "mms.archive": ("mms.serving", "mms.http", "mms.cli", "mms.worker", "mms.server", "mms.config"),
    "mms.serving": ("mms.http", "mms.grpc", "mms.cli", "mms.worker", "mms.server"),
    "mms.http": ("mms.grpc", "mms.cli", "mms.worker", "mms.server"),
    "mms.grpc": ("mms.http", "mms.cli", "mms.worker", "mms.server"),
    "mms.worker": ("mms.serving", "mms.http", "mms.cli", "mms.config", "mms.server"),
    "mms.model_service": ("mms.serving", "mms.http", "mms.cli", "mms.config", "mms.server"),
    "mms.utils": ("mms.serving", "mms.http", "mms.cli", "mms.config", "mms.server"),
    "mms.config": ("mms.serving", "mms.http", "mms.cli", "mms.worker", "mms.server"),
    "mms.metrics": ("mms.serving", "mms.http", "mms.cli", "mms.worker", "mms.server"),
    "mms.server": ("mms.cli",),
}


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_follow_the_data(room: str) -> None:
    guilty = {
        (module, name)
        for module in TREES
        if is_below(module, room)
        for name in ours(module)
        if is_below(name, *FORBIDDEN[room])
    }
    assert not guilty


def dangers(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _is_unsafe_module(alias.name))
        elif isinstance(node, ast.ImportFrom) and _is_unsafe_module(node.module or ""):
            yield str(node.module)
        elif isinstance(node, ast.Call):
            function = ast.unparse(node.func)
            if function in ("eval", "exec", "os.system", "os.popen", "yaml.load", "input"):
                yield function
            if any(
                keyword.arg == "shell" and ast.unparse(keyword.value) != "False"
                for keyword in node.keywords
            ):
                yield f"{function}(shell=...)"


def _is_unsafe_module(name: str) -> bool:
    return is_below(name, "pickle", "cPickle", "dill", "marshal", "shelve", "telnetlib")


@pytest.mark.parametrize(
    "source",
    ["import pickle", "eval('1')", "exec('')", "yaml.load(x)", "run('ls', shell=True)"],
)
def test_the_search_for_dangers_finds_them(source: str) -> None:
    assert list(dangers(ast.parse(source)))


def test_no_module_unpickles_evaluates_or_runs_a_shell() -> None:
    assert not {name: found for name, tree in TREES.items() if (found := list(dangers(tree)))}


def test_the_server_process_starts_without_mxnet_numpy_and_grpc() -> None:
    program = (
        "import sys, mms.server, mms.cli.serve, mms.cli.export\n"
        "print(sorted({'mxnet', 'numpy', 'PIL', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")


def test_services_for_onnx_models_and_the_helpers_that_they_share_need_no_mxnet() -> None:
    program = (
        "import sys, mms.model_service.onnx_service, mms.utils.mxnet.ndarray\n"
        "import mms.utils.mxnet as helpers\n"
        "print('mxnet' in sys.modules, helpers.nlp.__name__, hasattr(helpers, 'other'))\n"
        "print(helpers.image.__name__, 'mxnet' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [
        *("False", "mms.utils.mxnet.nlp", "False"),
        *("mms.utils.mxnet.image", "True"),
    ], done.stderr


def test_the_base_of_all_services_needs_neither_mxnet_nor_numpy() -> None:
    program = (
        "import sys, mms.model_service.model_service, mms.service\n"
        "print(sorted({'mxnet', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
