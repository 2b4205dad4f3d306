"""No graph that is broken on purpose is taken for a right one."""

from __future__ import annotations

import json
import subprocess
import sys

import msgspec
import pytest

from tests.convert.broken import Broken
from tests.convert.mutants import MUTATIONS
from tests.convert.networks import NETWORKS
from tests.convert.test_networks import ENVIRONMENT, TIMEOUT_S

SMALL = [name for name, case in NETWORKS.items() if case.is_small]
#: What these change, some networks do not have: a size that is even is the same rounded up or
#: down, and an initial state of zeros has no order.
MAY_CHANGE_NOTHING = {"flip_rounding", "turn_axes"}


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> list[Broken]:
    """Break all of them in a process of its own."""
    output = tmp_path_factory.mktemp("broken") / "broken.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.convert.broken", str(output)],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    return msgspec.convert(json.loads(output.read_bytes()), list[Broken])


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", SMALL)
def test_no_broken_graph_agrees(broken: list[Broken], name: str) -> None:
    whole, *others = [row for row in broken if row.network == name]
    assert not whole.mutation
    assert not whole.reason
    assert others
    passed = [(row.mutation, row.place) for row in others if not row.reason and not row.is_same]
    assert not passed
    same = {row.mutation for row in others if row.is_same}
    assert same <= MAY_CHANGE_NOTHING


@pytest.mark.timeout(TIMEOUT_S)
def test_every_way_to_break_a_graph_was_tried_and_most_graphs_ran(broken: list[Broken]) -> None:
    tried = [row for row in broken if row.mutation]
    assert {row.mutation for row in tried} == {mutation.__name__ for mutation in MUTATIONS}
    ran = [row for row in tried if row.max_error > 0]
    assert len(ran) >= len(tried) / 2
