"""Carry out what signature.json declares about pictures: NumPy and Pillow, for every engine.

The same declaration gives the same numbers whatever runs the network. Never imports mxnet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.archive.pictures import (
    DEFAULT_TOP,
    Boxes,
    ImageLayout,
    Postprocess,
    Preprocess,
)
from mms.engines.images import max_pixels, read_image
from mms.engines.opencv_bilinear import resize
from mms.errors import InvalidServiceOutput, UndecodableImage

Array = NDArray[Any]

#: Names of Pillow's filters. They look at every pixel when they shrink, "nearest" excepted.
_FILTERS = {
    "nearest": "NEAREST",
    "bilinear": "BILINEAR",
    "bicubic": "BICUBIC",
    "lanczos": "LANCZOS",
    "area": "BOX",
}
#: Class, score, left, top, right, bottom.
_ROW_COLUMNS = 6


def picture_array(
    data: Any, how: Preprocess, layout: ImageLayout, dtype: Any = np.float32
) -> Array:
    """Return the network's input from an encoded picture.

    Args:
        data: The encoded bytes. The picture is turned upright by its EXIF orientation.
        how: What to do to it.
        layout: The layout of the input, from `picture_layout`.
        dtype: The input's type; whatever is done to pixels is done in float32.

    Returns:
        Array of (1, C, H, W) or (1, H, W, C).

    Raises:
        UndecodableImage: The bytes are not an image, or it would become too large.
    """
    image = read_image(bytes(data)).convert("L" if layout.channels == 1 else "RGB")
    pixels = _resized(image, how, layout)
    if how.color == "BGR":
        pixels = pixels[..., ::-1]
    if not how.is_raw:
        pixels = pixels.astype(np.float32) * np.float32(how.scale)
        if how.mean:
            pixels -= np.array(how.mean, np.float32)
        if how.std:
            pixels /= np.array(how.std, np.float32)
    if layout.is_channels_first:
        pixels = pixels.transpose(2, 0, 1)
    return np.ascontiguousarray(pixels[np.newaxis], dtype=dtype)


def declared_answer(
    outputs: Sequence[Any],
    how: Postprocess,
    labels: Sequence[str] | None = None,
    size: tuple[int, int] = (0, 0),
) -> list[Any]:
    """Return the answer to one picture from the network's outputs.

    Args:
        outputs: NDArrays or arrays, each with the picture in row 0 of its batch axis.
        how: What to do to them.
        labels: Name of each class; without them, a class is its number.
        size: Height and width of the network's input, for boxes in pixels.

    Returns:
        One entry per output: the best classes, or the numbers themselves. For boxes one entry,
        the objects.

    Raises:
        InvalidServiceOutput: The outputs have another form than what is declared for them.
    """
    arrays = [array.asnumpy() if hasattr(array, "asnumpy") else array for array in outputs]
    if how.boxes is not None:
        return [_objects(arrays, how.boxes, how.top_k, labels, size)]
    if how.ranks_classes:
        return [_best_classes(array, how, labels) for array in arrays]
    return [_normalized(array) if how.normalize else array for array in arrays]


def softmax(scores: Any) -> Array:
    """Return the softmax along the last axis, in float64."""
    rows = np.asarray(scores, np.float64)
    powers = np.exp(rows - rows.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


def _resized(image: Any, how: Preprocess, layout: ImageLayout) -> Array:
    """Resize and crop in one step, whose cost depends on the result and not on what is cut off.

    Returns:
        Array of (H, W, C) uint8.
    """
    height, width = image.height, image.width
    if isinstance(how.resize, int):
        side = how.resize
        whole = (
            (side, side * width // height) if height <= width else (side * height // width, side)
        )
    else:
        whole = how.resize or (layout.height or height, layout.width or width)
    target = how.crop or whole
    if target[0] * target[1] > max_pixels():
        raise UndecodableImage(
            f"the image of {width} x {height} pixels would become {target[1]} x {target[0]}, more "
            f"than {max_pixels()} pixels"
        )
    if how.crop and how.resize is None:
        # The largest part in the middle that has the crop's proportions.
        factor = min(height / target[0], width / target[1])
        whole = (max(target[0], round(height / factor)), max(target[1], round(width / factor)))
    top, left = (whole[0] - target[0]) // 2, (whole[1] - target[1]) // 2
    if how.interpolation == "opencv-bilinear":
        source: Array = np.asarray(image).reshape(height, width, layout.channels)
        return (
            source
            if whole == target == (height, width)
            else resize(source, whole, top, left, *target)
        )
    down, right = height / whole[0], width / whole[1]
    # Rounding must not lead out of the picture.
    box = (
        left * right,
        top * down,
        min((left + target[1]) * right, width),
        min((top + target[0]) * down, height),
    )
    part = image.resize((target[1], target[0]), _filter(how.interpolation), box)
    return np.asarray(part).reshape(*target, layout.channels)


def _filter(interpolation: str) -> Any:
    from PIL.Image import Resampling

    return getattr(Resampling, _FILTERS[interpolation])


def _best_classes(array: Any, how: Postprocess, labels: Sequence[str] | None) -> list[Any]:
    row = np.asarray(array, np.float64)[0].reshape(-1)
    if labels is not None and len(labels) < len(row):
        raise InvalidServiceOutput(
            f"the model returns {len(row)} classes but synset.txt names only {len(labels)}; add "
            "the others, one class per line"
        )
    key = "score"
    if how.softmax:
        # Only then are they probabilities for sure.
        row, key = softmax(row), "probability"
    # Stable, so that equal scores keep the order of the labels on every machine.
    best = np.argsort(-row, kind="stable")[: how.top_k or DEFAULT_TOP]
    return [{key: float(row[index]), "class": _name(labels, int(index))} for index in best]


def _objects(
    arrays: Sequence[Any],
    how: Boxes,
    top: int | None,
    labels: Sequence[str] | None,
    size: tuple[int, int],
) -> list[Any]:
    rows = _rows(arrays)
    # Detectors fill up with rows of the class -1.
    rows = rows[(rows[:, 0] >= 0) & (rows[:, 1] >= how.threshold)]
    rows = rows[np.argsort(-rows[:, 1], kind="stable")][:top]
    if how.coordinates == "pixels":
        height, width = size
        rows[:, 2:] /= np.array([width, height, width, height], np.float64)
    return [
        {"class": _name(labels, int(row[0])), "score": float(row[1]), "box": row[2:].tolist()}
        for row in rows
    ]


def _rows(arrays: Sequence[Any]) -> Array:
    """Return (K, 6) float64: class, score, left, top, right, bottom."""
    parts: list[Array] = [
        np.asarray(array, np.float64)[0] for array in arrays if np.ndim(array) > 1
    ]
    if len(arrays) == 3 and len(parts) == 3:
        columns = [part.reshape(len(part), -1) for part in parts]
        if len({len(part) for part in columns}) == 1:
            parts = [np.concatenate(columns, axis=1)]
    if len(parts) != 1 or parts[0].ndim != 2 or parts[0].shape[1] != _ROW_COLUMNS:
        shapes = ", ".join(str(np.shape(array)) for array in arrays)
        raise InvalidServiceOutput(
            f"postprocess declares boxes, but the outputs have the shapes {shapes}; a detector has "
            "one output of (N, K, 6), whose rows are class, score, left, top, right, bottom; or "
            "three of (N, K, 1), (N, K, 1), (N, K, 4): classes, scores, boxes"
        )
    return parts[0]


def _name(labels: Sequence[str] | None, index: int) -> str | int:
    if labels is None:
        return index
    if index >= len(labels):
        raise InvalidServiceOutput(
            f"the model returns class {index} but synset.txt names only {len(labels)}; add the "
            "others, one class per line"
        )
    return labels[index]


def _normalized(array: Any) -> Array:
    """Return the array, each row divided by its Euclidean length."""
    values = np.asarray(array)
    rows = values.reshape(len(values), -1)
    lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    # A row of zeros has no direction and stays.
    lengths[lengths == 0] = 1
    return np.asarray((rows / lengths).reshape(values.shape), np.float32)
