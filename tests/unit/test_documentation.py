"""The documentation says what the code does."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from mms.config.build import build_config
from mms.config.settings import ModelSettings, ServerSettings
from mms.version import __version__

ROOT = Path(__file__).parents[2]


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
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    for document in [*documents, *ROOT.glob("examples/*/README.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_every_make_target_that_the_documentation_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for document in [ROOT / "README.md", *ROOT.glob("*/README.md"), *ROOT.glob("docs/*.md")]:
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
