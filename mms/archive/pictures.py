"""What signature.json declares about pictures: the way into the network, and out of it. Pure.

``preprocess`` says what is done to a decoded picture, ``postprocess`` what is done to the network's
outputs. What is not declared is not done. `mms.engines.pictures` carries it out, for every engine.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from mms.errors import SignatureError
from mms.quoting import quoted

DECLARATIONS = ("preprocess", "postprocess")
#: Number of channels by the order of colours.
COLORS = {"RGB": 3, "BGR": 3, "GRAY": 1}
LAYOUTS = ("NCHW", "NHWC")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "area", "opencv-bilinear")
#: Maximum height or width after resizing; no network takes more.
MAX_SIDE = 16_384
#: Maximum number of classes or boxes in an answer.
MAX_TOP = 10_000
DEFAULT_TOP = 5
#: Detectors return many rows of next to no confidence.
DEFAULT_THRESHOLD = 0.5
#: Minimum similarity of an unknown key to a declaration's name for it to be a typo.
_LIKENESS = 0.85
#: Maximum number of keys that are looked at for typos.
_MAX_KEYS = 1000


@dataclass(frozen=True, slots=True)
class Preprocess:
    """What is done to a picture, in this order: resize, crop, color, scale, mean, std.

    Attributes:
        resize: (height, width) to stretch it to; or the length of its shorter side, which keeps
            its proportions. None: the size of the input or, with a crop, whatever covers it.
        crop: (height, width) of the centre to keep; None keeps all.
        color: A key of `COLORS`; "" follows from the number of channels.
        scale: Factor of the pixels, which are 0 to 255.
        mean: Subtracted next, per channel in the order of `color`; or one number; () is 0.
        std: Divides then, likewise; () is 1.
        layout: One of `LAYOUTS`; "" follows from the input's shape.
        interpolation: One of `INTERPOLATIONS`.
    """

    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    color: str = ""
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    layout: str = ""
    interpolation: str = "bilinear"

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) of the result, if the declaration alone determines it."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    @property
    def is_raw(self) -> bool:
        """Whether pixels stay integers from 0 to 255."""
        return self.scale == 1 and not self.mean and not self.std

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document that `parse_preprocess` reads."""
        return _document(self, Preprocess())


