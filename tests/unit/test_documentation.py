"""The documentation says what the code does."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mms.config.build import build_config
from mms.config.settings import ModelSettings, ServerSettings
from mms.version import __version__
from mms.wire.frames import FrameType
from tests.unit.test_imports import ROOMS, STARTED, TREES, module_name

ROOT = Path(__file__).parents[2]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
#: The pages for those who work on the code; what they name of it must be there.
DEVELOPER_PAGES = [ARCHITECTURE, ROOT / "CONTRIBUTING.md"]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_what_the_code_declares(generate: ModuleType) -> None:
    assert (ROOT / "docs" / "reference.md").read_text() == generate.reference(), "run: make docs"


def test_the_page_on_metrics_is_what_the_code_declares(generate: ModuleType) -> None:
    assert (ROOT / "docs" / "metrics.md").read_text() == generate.metrics(), "run: make docs"


def test_the_example_file_is_what_the_code_declares(generate: ModuleType) -> None:
    assert (ROOT / "docs" / "mms.example.yaml").read_text() == generate.example(), "run: make docs"


def test_the_page_on_the_architecture_draws_what_the_code_does(generate: ModuleType) -> None:
    page = ARCHITECTURE.read_text()
    assert page == generate.architecture(page, ROOMS, STARTED), "run: make docs"


def test_the_map_of_1x_s_configuration_is_the_program_s(generate: ModuleType) -> None:
    page = (ROOT / "docs" / "migration.md").read_text()
    assert page == generate.migration(page), "run: make docs"
    assert "| `job_queue_size` | `queue_size` |" in page


@pytest.mark.parametrize("path", DEVELOPER_PAGES, ids=lambda path: path.name)
def test_whatever_of_the_code_a_page_names_is_there(path: Path) -> None:
    page = path.read_text()
    files = set(re.findall(r"\b(?:mms|tests|benchmarks|docs|examples|docker)/[\w./-]*\w/?", page))
    assert {name for name in files if not (ROOT / name).exists()} == set()
    modules = set(re.findall(r"\bmms(?:\.\w+)+", page)) - {"mms.example.yaml"}
    assert {name for name in modules if not _resolves(name)} == set()
    members = set(re.findall(r"`([A-Z][a-z]\w*)\.(\w+)`", page))
    assert {(cls, name) for cls, name in members if name not in _members(cls)} == set()
    classes = set(re.findall(r"`((?:[A-Z][a-z]+){2,})`", page))
    assert {name for name in classes if not any(_classes(name))} == set()
    assert files | modules


def test_each_call_in_a_diagram_is_in_the_source() -> None:
    found = list(_arrows(ARCHITECTURE.read_text()))
    calls = [arrow for arrow in found if arrow[2].endswith("()")]
    assert len(calls) > 30
    for caller, callee, label in calls:
        name = label[:-2]
        assert name in {node.name for node in ast.walk(callee) if isinstance(node, _FUNCTIONS)}
        called = [node.func for node in ast.walk(caller) if isinstance(node, ast.Call)]
        assert name in {node.attr for node in called if isinstance(node, ast.Attribute)}, label


def test_each_frame_and_instruction_in_a_diagram_is_there() -> None:
    labels = [(sender, label) for sender, _, label in _arrows(ARCHITECTURE.read_text())]
    frames = {name for _, label in labels for name in re.findall(r"\b[A-Z]{4,}\b", label)}
    assert frames - {"POST"} <= {frame.name for frame in FrameType}
    instructions = [
        (sender, name) for sender, label in labels for name in re.findall(r"(\w+)\(\w+\)", label)
    ]
    assert instructions
    for sender, name in instructions:
        called = [node.func for node in ast.walk(sender) if isinstance(node, ast.Call)]
        assert name in {node.id for node in called if isinstance(node, ast.Name)}, name


_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: Arrows of one diagram: who, to whom, and what.
_ARROW = re.compile(r"^ +(\w+)--?>>(\w+): (.+)$", re.MULTILINE)
_PARTICIPANT = re.compile(r"^ +participant (\w+) as (?:\w+<br/>)?([\w/.]+)$", re.MULTILINE)


def _arrows(page: str) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    """Yield sender, receiver and label of each arrow between two parts of the code.

    A part is the class that a participant is called after, or else the whole module.
    """
    for diagram in re.findall(r"```mermaid\nsequenceDiagram\n(.*?)```", page, re.DOTALL):
        parts: dict[str, ast.AST] = {}
        for name, path in _PARTICIPANT.findall(diagram):
            tree = TREES[module_name(ROOT / path)]
            classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
            assert name in classes or name.islower(), f"{path} has no class {name}"
            parts[name] = classes.get(name, tree)
        for sender, receiver, label in _ARROW.findall(diagram):
            if "client" not in (sender, receiver):
                yield parts[sender], parts[receiver], label


def _resolves(name: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines."""
    if name in TREES:
        return True
    module, _, attribute = name.rpartition(".")
    return module in TREES and attribute in _names(TREES[module])


