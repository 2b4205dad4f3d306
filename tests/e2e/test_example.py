"""The example of the README, as `make serve` builds it, asked as the README says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_cli import Command

ROOT = Path(__file__).parents[2]
ARCHIVE = ROOT / "build" / "character_cnn.model"


def readme_requests() -> list[tuple[list[str], Any]]:
    """Return each curl command of the README's first section, and the answer it promises."""
    text = (ROOT / "README.md").read_text().split("## Your own model")[0]
    found = re.findall(r"^(curl (?:.*\\\n)*.*)\n# (.+)$", text, re.MULTILINE)
    return [
        (shlex.split(command.replace("\\\n", " ")), json.loads(said)) for command, said in found
    ]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Command]:
    assert ARCHIVE.exists(), "the example is not built; `make test` builds it"
    folder = tmp_path_factory.mktemp("example")
    command = Command(folder, "--models", f"crepe={ARCHIVE}", "--management-port", "-1")
    command.url()
    yield command
    command.process.terminate()
    assert command.end() == 0, command.output


def test_the_readme_shows_both_requests_of_the_announcement() -> None:
    assert len(readme_requests()) == 2


@pytest.mark.parametrize(("command", "said"), readme_requests())
def test_a_request_of_the_readme_is_answered_as_it_says(
    server: Command, command: list[str], said: Any
) -> None:
    asked = [part.replace("http://127.0.0.1:8080", server.url()) for part in command]
    done = subprocess.run(
        [*asked, "--silent", "--show-error"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == said


def test_a_review_without_its_text_is_refused_by_the_service_itself(server: Command) -> None:
    url = f"{server.url()}/predictions/crepe"
    command = ["curl", "-s", "-w", "%{http_code}", url, "-H", "content-type: application/json"]
    done = subprocess.run(
        [*command, "-d", '[{"review_title": "great"}]'], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("400")
    assert "'review' of review 0 is missing" in done.stdout
