"""The detector, having learnt its sample picture by heart, finds what was drawn in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.examples.readme import EXAMPLES, URL, Example, Served, is_same_picture, run

#: Training and loading MXNet several times; a busy machine takes its time.
pytestmark = pytest.mark.timeout(300)

FOLDER = EXAMPLES / "ssd"
ASK = f"{URL}/predictions/ssd"
WIDTH, HEIGHT = 320, 240

#: Gives what is to be seen in the sample picture, from the generator that drew it.
_TRUTH = """
import json, shapes
labels = shapes.sample().labels.tolist()
print(json.dumps([[shapes.CLASSES[int(label)], box] for label, *box in labels]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    example = Example("ssd", tmp_path_factory.mktemp("ssd"))
    example.build()
    with example.serve() as served:
        yield served


@pytest.fixture(scope="module")
def truth() -> list[tuple[str, list[float]]]:
    """Return class and box in pixels of each shape in the sample picture."""
    script = f"import sys; sys.path.insert(0, {str(FOLDER)!r}){_TRUTH}"
    sizes = (WIDTH, HEIGHT, WIDTH, HEIGHT)
    return [
        (name, [share * size for share, size in zip(box, sizes, strict=True)])
        for name, box in json.loads(run(sys.executable, "-c", script))
    ]


def overlap(one: list[float], other: list[float]) -> float:
    """Return two boxes' intersection over union."""
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(across, 0.0) * max(down, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


def check(found: list[dict[str, Any]], truth: list[tuple[str, list[float]]]) -> None:
    """Check that all that was drawn was found, where it was drawn, and nothing else."""
    assert len(found) == len(truth)
    for name, box in truth:
        (hit,) = [thing for thing in found if overlap(thing["box"], box) > 0.5]
        assert hit["class"] == name
    scores = [thing["score"] for thing in found]
    assert scores == sorted(scores, reverse=True)
    assert all(0.4 <= score <= 1 for score in scores)


def test_the_readmes_picture_is_the_sample(served: Served) -> None:
    sample = served.example.folder / "ssd" / "sample.jpg"
    assert is_same_picture(sample, FOLDER / "shapes.jpg")


def test_shapes_are_found_where_they_were_drawn(
    served: Served, truth: list[tuple[str, list[float]]]
) -> None:
    (found,) = served.readme_answers()
    assert {name for name, _ in truth} == {"circle", "square", "triangle"}
    check(found, truth)


def test_boxes_are_in_the_pixels_of_the_picture_sent(
    served: Served, truth: list[tuple[str, list[float]]], tmp_path: Path
) -> None:
    with Image.open(FOLDER / "shapes.jpg") as picture:
        picture.resize((2 * WIDTH, 3 * HEIGHT)).save(tmp_path / "large.png")
    status, found = served.ask("-X", "POST", "-T", str(tmp_path / "large.png"), ASK)
    assert status == 200
    check(found, [(name, [2 * x, 3 * y, 2 * r, 3 * b]) for name, (x, y, r, b) in truth])


def test_the_client_draws_what_the_server_answers(served: Served) -> None:
    (command,) = [c for c in served.example.commands("python") if c[0].endswith("draw.py")]
    output = Path(command[2])
    printed = run(sys.executable, *command, "--url", ASK.replace(URL, served.url))
    (found,) = served.readme_answers()
    assert printed == f"{output}: {len(found)} boxes\n"
    circle = next(thing["box"] for thing in found if thing["class"] == "circle")
    with Image.open(output) as drawn:
        assert drawn.format == "PNG"
        assert drawn.size == (WIDTH, HEIGHT)
        edge = drawn.convert("RGB").crop((circle[0], circle[3] - 9, circle[0] + 1, circle[3] - 8))
    red, green, blue = edge.tobytes()
    assert red > 200 > 100 > green
    assert blue < 150


def test_the_client_says_that_nobody_answers(tmp_path: Path) -> None:
    command = [str(FOLDER / "draw.py"), str(FOLDER / "shapes.jpg"), str(tmp_path / "boxes.png")]
    with pytest.raises(AssertionError, match="is the server running"):
        run(sys.executable, *command, "--url", "http://127.0.0.1:9/predictions/ssd")
    assert not list(tmp_path.iterdir())