def _members(cls: str) -> set[str]:
    """Return the names that the classes of a name define, whatever module they are in."""
    return {name for node in _classes(cls) for name in _names(node)}


def _classes(name: str) -> Iterator[ast.ClassDef]:
    for tree in TREES.values():
        yield from (n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)


def _names(node: ast.Module | ast.ClassDef) -> set[str]:
    names = {child.name for child in node.body if isinstance(child, (*_FUNCTIONS, ast.ClassDef))}
    for child in node.body:
        targets: list[ast.expr] = [child.target] if isinstance(child, ast.AnnAssign) else []
        targets += child.targets if isinstance(child, ast.Assign) else []
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    # Attributes that a class gives itself.
    return names | {
        child.attr
        for child in ast.walk(node)
        if isinstance(child, ast.Attribute) and isinstance(child.ctx, ast.Store)
    }


def test_the_example_file_sets_every_key_to_its_default() -> None:
    path = ROOT / "docs" / "mms.example.yaml"
    document = yaml.safe_load(path.read_text())
    declared = dataclasses.asdict(ServerSettings()) | dataclasses.asdict(ModelSettings())
    settings = {
        key: list(value) if isinstance(value, tuple) else value for key, value in declared.items()
    }
    assert {key: value for key, value in document.items() if key != "models"} == settings
    config = build_config([], {}, {}, path)
    assert config.server == ServerSettings()
    assert {model.name: model.path for model in config.models} == {
        "crepe": "build/character_cnn.model",
        "resnet": "models/resnet.model",
    }


def test_the_changelog_knows_this_version() -> None:
    assert f"## {__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_file_that_the_documentation_links_to_exists() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    for document in [*documents, *ROOT.glob("examples/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_every_heading_that_the_documentation_links_to_exists() -> None:
    checked = 0
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]:
        for target, anchor in re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", document.read_text()):
            page = document.parent / target if target else document
            headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}
            assert anchor in anchors, f"{document}: {target}#{anchor}"
            checked += 1
    assert checked


def test_every_make_target_that_the_documentation_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [*ROOT.glob("*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"`make ([a-z-]+)`", document.read_text()):
            assert target in targets, f"{document}: make {target}"


#: Beginnings of a docstring that no class or function has.
_DIALECT = ("Give", "Take note")
#: Beginnings of a function's docstring that are not a verb in the imperative.
_NO_VERBS = (*_DIALECT, "Who ", "Whoever ", "What ", "How ", "Of ", "Be ")
_VERBS = ("Give up", "Give back")

#: Phrases for which users have a word: an integer, a string, not a valid file of this kind.
_NO_TERMS = re.compile(r"\bwhole numbers?\b|\ba text\b|\bnone of ours\b", re.IGNORECASE)

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def sources() -> list[tuple[Path, ast.Module]]:
    paths = sorted((ROOT / "mms").rglob("*.py"))
    return [(path.relative_to(ROOT), ast.parse(path.read_text())) for path in paths]


def test_no_docstring_narrates_what_it_gives() -> None:
    # Return, record, resolve, decode: the verbs of the field, in the imperative.
    found = [
        f"{path}:{node.lineno}: {docstring.splitlines()[0]}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and (docstring := ast.get_docstring(node) or "")
        and docstring.startswith(_DIALECT if isinstance(node, ast.ClassDef) else _NO_VERBS)
        and not docstring.startswith(_VERBS)
    ]
    assert found == []


def test_no_message_translates_a_term_of_the_field() -> None:
    found = [
        f"{path}:{node.lineno}: {node.value}"
        for path, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and _NO_TERMS.search(node.value)
        and id(node) not in docstrings(tree)
    ]
    assert found == []


def docstrings(tree: ast.Module) -> set[int]:
    """Return the identities of the constants that are docstrings, which no user sees."""
    return {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, _DOCUMENTED) and node.body and isinstance(node.body[0], ast.Expr)
    }
