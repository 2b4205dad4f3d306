"""Tell images from other bytes, with whatever decoder the worker has loaded."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

from mms.errors import UndecodableImage


def is_image(data: bytes) -> bool:
    """Whether bytes can be decoded as an image."""
    mx = sys.modules.get("mxnet")
    if mx is not None:
        try:
            mx.image.imdecode(bytes(data)).wait_to_read()
        except (mx.base.MXNetError, ValueError):
            return False
        return True
    try:
        read_image(data)
    except UndecodableImage:
        return False
    return True


def read_image(data: bytes) -> Any:
    """Decode an image with Pillow, the right way up where the file says which way that is.

    Returns:
        A loaded PIL.Image.Image of any mode.

    Raises:
        UndecodableImage: The bytes are no image, or one of far too many pixels.
    """
    from PIL import Image, ImageOps

    try:
        image = Image.open(io.BytesIO(data))
        image.load()
        return ImageOps.exif_transpose(image)
    except Image.DecompressionBombError as error:
        raise UndecodableImage(f"the image has too many pixels: {error}") from error
    except (
        # UnidentifiedImageError and truncated files, then what decoders of single formats raise.
        OSError,
        ArithmeticError,
        EOFError,
        LookupError,
        SyntaxError,
        TypeError,
        ValueError,
        struct.error,
        zlib.error,
    ) as error:
        raise UndecodableImage(
            f"the {len(data)} bytes sent are not an image that can be decoded "
            "(JPEG, PNG, BMP, WebP, ...)"
        ) from error
