"""Every network of the list is converted, and answers as MXNet does on both engines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.convert.networks import NETWORKS
from tests.convert.table import Row

#: One process for all: three minutes on two slow cores.
TIMEOUT_S = 1200
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Row]:
    """Run the table in a process of its own, as ``make engines-networks`` does."""
    output = tmp_path_factory.mktemp("table") / "networks"
    done = subprocess.run(
        [sys.executable, "-m", "tests.convert.table", str(output)],
        capture_output=True, text=True, timeout=TIMEOUT_S, env=ENVIRONMENT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    assert Path(f"{output}.md").read_text(encoding="utf-8").count("\n| ") >= len(NETWORKS)
    document = json.loads(Path(f"{output}.json").read_text(encoding="utf-8"))
    return {row.name: row for row in msgspec.convert(document, list[Row])}


def test_there_are_thirty_networks() -> None:
    assert len(NETWORKS) >= 30


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.parametrize("name", NETWORKS)
def test_a_converted_network_answers_as_mxnet_does(rows: dict[str, Row], name: str) -> None:
    row, case = rows[name], NETWORKS[name]
    assert not row.reason
    assert not row.refused
    assert {agreement.score for agreement in row.agreements.values()} == {1.0}
    assert len(row.agreements) == 2
    # Three sizes, unless the first axis is not the batch.
    assert all(len(a.batch_sizes) == 3 or a.rows > 12 for a in row.agreements.values())
    assert set(row.tail) == set(case.cut)
