"""Who may import what, and what nobody may do."""

from __future__ import annotations

import ast
import graphlib
import itertools
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


def started(module: str) -> set[str]:
    """Return the modules that a module starts as processes, with ``-m``."""
    return {
        second.value
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.List | ast.Tuple)
        for first, second in itertools.pairwise(node.elts)
        if isinstance(first, ast.Constant) and first.value == "-m"
        if isinstance(second, ast.Constant) and isinstance(second.value, str)
        if second.value in TREES
    }


def room(module: str) -> str:
    """Return the package of a module right below `mms`, or the module itself if it is in none."""
    return ".".join(module.split(".")[:2])


MODULES = {module: ours(module) | started(module) for module in TREES}
ROOMS: dict[str, set[str]] = {}
for _module, _names in MODULES.items():
    ROOMS.setdefault(room(_module), set()).update(
        room(name) for name in _names if room(name) != room(_module) and name != "mms"
    )
#: Which of these are started as processes only.
STARTED: dict[str, set[str]] = {}
for _module in TREES:
    STARTED.setdefault(room(_module), set()).update(map(room, started(_module)))
for _module in TREES:
    STARTED[room(_module)] -= {room(name) for name in ours(_module)}


def test_the_rooms_of_the_house_form_no_circle() -> None:
    order = list(graphlib.TopologicalSorter(ROOMS).static_order())
    assert order.index("mms.errors") < order.index("mms.serving") < order.index("mms.http")


def test_no_modules_import_each_other_in_a_circle() -> None:
    # Processes are started from above: the worker that the pool starts imports what it needs.
    graph = {module: ours(module) - {"mms"} for module in TREES}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_the_search_for_circles_finds_those_that_a_started_process_closes() -> None:
    circle = {**ROOMS, "mms.worker": ROOMS["mms.worker"] | {"mms.serving"}}
    with pytest.raises(graphlib.CycleError, match=r"mms\.worker"):
        graphlib.TopologicalSorter(circle).prepare()


#: What runs in worker processes, and the processes that the exporter starts.
WORKER_ROOMS = ("mms.worker", "mms.engines", "mms.model_service", "mms.utils", "mms.convert")
SERVER_ROOMS = (
    *("mms.server", "mms.cli", "mms.http", "mms.grpc", "mms.serving"),
    *("mms.config", "mms.telemetry", "mms.fetch"),
)
#: Starts a process of its own, in which user code and networks run.
CHILD_OF_EXPORT = "mms.export.calibrate"


def test_only_the_rooms_of_the_worker_import_mxnet_or_numpy() -> None:
    guilty = {
        module: name
        for module in TREES
        if not is_below(module, *WORKER_ROOMS, CHILD_OF_EXPORT)
        for name in imports(module)
        if is_below(name, "mxnet", "numpy", "PIL", "onnxruntime")
    }
    assert not guilty


def test_server_and_worker_do_not_import_each_other() -> None:
    guilty = {
        (module, name)
        for module in TREES
        for mine, theirs in ((SERVER_ROOMS, WORKER_ROOMS), (WORKER_ROOMS, SERVER_ROOMS))
        if is_below(module, *mine)
        for name in ours(module)
        if is_below(name, *theirs)
    }
    assert not guilty


TRANSPORTS = ("mms.http", "mms.grpc")
#: What lies behind the two doors, `dataplane` and `controlplane`.
BEHIND_THE_DOORS = tuple(
    f"mms.serving.{name}"
    for name in (
        *("lane", "queue", "pool", "shadow", "upkeep", "provisioning"),
        *("builder", "startup", "janitor", "archives", "state", "saved"),
    )
)
#: Processes in general: clients for other languages are written by one.
CHILD_PROCESSES = "mms.serving.pool.child"


def test_transports_go_through_the_doors_of_serving() -> None:
    guilty = {
        (module, name)
        for module in TREES
        if is_below(module, *TRANSPORTS)
        for name in ours(module)
        if is_below(name, *BEHIND_THE_DOORS) and name != CHILD_PROCESSES
    }
    assert not guilty


def test_transports_neither_choose_a_version_nor_run_it_nor_count() -> None:
    decisions = {"infer", "choose", "submit", "duration", "rejected"}
    guilty = {
        (module, node.attr)
        for module in TREES
        if is_below(module, *TRANSPORTS) and module != "mms.http.edge"
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Attribute) and node.attr in decisions
    }
    assert not guilty


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("mms.errors", set()),
        ("mms.version", set()),
        ("mms.lazy", set()),
        ("mms.service", {"mms.context", "mms.lazy", "mms.metrics", "mms.protocol", "mms.version"}),
        ("mms.quoting", set()),
        ("mms.log", {"mms.errors"}),
        ("mms.wire", {"mms.errors"}),
        ("mms.metrics", {"mms.errors", "mms.lazy"}),
        ("mms.metric", set()),
        ("mms.archive", {"mms.errors", "mms.files", "mms.quoting", "mms.version"}),
        ("mms.serving.queue", {"mms.errors", "mms.wire"}),
        ("mms.serving.queue.dispatcher", {"mms.errors", "mms.serving.queue"}),
        ("mms.serving.pool.machine", {"mms.errors", "mms.serving.pool", "mms.serving.lifecycle"}),
    ],
)
def test_the_foundations_import_nothing_above_them(module: str, allowed: set[str]) -> None:
    inside = [name for name in TREES if is_below(name, module)]
    assert inside
    found = {name for name in inside for name in MODULES[name]}
    assert {name for name in found if not is_below(name, module, *allowed)} == set()


#: Routes whose requests reach workers.
ROUTES = {"predictions", "predictions_version", "legacy_predict", "invocations", "v2_infer"}


def test_workers_know_dialects_and_no_routes() -> None:
    guilty = {
        (module, node.value)
        for module, tree in TREES.items()
        if is_below(module, "mms.wire", "mms.worker", "mms.quantization")
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and node.value in ROUTES
    }
    assert not guilty


def test_transports_do_not_look_into_manifests_to_see_who_wants_headers() -> None:
    guilty = {
        module
        for module, tree in TREES.items()
        if is_below(module, "mms.http", "mms.grpc") and "manifest.handler" in ast.unparse(tree)
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
