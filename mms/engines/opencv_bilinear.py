"""Resize as OpenCV's bilinear filter does, to the last bit: what MXNet and GluonCV train with.

It looks at four pixels also where it shrinks, and computes in integers. Tests compare it to MXNet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Integers = NDArray[Any]

#: Weights are multiples of 1/2048 (INTER_RESIZE_COEF_SCALE).
_SCALE = np.float32(2048)
#: Pixels computed at a time, in whole rows: the wider integers take several times the memory.
_BLOCK_PIXELS = 1 << 20


def resize(
    pixels: Pixels, size: tuple[int, int], top: int, left: int, height: int, width: int
) -> Pixels:
    """Return a rectangle of the resized image; only that is computed.

    Args:
        pixels: (H, W, C) uint8.
        size: Height and width of the whole.
        top: First row of the rectangle.
        left: First column.
        height: Number of its rows.
        width: Number of its columns.
    """
    source_height, source_width, _ = pixels.shape
    columns, across = _places(source_width, size[1], left, width)
    outside = (columns < 0) | (columns >= source_width - 1)
    # Rows beyond the border are only repeated: a difference of rounding.
    across[outside] = 0
    columns = columns.clip(0, source_width - 1)
    following = (columns + 1).clip(0, source_width - 1)
    rows, down = _places(source_height, size[0], top, height)
    is_half = (source_height, source_width) == (2 * size[0], 2 * size[1])
    blocks = []
    step = max(1, _BLOCK_PIXELS // width)
    for start in range(0, height, step):
        part = slice(start, start + step)
        upper, lower = (
            (rows[part] + offset).clip(0, source_height - 1)[:, np.newaxis] for offset in (0, 1)
        )
        corners = [pixels[row, column] for row in (upper, lower) for column in (columns, following)]
        if is_half:
            # OpenCV takes the mean of four then.
            total = sum(corner.astype(np.int32) for corner in corners)
            blocks.append(((total + 2) >> 2).astype(np.uint8))
            continue
        low, high = _weights(across)
        lines = [
            (first * low[:, np.newaxis] + second * high[:, np.newaxis]) >> 4
            for first, second in (corners[:2], corners[2:])
        ]
        near, far = (weight[:, np.newaxis, np.newaxis] for weight in _weights(down[part]))
        total = ((lines[0] * near) >> 16) + ((lines[1] * far) >> 16)
        blocks.append(((total + 2) >> 2).astype(np.uint8))
    return np.concatenate(blocks)


def _places(
    length: int, target: int, start: int, count: int
) -> tuple[Integers, NDArray[np.float32]]:
    """Return the source pixel before each target pixel, and how far that lies behind it."""
    # In OpenCV's order of operations.
    step = 1.0 / (target / length)
    at = ((np.arange(start, start + count) + 0.5) * step - 0.5).astype(np.float32)
    first = np.floor(at)
    return first.astype(np.int64), at - first


def _weights(share: NDArray[np.float32]) -> tuple[Integers, Integers]:
    near, far = (np.rint(part * _SCALE).astype(np.int32) for part in (1 - share, share))
    return near, far
