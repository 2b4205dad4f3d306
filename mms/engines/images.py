"""Decode images with Pillow: as PIL images, or as the arrays that MXNet's own decoder returns.

MXNet's decoder (OpenCV 3.4.2) trusts the header: it allocates whatever size that claims, and
where no pixels follow it returns recycled memory, which may hold another client's image. So no
byte of a request reaches it. Pillow's pixels are identical bit for bit, once grey, CMYK and alpha
are computed as OpenCV does; tests compare them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mms.engines.image_header import (
    MeteredFile,
    open_image,
    pillow_errors,
    set_pillow_limit,
)
from mms.engines.import_hook import after_import
from mms.errors import UndecodableImage
from mms.wire.messages import RequestLimits

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile

Pixels = NDArray[np.uint8]
Wide = NDArray[Any]

#: Pixels computed at a time, in whole rows, so that the wider integers of the arithmetic do not
#: take several times the memory of a large image.
_BLOCK_PIXELS = 1 << 20
#: Weights of red, green and blue that libpng computes from OpenCV's 0.299 and 0.587, over 2**15.
_LIBPNG_WEIGHTS = np.array([9797, 19234, 3737], dtype=np.uint32)
#: The same weights in OpenCV itself, over 2**14.
_OPENCV_WEIGHTS = np.array([4899, 9617, 1868], dtype=np.uint32)
#: The gamma that libpng assumes for sRGB, the adler32 of the two profiles that most sRGB files
#: carry, and the threshold below which it ignores gamma (PNG_GAMMA_THRESHOLD_FIXED): png.c of
#: libpng 1.6.
_SRGB_GAMMA = 0.45455
_SRGB_PROFILES = frozenset({0xF784F3FB, 0x0398F3FC})
_LINEAR = (0.95, 1.05)
#: Maximum length of EXIF data searched for the orientation: what fits in a JPEG segment.
_MAX_EXIF_BYTES = 65_536
#: Pillow modes without a unique form in 8 bits per channel, and their names for messages.
_REFUSED_MODES = {"I": "32-bit integers", "F": "floating-point numbers", "LAB": "CIELab colours"}

_max_pixels = RequestLimits().max_image_pixels


def configure(limit: int) -> None:
    """Set this process's pixel limit, also for services that use Pillow directly."""
    global _max_pixels
    _max_pixels = limit
    after_import("PIL.Image", lambda: set_pillow_limit(limit))


def max_pixels() -> int:
    """Return this process's pixel limit."""
    return _max_pixels


def is_image(data: bytes) -> bool:
    """Whether bytes can be decoded as an image."""
    return _error_in(data) is None


def bad_image(names: Sequence[str], images: Sequence[bytes]) -> UndecodableImage | None:
    """Return an error that names the first input that cannot be decoded, or None."""
    for name, data in zip(names, images, strict=True):
        if (error := _error_in(data)) is not None:
            return UndecodableImage(f"input {name!r}: {error}")
    return None


def read_image(data: bytes) -> Image:
    """Decode an image and apply its EXIF orientation, if any.

    Returns:
        A loaded PIL.Image.Image of 8 bits per channel and any mode.

    Raises:
        UndecodableImage: The bytes are not an image, or it has more than max_image_pixels.
    """
    from PIL import ImageOps

    image: Image = _load(open_image(data, _max_pixels), data)
    with pillow_errors(data):
        if len(image.info.get("exif", b"")) <= _MAX_EXIF_BYTES:
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):
            return _from_16_bits(image)
    return image


def decode(data: bytes, grey: bool = False) -> Pixels:
    """Decode an image into exactly the pixels of ``mx.image.imdecode`` in MXNet 1.9.1.

    The EXIF orientation is ignored, and alpha is dropped.

    Returns:
        uint8 array of (H, W, 3) in RGB order, or (H, W, 1) for grey.

    Raises:
        UndecodableImage: The bytes are not an image, or it has more than max_image_pixels.
    """
    image = open_image(data, _max_pixels)
    if grey and image.format == "JPEG":
        # The luminance itself, as stored in the file.
        with pillow_errors(data):
            image.draft("L", image.size)
    kind = image.format
    loaded = _load(image, data)
    with pillow_errors(data):
        pixels = _pixels(loaded, kind or "", grey)
    return pixels if pixels.ndim == 3 else pixels[..., np.newaxis]


def _error_in(data: bytes) -> UndecodableImage | None:
    try:
        _load(open_image(bytes(data), _max_pixels), data)
    except UndecodableImage as error:
        return error
    return None


