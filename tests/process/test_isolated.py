"""What runs in a child of a worker, to leave no traces in it."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from mms.worker.isolated import run_isolated


def _hang() -> str:
    time.sleep(600)
    return ""


def test_what_runs_leaves_nothing_behind() -> None:
    seen: list[int] = []

    def work() -> str:
        seen.append(os.getpid())
        return f"{len(seen)} é"

    assert run_isolated(work) == "1 é"
    assert seen == []


@pytest.mark.parametrize(
    ("work", "said"),
    [
        (lambda: os._exit(1), "it killed its process"),
        (lambda: str(1 / 0), "it killed its process"),
        (_hang, "it did not end within 0.2 seconds"),
    ],
    ids=["exit", "raise", "hang"],
)
def test_what_does_not_end_well_says_so(work: Any, said: str) -> None:
    with pytest.raises(OSError, match=said):
        run_isolated(work, 0.2 if "within" in said else 20.0)
