"""Generated pictures of ten textures, of many colours and scales, a little tilted.

They stand in for ImageNet, which may not be passed on: what tells the classes apart are edges
and their arrangement, which is what the first layers of AlexNet look for. Hue tells nothing.
Needs NumPy and Pillow only.
"""

import math
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

# Values by row and column of the picture.
Plane = NDArray[np.float32]

# Repetitions of the pattern across the picture.
MIN_REPEATS, MAX_REPEATS = 4.0, 10.0
MAX_TILT = math.radians(20)
# A dark colour and a light one, of any hue.
MAX_DARK, MIN_LIGHT = 100, 150
MAX_NOISE = 30.0
# How far lighting dims one corner.
MAX_SHADE = 0.5


def _triangle(x: Plane) -> Plane:
    """Return the wave that rises and falls in straight lines, of period 1 and range -1..1."""
    wave: Plane = 4 * np.abs(x - np.floor(x + 0.5)) - 1
    return wave


def _stripes(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _triangle(u)


def _checks(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    squares: Plane = np.sign(_triangle(u)) * np.sign(_triangle(v))
    return squares


def _chevrons(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _triangle(u + 0.5 * _triangle(v * 0.5))


def _waves(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    bent: Plane = np.sin(2 * math.pi * (u + 0.4 * np.sin(math.pi * v)))
    return bent


def _dots(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return rng.uniform(0.25, 0.38) - np.hypot(u - np.round(u), v - np.round(v))


def _rings(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _triangle(np.hypot(u, v))


def _grid(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    to_line = np.minimum(np.abs(u - np.round(u)), np.abs(v - np.round(v)))
    lines: Plane = rng.uniform(0.1, 0.16) - to_line
    return lines


def _bricks(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    along = u / 2 + np.floor(v) / 2
    gaps = np.minimum(2 * np.abs(along - np.round(along)), np.abs(v - np.round(v)))
    bricks: Plane = gaps - rng.uniform(0.06, 0.12)
    return bricks


def _blobs(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _noise(rng, u.shape, cells=int(rng.integers(10, 20)))


def _speckles(u: Plane, v: Plane, rng: np.random.Generator) -> Plane:
    return _noise(rng, u.shape, cells=int(rng.integers(40, 70))) - 0.9


PATTERNS: dict[str, Callable[[Plane, Plane, np.random.Generator], Plane]] = {
    "blobs": _blobs,
    "bricks": _bricks,
    "checks": _checks,
    "chevrons": _chevrons,
    "dots": _dots,
    "grid": _grid,
    "rings": _rings,
    "speckles": _speckles,
    "stripes": _stripes,
    "waves": _waves,
}
CLASSES = tuple(PATTERNS)


def generate(rng: np.random.Generator, label: int, size: int) -> Image.Image:
    """Draw a picture of `size` x `size` pixels of the texture with this number."""
    u, v = _coordinates(rng, size)
    values = PATTERNS[CLASSES[label]](u, v, rng)
    # Edges one to three pixels wide: a share of the pattern's own slope per pixel.
    slope = float(np.abs(np.diff(values, axis=1)).mean()) + 1e-6
    share = (1 + np.tanh(values / (slope * rng.uniform(0.6, 2.0)))) / 2
    dark, light = _colours(rng)
    pixels = dark + share[..., np.newaxis] * (light - dark)
    pixels *= _shade(rng, size)[..., np.newaxis]
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    pixels += noise * np.float32(rng.uniform(0, MAX_NOISE))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _coordinates(rng: np.random.Generator, size: int) -> tuple[Plane, Plane]:
    """Return the pattern's two coordinates (size, size) per pixel: scaled, turned and shifted."""
    repeats = rng.uniform(MIN_REPEATS, MAX_REPEATS)
    angle = rng.uniform(-MAX_TILT, MAX_TILT)
    steps = np.linspace(-0.5, 0.5, size, dtype=np.float32) * np.float32(repeats)
    x, y = np.meshgrid(steps, steps)
    shift = rng.uniform(-1, 1, 2)
    u: Plane = x * math.cos(angle) + y * math.sin(angle) + float(shift[0])
    v: Plane = y * math.cos(angle) - x * math.sin(angle) + float(shift[1])
    return u, v


def _noise(rng: np.random.Generator, shape: tuple[int, ...], cells: int) -> Plane:
    """Return smooth noise of this shape, of variance about 1, from `cells` values per side."""
    coarse = Image.fromarray(rng.standard_normal((cells, cells), dtype=np.float32))
    fine: Plane = np.asarray(coarse.resize((shape[1], shape[0]), Image.Resampling.BICUBIC))
    fine = fine / fine.std()
    return fine


def _colours(rng: np.random.Generator) -> Plane:
    """Return two colours (2, 3), a dark one and a light one."""
    colours = np.stack([rng.uniform(0, MAX_DARK, 3), rng.uniform(MIN_LIGHT, 255, 3)])
    single: Plane = colours.astype(np.float32)
    return single


def _shade(rng: np.random.Generator, size: int) -> Plane:
    """Return light (size, size) that falls off in one direction."""
    steps = np.linspace(0, 1, size, dtype=np.float32)
    across, down = rng.uniform(0, MAX_SHADE / 2, 2).astype(np.float32)
    falling = 1 - across * steps[np.newaxis] - down * steps[:, np.newaxis]
    flipped = np.rot90(falling, int(rng.integers(4)))
    return np.ascontiguousarray(flipped)


@click.command()
@click.argument("texture", type=click.Choice(CLASSES))
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--size", default=256)
@click.option("--seed", default=0)
def main(texture: str, output: Path, size: int, seed: int) -> None:
    """Write a picture of TEXTURE to OUTPUT, for the network to be asked about."""
    picture = generate(np.random.default_rng(seed), CLASSES.index(texture), size)
    picture.save(output, quality=90)


if __name__ == "__main__":
    main()