def _load(image: ImageFile, data: bytes) -> ImageFile:
    """Decode the pixels of an open image.

    Raises:
        UndecodableImage: They are damaged or incomplete, or their size differs from the header's.
    """
    if image.mode in _REFUSED_MODES:
        raise UndecodableImage(
            f"the image consists of {_REFUSED_MODES[image.mode]}; send it in RGB or grey, with 8 "
            "or 16 bits per channel"
        )
    announced = sorted(image.size)
    cast("MeteredFile", image.fp).allow_pixels(len(image.tile))
    with pillow_errors(data):
        image.load()
    # Pillow may rotate a TIFF, hence sorted.
    if sorted(image.size) != announced:
        raise UndecodableImage(
            f"the image's header says {announced}, but its pixels are {sorted(image.size)}"
        )
    return image


def _pixels(image: Image, kind: str, grey: bool) -> Pixels:
    """Return (H, W, 3) or, for grey, (H, W); `kind` is Pillow's name of the format."""
    if image.mode.startswith("I;16"):
        image = _from_16_bits(image)
    if kind == "JPEG" and image.mode == "CMYK" and "adobe" in image.info:
        return _by_rows(image, _cmyk_to_grey if grey else _cmyk_to_rgb)
    if kind == "TIFF" and image.mode == "RGBA":
        # OpenCV requests RGB from libtiff, which then multiplies by alpha.
        from PIL.Image import fromarray

        image = fromarray(_by_rows(image, _times_alpha))
    if not grey:
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
    if image.mode in ("1", "L", "LA") or kind not in ("PNG", "BMP", "TIFF"):
        return np.asarray(image.convert("L"))
    return _by_rows(image.convert("RGB"), _png_grey(image.info) if kind == "PNG" else _opencv_grey)


def _from_16_bits(image: Image) -> Image:
    """Keep the upper byte, as every other decoder does; Pillow itself would clip."""
    from PIL.Image import fromarray

    return fromarray((np.asarray(image) >> 8).astype(np.uint8))


def _by_rows(image: Image, compute: Callable[[Wide], Wide]) -> Pixels:
    source: Pixels = np.asarray(image)
    rows = max(1, _BLOCK_PIXELS // image.width)
    blocks = (source[start : start + rows] for start in range(0, len(source), rows))
    return np.concatenate([compute(block.astype(np.uint32)).astype(np.uint8) for block in blocks])


def _png_grey(info: dict[Any, Any]) -> Callable[[Wide], Wide]:
    """Return libpng's conversion of a PNG's colours to grey: in linear light if gamma is known."""
    gamma = _png_gamma(info)
    if gamma is None:
        return _libpng_grey
    values = np.arange(256) / 255
    to_light = np.floor(255 * values ** (1 / gamma) + 0.5).astype(np.uint32)
    from_light = np.floor(255 * values**gamma + 0.5).astype(np.uint32)

    def grey_of_light(rgb: Wide) -> Wide:
        grey = from_light[(to_light[rgb] @ _LIBPNG_WEIGHTS + (1 << 14)) >> 15]
        is_grey = (rgb[..., 0] == rgb[..., 1]) & (rgb[..., 1] == rgb[..., 2])
        return np.where(is_grey, rgb[..., 0], grey)

    return grey_of_light


def _png_gamma(info: dict[Any, Any]) -> float | None:
    """Return the exponent of a PNG's values, or None where libpng treats them as linear light."""
    if "srgb" in info or zlib.adler32(info.get("icc_profile", b"")) in _SRGB_PROFILES:
        return _SRGB_GAMMA
    gamma = float(info.get("gamma", 0))
    return gamma if gamma and not _LINEAR[0] <= gamma <= _LINEAR[1] else None


def _libpng_grey(rgb: Wide) -> Wide:
    grey: Wide = (rgb @ _LIBPNG_WEIGHTS) >> 15
    return grey


def _opencv_grey(rgb: Wide) -> Wide:
    grey: Wide = (rgb @ _OPENCV_WEIGHTS + (1 << 13)) >> 14
    return grey


def _cmyk_to_rgb(cmyk: Wide) -> Wide:
    # Adobe's files store the complement of each ink; Pillow has inverted it.
    light = 255 - cmyk[..., 3:]
    rgb: Wide = light - ((cmyk[..., :3] * light) >> 8)
    return rgb


def _cmyk_to_grey(cmyk: Wide) -> Wide:
    return _opencv_grey(_cmyk_to_rgb(cmyk))


def _times_alpha(rgba: Wide) -> Wide:
    rgb: Wide = (rgba[..., :3] * rgba[..., 3:] + 127) // 255
    return rgb
