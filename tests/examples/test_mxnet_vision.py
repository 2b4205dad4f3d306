"""LeNet on digits, served by the default vision service."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from tests.examples.readme import EXAMPLES, URL, Example, Served

#: Training and loading MXNet several times; a busy machine takes its time.
pytestmark = pytest.mark.timeout(300)

ASK = f"{URL}/predictions/digits"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    example = Example("mxnet_vision", tmp_path_factory.mktemp("mxnet_vision"))
    example.build()
    with example.serve() as served:
        yield served


def test_the_archive_holds_a_symbol_and_the_default_service(served: Served) -> None:
    with zipfile.ZipFile(served.example.folder / "mxnet_vision.model") as archive:
        manifest = json.loads(archive.read("MANIFEST.json"))["Model"]
    assert manifest["Symbol"] == "lenet-symbol.json"
    assert manifest["Service"] == "default_service.py"
    assert not list((EXAMPLES / "mxnet_vision").glob("*service*"))


def test_the_readmes_digit_is_read(served: Served) -> None:
    answers = served.readme_answers()
    assert len(answers) == 2
    for best in (answers[0][0], answers[1]["prediction"][0]):
        assert len(best) == 5
        assert best[0]["class"] == "two"
        probabilities = [entry["probability"] for entry in best]
        assert probabilities == sorted(probabilities, reverse=True)
        assert 0.9 < sum(probabilities) <= 1.0001


def test_a_colour_picture_is_read_in_grey(served: Served, tmp_path: Path) -> None:
    with Image.open(EXAMPLES / "mxnet_vision" / "digit.png") as digit:
        digit.convert("RGB").save(tmp_path / "digit.jpg", quality=95)
    status, answer = served.ask("-X", "POST", "-T", str(tmp_path / "digit.jpg"), ASK)
    assert status == 200
    assert answer[0][0]["class"] == "two"


def test_what_is_no_picture_is_refused(served: Served) -> None:
    status, answer = served.ask(
        "-X", "POST", "-T", str(EXAMPLES / "mxnet_vision" / "README.md"), ASK
    )
    assert status == 400
    assert "image" in answer["error"]["message"]
