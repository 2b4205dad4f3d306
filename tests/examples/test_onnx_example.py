"""The ONNX example, built and asked as its README says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.e2e.test_cli import Command
from tests.examples.readme import EXAMPLES, Shell, shell_lines
from tests.kit.processes import resign_as_subreaper

README = EXAMPLES / "onnx" / "README.md"
NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    resign_as_subreaper()
    return Shell(tmp_path_factory.mktemp("onnx"))


@pytest.fixture(scope="module")
def printed(shell: Shell) -> dict[str, str]:
    return shell.prepare(README)


@pytest.fixture(scope="module")
def server(shell: Shell, printed: dict[str, str]) -> Iterator[Command]:
    command = shell.serve(README)
    command.url()
    yield command
    command.process.terminate()
    assert command.end() == 0, command.output


@pytest.fixture(scope="module")
def sample(printed: dict[str, str]) -> int:
    """Return the digit that the sample requests are."""
    found = re.search(r"the sample request is a (\d)", "".join(printed.values()))
    assert found is not None
    return int(found[1])


def test_the_network_reads_digits_that_it_has_not_seen(printed: dict[str, str]) -> None:
    found = re.search(r"accuracy on (\d+) unseen digits: ([\d.]+)", "".join(printed.values()))
    assert found is not None
    assert int(found[1]) == 450
    assert float(found[2]) > 0.95


def test_both_archives_answer_their_samples(printed: dict[str, str]) -> None:
    checks = [text for text in printed.values() if "ONNX model" in text]
    assert len(checks) == 2
    assert all("check: the archive loads and answers its sample: [[" in text for text in checks)


def test_numbers_are_answered_by_label_and_probabilities(
    shell: Shell, server: Command, sample: int
) -> None:
    (ask,) = (c for c in shell_lines(README) if "/predictions/digits " in c)
    (label,), (probabilities,) = json.loads(shell.run(ask, server.url()))
    assert label == sample
    assert len(probabilities) == 10
    assert sum(probabilities) == pytest.approx(1)
    assert probabilities[sample] == max(probabilities) > 0.99


def test_a_picture_is_answered_by_the_best_labels(
    shell: Shell, server: Command, sample: int
) -> None:
    (ask,) = (c for c in shell_lines(README) if "/predictions/digits_image " in c)
    ((best, *others),) = json.loads(shell.run(ask, server.url()))
    assert best["class"] == NAMES[sample]
    assert best["probability"] > 0.99
    assert len(others) == 4
