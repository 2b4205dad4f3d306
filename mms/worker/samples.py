"""Sample requests for trials: the archive's own, and ones derived from it or the signature."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mms.archive.data_types import TABLE
from mms.archive.manifest import Manifest
from mms.archive.pictures import picture_layout
from mms.archive.signature import Signature, TensorSpec
from mms.errors import SignatureError
from mms.wire.messages import Dialect, Request, RequestMeta

_JSON = "application/json"
#: Request id of all of them.
SAMPLE_ID = "sample"
#: Sizes to try for axes that the signature leaves free, except the batch axis: a single element, a
#: short sequence, and an image that survives the strides of any network.
_FREE_SIZES = (1, 8, 224)
#: Maximum number of elements of a generated input.
_MAX_ELEMENTS = 4_000_000
_INTEGERS = [type_.name for type_ in TABLE if type_.is_whole]


def sample_request(folder: Path, manifest: Manifest) -> Request | None:
    """Return the archive's own sample request, or None."""
    sample = manifest.serving.sample
    if sample is None:
        return None
    return _request((folder / sample.file).read_bytes(), sample.content_type)


def zero_requests(signature: Signature) -> Iterator[Request]:
    """Yield requests of zeros (black images), one for each size to try for free axes."""
    for size in _sizes(signature):
        yield from _drawn(signature, size, "zeros", 0)


def request_pairs(
    sample: Request | None, signature: Signature
) -> Iterator[tuple[Request, Request]]:
    """Yield pairs of different requests, those most likely to be answered first."""
    if sample is not None:
        yield from ((sample, other) for other in _variants(sample))
    for size in _sizes(signature):
        for kind in ("floats", "integers"):
            first = list(_drawn(signature, size, kind, 1))
            second = list(_drawn(signature, size, kind, 2))
            yield from zip(first, second, strict=True)


def _request(body: bytes, content_type: str = _JSON) -> Request:
    return Request(RequestMeta(SAMPLE_ID, Dialect.PLAIN, content_type, ""), memoryview(body))


def _sizes(signature: Signature) -> tuple[int, ...]:
    has_free = any(0 in spec.shape[1:] for spec in signature.inputs)
    return _FREE_SIZES if has_free else _FREE_SIZES[:1]


def _drawn(signature: Signature, size: int, kind: str, seed: int) -> Iterator[Request]:
    """Yield a request generated from the signature, or nothing if it would be too large."""
    shapes = [_shape(spec, size) for spec in signature.inputs]
    if sum(int(np.prod(shape)) for shape in shapes) > _MAX_ELEMENTS:
        return
    generator = np.random.default_rng(seed)
    make = _picture if signature.takes_images else _array
    document = {
        spec.name: make(spec, shape, kind, seed, generator)
        for spec, shape in zip(signature.inputs, shapes, strict=True)
    }
    yield _request(orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY))


def _shape(spec: TensorSpec, size: int) -> tuple[int, ...]:
    first = spec.shape[0] or 1
    return (first, *(axis or size for axis in spec.shape[1:]))


def _array(
    spec: TensorSpec, shape: tuple[int, ...], kind: str, seed: int, generator: np.random.Generator
) -> Any:
    if spec.data_type == "BYTES":
        return np.full(shape, f"sample {seed}").tolist()
    if kind == "zeros":
        return np.zeros(shape, np.int64 if spec.data_type in _INTEGERS else np.float32)
    if kind == "integers" or spec.data_type in _INTEGERS:
        # Zeros and ones, which every vocabulary has; swapped for the other seed.
        return ((np.arange(np.prod(shape)) + seed) % 2).reshape(shape)
    return generator.standard_normal(shape, np.float32)


def _picture(
    spec: TensorSpec, shape: tuple[int, ...], kind: str, seed: int, generator: np.random.Generator
) -> str:
    from PIL import Image

    height, width = _picture_size(spec)
    image = Image.new("RGB", (width, height))
    if kind != "zeros":
        # Coarse patches: noise per pixel would average out to grey.
        patches = generator.integers(0, 256, (8, 8, 3), np.uint8)
        image = Image.fromarray(patches).resize((width, height))
    return _base64_png(image)


def _picture_size(spec: TensorSpec) -> tuple[int, int]:
    """Return (height, width) of a picture for an input; a service may take any other shape."""
    try:
        layout = picture_layout(spec.name, spec.shape, spec.preprocess, "")
    except SignatureError:
        return _FREE_SIZES[-1], _FREE_SIZES[-1]
    return layout.height or _FREE_SIZES[-1], layout.width or _FREE_SIZES[-1]


def _base64_png(image: Any) -> str:
    output = io.BytesIO()
    image.save(output, "PNG")
    return base64.b64encode(output.getvalue()).decode("ascii")


def _variants(sample: Request) -> Iterator[Request]:
    """Yield requests that resemble the sample but differ from it."""
    content_type = sample.meta.content_type
    if content_type == _JSON:
        with contextlib.suppress(orjson.JSONDecodeError):
            document = orjson.loads(sample.body)
            for change in (_reversed, _scaled):
                other = change(document)
                if other != document:
                    yield _request(orjson.dumps(other))
    elif content_type.startswith("image/"):
        from PIL import Image, ImageOps

        # Any decoder error: a sample that cannot be decoded has no variants.
        with contextlib.suppress(Exception), Image.open(io.BytesIO(sample.body)) as image:
            turned = ImageOps.flip(ImageOps.mirror(ImageOps.invert(image.convert("RGB"))))
            output = io.BytesIO()
            turned.save(output, "PNG")
            yield _request(output.getvalue(), "image/png")


def _reversed(value: Any) -> Any:
    """Return a JSON value with its strings and its lists of numbers reversed."""
    if isinstance(value, dict):
        return {key: _reversed(item) for key, item in value.items()}
    if isinstance(value, list):
        if all(isinstance(item, (int, float)) for item in value):
            return value[::-1]
        return [_reversed(item) for item in value]
    return value[::-1] if isinstance(value, str) else value


def _scaled(value: Any) -> Any:
    """Return a JSON value with its floats halved, and its positive integers decremented."""
    if isinstance(value, dict):
        return {key: _scaled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_scaled(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    return value / 2 if isinstance(value, float) else value - (value > 0)