@dataclass(frozen=True, slots=True)
class Boxes:
    """How a detector's rows become objects.

    Attributes:
        threshold: Rows with a lower score are left out.
        coordinates: What the network returns: "fractions" of height and width, or "pixels" of its
            input. Clients always get fractions.
    """

    threshold: float = DEFAULT_THRESHOLD
    coordinates: str = "fractions"

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document that `parse_postprocess` reads."""
        return _document(self, Boxes())


@dataclass(frozen=True, slots=True)
class Postprocess:
    """What is done to the outputs. Without any of it they are the answer as they are.

    Attributes:
        softmax: Whether the scores of the classes become probabilities; None: not stated.
        top_k: Maximum number of classes or boxes in the answer; None: not stated.
        normalize: Whether each row is divided by its Euclidean length, as embeddings are.
        boxes: How a detector's rows become objects; None if it is no detector.
    """

    softmax: bool | None = None
    top_k: int | None = None
    normalize: bool = False
    boxes: Boxes | None = None

    @property
    def ranks_classes(self) -> bool:
        """Whether the answer is the best classes."""
        return self.boxes is None and (self.softmax is not None or self.top_k is not None)

    def to_document(self) -> dict[str, Any]:
        """Return the JSON document that `parse_postprocess` reads."""
        document = _document(self, Postprocess())
        if self.boxes is not None:
            document["boxes"] = self.boxes.to_document()
        return document


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """The layout of an image in an input of four axes; a height or width of 0 is any size."""

    is_channels_first: bool
    channels: int
    height: int
    width: int


def image_layout(shape: Sequence[int]) -> ImageLayout | None:
    """Return the layout of an input whose shape shows that it can be an image, or None."""
    if len(shape) != 4:
        return None
    _, first, middle, last = shape
    if first in COLORS.values():
        return ImageLayout(True, first, middle, last)
    return ImageLayout(False, last, first, middle) if last in COLORS.values() else None


def picture_layout(
    name: str, shape: Sequence[int], how: Preprocess | None, source: str
) -> ImageLayout:
    """Return the layout of an input that takes a picture: the one decision for all engines.

    A declared layout decides; otherwise the axis that has one or three channels. If that size is
    free, the channels come first, and there are as many as the declared colour has, or three.

    Args:
        name: The input.
        shape: Its shape; 0 is any size.
        how: What is declared for it, if anything is.
        source: Origin of the shape, for messages.

    Raises:
        SignatureError: No picture fits into the shape, or not the declared one. The message names
            a shape that would do.
    """
    where = f"{source}: the input {name!r} has the data_shape {list(shape)}"
    how = how or Preprocess()
    if len(shape) != 4:
        raise SignatureError(
            f"{where}, which cannot hold a picture; write {_suggest(shape)}: a batch axis (0 is "
            "any size), then channels, height and width, or height, width and channels"
        )
    layout = _layout(shape, how)
    if layout is None or layout.channels not in (0, *COLORS.values()):
        raise SignatureError(
            f"{where}, which cannot hold a picture: it has neither 1 nor 3 channels; write "
            f"{_suggest(shape)}, or override _preprocess in a service"
        )
    channels = layout.channels or COLORS[how.color or "RGB"]
    if how.color and COLORS[how.color] != channels:
        raise SignatureError(
            f'{where} with {channels} channels, but preprocess.color is "{how.color}", which has '
            f"{COLORS[how.color]}; change one of the two"
        )
    for key, values in (("mean", how.mean), ("std", how.std)):
        if len(values) not in (0, 1, channels):
            raise SignatureError(
                f"{where} with {channels} channels, but preprocess.{key} has {len(values)} "
                "numbers; write one for each channel, or one for all"
            )
    _check_size(where, layout, how)
    return ImageLayout(layout.is_channels_first, channels, layout.height, layout.width)


def parse_preprocess(value: Any, where: str, source: str) -> Preprocess:
    """Return a declared ``preprocess`` typed.

    Args:
        value: Parsed JSON.
        where: The key's place, for messages.
        source: The document's origin, for messages.

    Raises:
        SignatureError: The message names the key, what is wrong with it and how to fix it.
    """
    keys = _Keys(value, where, source, Preprocess.__dataclass_fields__)
    how = Preprocess(
        resize=keys.size("resize", is_side=True),
        crop=keys.size("crop"),
        color=keys.choice("color", tuple(COLORS), ""),
        scale=keys.number("scale", 1.0),
        mean=keys.numbers("mean"),
        std=keys.numbers("std"),
        layout=keys.choice("layout", LAYOUTS, ""),
        interpolation=keys.choice("interpolation", INTERPOLATIONS, "bilinear"),
    )
    if how.scale == 0 or 0 in how.std:
        raise SignatureError(f"{source}: {where}: scale and std must not be 0; leave them out")
    if how.crop and how.resize:
        height, width = how.resize if isinstance(how.resize, tuple) else (how.resize, how.resize)
        if how.crop[0] > height or how.crop[1] > width:
            raise SignatureError(
                f"{source}: {where}.crop {list(how.crop)} does not fit into a picture resized to "
                f"{keys.value['resize']}; make resize larger or crop smaller"
            )
    return how


def parse_postprocess(value: Any, where: str, source: str) -> Postprocess:
    """Return a declared ``postprocess`` typed.

    Args:
        value: Parsed JSON.
        where: The key's place, for messages.
        source: The document's origin, for messages.

    Raises:
        SignatureError: The message names the key, what is wrong with it and how to fix it.
    """
    keys = _Keys(value, where, source, Postprocess.__dataclass_fields__)
    how = Postprocess(
        softmax=keys.flag("softmax"),
        top_k=keys.count("top_k", MAX_TOP),
        normalize=bool(keys.flag("normalize")),
        boxes=_parse_boxes(keys.value["boxes"], f"{where}.boxes", source)
        if "boxes" in keys.value
        else None,
    )
    is_more = how.softmax is not None or how.top_k is not None
    if (how.normalize and (is_more or how.boxes)) or (how.boxes and how.softmax is not None):
        raise SignatureError(
            f"{source}: {where} has {', '.join(keys.value)}, which exclude each other: classes "
            "have softmax and top_k, detected objects boxes and top_k, embeddings normalize"
        )
    return how


def refuse_typos(document: Iterable[Any], where: str, source: str) -> None:
    """Refuse keys that resemble a declaration's name: all others are ignored, as in 0.4.

    Raises:
        SignatureError: The message names the key and what was probably meant.
    """
    for key in islice(document, _MAX_KEYS):
        if key in DECLARATIONS or not isinstance(key, str) or len(key) > 2 * len("postprocess"):
            continue
        close = difflib.get_close_matches(key.lower(), DECLARATIONS, 1, _LIKENESS)
        if close:
            raise SignatureError(
                f"{source}: {where}unknown key {quoted(key)}; did you mean {close[0]!r}?"
            )


class _Keys:
    """The values of one declaration, each checked as it is read."""

    def __init__(self, value: Any, where: str, source: str, known: Iterable[str]) -> None:
        if not isinstance(value, dict):
            raise SignatureError(
                f"{source}: {where} must be an object such as "
                f'{{"{next(iter(known))}": ...}}, got {quoted(value)}'
            )
        names = tuple(known)
        for key in value:
            if key not in names:
                raise SignatureError(
                    f"{source}: {where} has the unknown key {quoted(key)}{_hint(key, names)}; its "
                    f"keys are {', '.join(names)}"
                )
        self.value: dict[str, Any] = value
        self._where = where
        self._source = source

    def flag(self, key: str) -> bool | None:
        value = self.value.get(key)
        if value is None and key not in self.value:
            return None
        if not isinstance(value, bool):
            raise self._wrong(key, "true or false")
        return value

    def count(self, key: str, maximum: int) -> int | None:
        if key not in self.value:
            return None
        value = self.value[key]
        if not _is_integer(value) or not 1 <= value <= maximum:
            raise self._wrong(key, f"an integer from 1 to {maximum}")
        return int(value)

    def choice(self, key: str, choices: Sequence[str], default: str) -> str:
        value = self.value.get(key, default)
        if key in self.value and value not in choices:
            raise self._wrong(key, "one of " + ", ".join(f'"{choice}"' for choice in choices))
        return str(value)

    def number(self, key: str, default: float) -> float:
        value = self.value.get(key, default)
        if not _is_number(value):
            raise self._wrong(key, "a number")
        return float(value)

    def numbers(self, key: str) -> tuple[float, ...]:
        if key not in self.value:
            return ()
        value = self.value[key]
        values = value if isinstance(value, list) else [value]
        if len(values) not in COLORS.values() or not all(map(_is_number, values)):
            raise self._wrong(key, "a number, or a list with one for each channel")
        return tuple(float(number) for number in values)

    def size(self, key: str, is_side: bool = False) -> Any:
        """Return (height, width); a sole integer is both, or a side if it may be one."""
        if key not in self.value:
            return None
        value = self.value[key]
        pair = value if isinstance(value, list) else [value, value]
        if len(pair) != 2 or not all(_is_integer(n) and 1 <= n <= MAX_SIDE for n in pair):
            what = "the length of the shorter side" if is_side else "the side of a square"
            raise self._wrong(key, f"[height, width] or {what}, in pixels from 1 to {MAX_SIDE}")
        return value if is_side and not isinstance(value, list) else tuple(pair)

    def _wrong(self, key: str, expected: str) -> SignatureError:
        return SignatureError(
            f"{self._source}: {self._where}.{key} must be {expected}, got {quoted(self.value[key])}"
        )


def _parse_boxes(value: Any, where: str, source: str) -> Boxes:
    if value is True:
        return Boxes()
    keys = _Keys(value, where, source, Boxes.__dataclass_fields__)
    return Boxes(
        threshold=keys.number("threshold", DEFAULT_THRESHOLD),
        coordinates=keys.choice("coordinates", ("fractions", "pixels"), "fractions"),
    )


def _hint(key: Any, names: Sequence[str]) -> str:
    # What other tools call it.
    known = {
        "dtype": "; the element type is the input's data_type",
        "normalise": "; did you mean 'normalize'?",
        "channels": "; did you mean 'color'?",
        "size": "; did you mean 'resize'?",
    }
    if not isinstance(key, str) or len(key) > 2 * len("interpolation"):
        return ""
    close = difflib.get_close_matches(key.lower(), names, 1)
    return f"; did you mean {close[0]!r}?" if close else known.get(key.lower(), "")


def _layout(shape: Sequence[int], how: Preprocess) -> ImageLayout | None:
    _, first, middle, last = shape
    if how.layout:
        is_first = how.layout == "NCHW"
        return (
            ImageLayout(True, first, middle, last)
            if is_first
            else ImageLayout(False, last, first, middle)
        )
    layout = image_layout(shape)
    if layout is None and first == 0:
        return ImageLayout(True, 0, middle, last)
    return layout


def _check_size(where: str, layout: ImageLayout, how: Preprocess) -> None:
    fixed = (layout.height, layout.width)
    if isinstance(how.resize, int) and how.crop is None and any(fixed):
        wanted = [layout.height or how.resize, layout.width or how.resize]
        raise SignatureError(
            f"{where}, but preprocess.resize {how.resize} keeps a picture's proportions, so that "
            f'its size varies; add "crop": {wanted}, or stretch it with "resize": {wanted}'
        )
    if how.size and any(0 < want != got for want, got in zip(fixed, how.size, strict=True)):
        key = "crop" if how.crop else "resize"
        raise SignatureError(
            f"{where}, but preprocess.{key} makes pictures of {list(how.size)} (height, width); "
            "change one of the two"
        )


def _suggest(shape: Sequence[int]) -> list[int]:
    """Return a shape that holds a picture and resembles this one."""
    if len(shape) == 3 and {shape[0], shape[2]} & {*COLORS.values()}:
        return [0, *shape]
    if len(shape) == 3:
        return [0, 1, *shape[1:]]
    if len(shape) == 2 and min(shape) > 3:
        return [0, 1, *shape]
    if len(shape) == 4:
        return [0, 3, *shape[2:]]
    return [0, 3, 224, 224]


def _document(value: Any, default: Any) -> dict[str, Any]:
    """Return the attributes that differ from the defaults, except nested declarations."""
    document = {}
    for name in value.__dataclass_fields__:
        item = getattr(value, name)
        if item != getattr(default, name) and not isinstance(item, Boxes):
            document[name] = list(item) if isinstance(item, tuple) else item
    return document


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Compared before it is converted: an integer of a thousand digits is no float.
    return is_number and abs(value) <= 1e30 and math.isfinite(value)
