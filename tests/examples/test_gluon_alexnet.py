"""AlexNet as a hybrid and as an imperative network, from one parameter file."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.examples.readme import EXAMPLES, URL, Example, Served, is_same_picture, run

#: Training and loading MXNet several times; a busy machine takes its time.
pytestmark = pytest.mark.timeout(300)

FOLDER = EXAMPLES / "gluon_alexnet"

#: Compares both networks, at the paper's width, with the model zoo's AlexNet: the names of the
#: parameters and how many filters or units each has.
_SHAPES = """
import json
from gluon_hybrid_alexnet import HybridAlexNet
from gluon_imperative_alexnet import ImperativeAlexNet
from mxnet.gluon.model_zoo.vision import alexnet
width = {"classes": 1000, "filters": (64, 192, 384, 256, 256), "units": 4096}
nets = [alexnet(), HybridAlexNet(**width), ImperativeAlexNet(**width)]
print(json.dumps([
    {name: p.shape[0] for name, p in net._collect_params_with_prefix().items()} for net in nets
]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    example = Example("gluon_alexnet", tmp_path_factory.mktemp("gluon_alexnet"))
    example.build()
    with example.serve() as served:
        yield served


def check(answer: list[dict[str, Any]]) -> None:
    """Check that an answer is the five best of the ten textures, blobs being the best."""
    assert answer[0]["class"] == "blobs"
    textures = (FOLDER / "synset.txt").read_text().split()
    assert len(answer) == 5
    assert {entry["class"] for entry in answer} < set(textures)
    probabilities = [entry["probability"] for entry in answer]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.5 < sum(probabilities) <= 1.0001


def test_the_readmes_picture_is_the_sample(served: Served) -> None:
    sample = served.example.folder / "gluon_alexnet" / "sample.jpg"
    assert is_same_picture(sample, FOLDER / "blobs.jpg")


def test_both_networks_name_the_readmes_texture(served: Served) -> None:
    hybrid, imperative, legacy = served.readme_answers()
    check(hybrid)
    check(imperative)
    check(legacy["prediction"])


def test_one_parameter_file_makes_two_equal_networks(served: Served) -> None:
    picture = str(FOLDER / "blobs.jpg")
    _, hybrid = served.ask("-X", "POST", "-T", picture, f"{URL}/predictions/hybrid")
    _, imperative = served.ask("-X", "POST", "-T", picture, f"{URL}/predictions/imperative")
    for one, other in zip(hybrid, imperative, strict=True):
        assert one["class"] == other["class"]
        assert one["probability"] == pytest.approx(other["probability"], rel=1e-3, abs=1e-6)


def test_what_is_no_picture_is_refused(served: Served) -> None:
    status, answer = served.ask(
        "-X", "POST", "-T", str(FOLDER / "README.md"), f"{URL}/predictions/hybrid"
    )
    assert status == 400
    assert "image" in answer["error"]["message"]


def test_at_full_width_both_are_the_model_zoos_network() -> None:
    script = f"import sys; sys.path.insert(0, {str(FOLDER)!r}){_SHAPES}"
    zoo, hybrid, imperative = json.loads(run(sys.executable, "-c", script))
    assert hybrid == zoo
    assert imperative == zoo
