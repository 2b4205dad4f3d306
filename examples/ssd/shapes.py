"""Generated pictures of circles, squares and triangles, and where the shapes are.

Each picture has a background of two blended colours with clutter and noise, and one to four
shapes in any colour, size and rotation. Lines of the same colours cross the picture, so colour
alone tells nothing. The shapes' boxes do not overlap. Needs Pillow and NumPy only.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

CLASSES = ("circle", "square", "triangle")

MAX_SHAPES = 4
# Of the picture's shorter side; the anchors of `detector.py` cover this range.
MIN_EXTENT, MAX_EXTENT = 0.15, 0.5
# Sum of the three channels' differences from which a shape can be told from what it lies on.
MIN_CONTRAST = 160
CLUTTER_LINES = 5
MAX_NOISE = 16.0
# Of the picture in the README; 3 n + 2, while `train.py` draws from 3 n and 3 n + 1.
SAMPLE_SEED = 185
SAMPLE_WIDTH, SAMPLE_HEIGHT = 320, 240
# Tries to find room for a shape before the picture is left with one fewer.
MAX_TRIES = 20


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture and what it shows.

    Attributes:
        image: RGB.
        labels: Shape (M, 5) float32, M >= 1: class, then left, top, right, bottom as shares of
            the picture's width and height.
    """

    image: Image.Image
    labels: NDArray[np.float32]


def generate(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Draw a picture of `width` x `height` pixels."""
    background = _colour(rng)
    image = _backdrop(rng, background, width, height)
    draw = ImageDraw.Draw(image)
    for _ in range(CLUTTER_LINES):
        ends = rng.uniform((0, 0), (width, height), size=(2, 2))
        draw.line([tuple(end) for end in ends.tolist()], fill=_colour(rng), width=1)
    labels: list[tuple[int, float, float, float, float]] = []
    for _ in range(int(rng.integers(1, MAX_SHAPES + 1))):
        shape = int(rng.integers(len(CLASSES)))
        outline = _place(rng, shape, [label[1:] for label in labels], width, height)
        if outline is not None:
            draw.polygon([tuple(point) for point in outline.tolist()], fill=_far(rng, background))
            left, top = outline.min(axis=0) / (width, height)
            right, bottom = outline.max(axis=0) / (width, height)
            labels.append((shape, left, top, right, bottom))
    noise = rng.normal(0, rng.uniform(0, MAX_NOISE), (height, width, 3))
    pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
    return Picture(Image.fromarray(pixels), np.array(labels, dtype=np.float32))


def sample() -> Picture:
    """Draw the picture of the README."""
    return generate(np.random.default_rng(SAMPLE_SEED), SAMPLE_WIDTH, SAMPLE_HEIGHT)


def _backdrop(
    rng: np.random.Generator, colour: tuple[int, int, int], width: int, height: int
) -> Image.Image:
    """Blend a colour's neighbourhood over the picture, from four by four random patches."""
    patches = np.clip(np.array(colour) + rng.normal(0, 20, (4, 4, 3)), 0, 255).astype(np.uint8)
    return Image.fromarray(patches).resize((width, height), Image.Resampling.BICUBIC)


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = rng.integers(0, 256, size=3).tolist()
    return red, green, blue


def _far(rng: np.random.Generator, other: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return a colour that can be told from another."""
    while True:
        colour = _colour(rng)
        if sum(abs(a - b) for a, b in zip(colour, other, strict=True)) >= MIN_CONTRAST:
            return colour


def _place(
    rng: np.random.Generator,
    shape: int,
    boxes: list[tuple[float, float, float, float]],
    width: int,
    height: int,
) -> NDArray[np.float64] | None:
    """Return the corners (K, 2) in pixels of a shape that touches none of the boxes, if it fits."""
    for _ in range(MAX_TRIES):
        outline = _outline(rng, shape) * min(width, height) * rng.uniform(MIN_EXTENT, MAX_EXTENT)
        extent = np.ptp(outline, axis=0)
        room = np.array([width, height]) - 1 - extent
        outline += rng.uniform(0, 1, 2) * room - outline.min(axis=0)
        left, top = outline.min(axis=0) / (width, height)
        right, bottom = outline.max(axis=0) / (width, height)
        if all(right < b[0] or left > b[2] or bottom < b[1] or top > b[3] for b in boxes):
            return outline
    return None


def _outline(rng: np.random.Generator, shape: int) -> NDArray[np.float64]:
    """Return a shape's corners (K, 2), turned at random; the longer side of their box is 1."""
    corners = {"circle": 48, "square": 4, "triangle": 3}[CLASSES[shape]]
    angles = rng.uniform(0, 2 * math.pi) + np.arange(corners) * (2 * math.pi / corners)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    unit: NDArray[np.float64] = points / np.ptp(points, axis=0).max()
    return unit


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--width", default=SAMPLE_WIDTH)
@click.option("--height", default=SAMPLE_HEIGHT)
@click.option("--seed", default=SAMPLE_SEED)
def main(output: Path, width: int, height: int, seed: int) -> None:
    """Write a picture to OUTPUT, for the detector to be asked about."""
    generate(np.random.default_rng(seed), width, height).image.save(output, quality=90)


if __name__ == "__main__":
    main()
