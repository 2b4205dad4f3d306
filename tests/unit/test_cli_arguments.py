"""Arguments as v0.4 took them."""

from __future__ import annotations

from pathlib import Path

import pytest

from mms.cli.serve import expand_models

CASES = [
    ("", ""),
    ("--models a=x", "--models a=x"),
    ("--models a=x b=y", "--models a=x --models b=y"),
    ("--models a=x b=y --port 1", "--models a=x --models b=y --port 1"),
    ("--port 1 --models a=x b=y", "--port 1 --models a=x --models b=y"),
    ("--models a=x --models b=y c=z", "--models a=x --models b=y --models c=z"),
    ("--models x.model y.model", "--models x.model --models y.model"),
    ("--models=a=x b=y --port 1", "--models a=x --models b=y --port 1"),
    ("--models", "--models"),
    ("--port 1", "--port 1"),
]


@pytest.mark.parametrize(("given", "expanded"), CASES)
def test_several_pairs_may_follow_one_flag(given: str, expanded: str) -> None:
    assert expand_models(given.split()) == expanded.split()


def test_paths_with_spaces_stay_whole(tmp_path: Path) -> None:
    path = f"{tmp_path}/my model.model"
    assert expand_models(["--models", f"a={path}"]) == ["--models", f"a={path}"]
