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


_AVOIDED = ("Give ", "Take note", "Gives ")


def test_no_docstring_narrates_what_it_gives() -> None:
    # Return, record, resolve, decode: the verbs of the field, in the imperative.
    found = [
        f"{path}: {docstring.splitlines()[0]}"
        for path in sorted((ROOT / "mms").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        and (docstring := ast.get_docstring(node) or "")
        and docstring.startswith(_AVOIDED)
        and not docstring.startswith(("Give up", "Give back"))
    ]
    assert found == []
