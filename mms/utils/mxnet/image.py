"""PUBLIC: decode, resize, normalise and encode images, under v0.4's names.

Shapes: images are NDArrays of (H, W, C), C being 3 (RGB) or 1, unless said otherwise.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any, Literal

import numpy as np

from mms.engines.imports import import_mxnet
from mms.engines.mxnet_decoder import imdecode

mx = import_mxnet()


def transform_shape(img_arr: Any, dim_order: Literal["NCHW", "NHWC"] = "NCHW") -> Any:
    """Add a batch axis, and move the channels first for NCHW.

    Shapes: (H, W, C) -> (1, C, H, W) for NCHW, (1, H, W, C) for NHWC; the dtype stays.

    Raises:
        AssertionError: `dim_order` has another value.
    """
    if dim_order not in ("NCHW", "NHWC"):
        raise AssertionError(f"dim_order must be 'NCHW' or 'NHWC', got {dim_order!r}")
    if dim_order == "NCHW":
        img_arr = mx.nd.transpose(img_arr, (2, 0, 1))
    return mx.nd.expand_dims(img_arr, axis=0)


def read(buf: Any, flag: int = 1, to_rgb: bool = True, out: Any = None) -> Any:
    """Decode an encoded image (JPEG, PNG, BMP, GIF, WebP or TIFF) into the pixels MXNet would.

    MXNet's own decoder is not used: see `mms.engines.images`.

    Args:
        buf: The encoded bytes, or a uint8 array of them.
        flag: 1 for three channels, 0 for grey.
        to_rgb: RGB order (MXNet's) rather than BGR (OpenCV's).
        out: NDArray to write to.

    Returns:
        uint8 NDArray of (H, W, 3), or (H, W, 1) for grey.

    Raises:
        UndecodableImage: The bytes are not an image, or it has more than max_image_pixels. The
            error is an MXNetError as well.
    """
    return imdecode(buf, flag, to_rgb, out)


def write(
    img_arr: Any,
    flag: int = 1,
    format: str = "jpeg",
    dim_order: Literal["CHW", "HWC"] = "CHW",
) -> str:
    """Encode an image as base64, the form in which a service returns images.

    Args:
        img_arr: NDArray of (C, H, W) or (H, W, C), any dtype; values are cast to uint8.
        flag: 1 for RGB, 0 for grey (C is then 1).
        format: Output format of Pillow, such as "jpeg" or "png".
        dim_order: Axis order of `img_arr`.

    Raises:
        AssertionError: `dim_order` has another value.
    """
    from PIL import Image

    if dim_order not in ("CHW", "HWC"):
        raise AssertionError(f"dim_order must be 'CHW' or 'HWC', got {dim_order!r}")
    # NDArrays by the engine's own cast, which decides what becomes of values outside 0 to 255.
    img_arr = img_arr.astype(np.uint8)
    pixels = img_arr.asnumpy() if isinstance(img_arr, mx.nd.NDArray) else img_arr
    if dim_order == "CHW":
        pixels = pixels.transpose(1, 2, 0)
    if flag == 0:
        pixels = pixels.reshape(pixels.shape[:2])
    output = BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(output, format=format)
    return base64.b64encode(output.getvalue()).decode("ascii")


def resize(src: Any, new_width: int, new_height: int, interp: int = 2) -> Any:
    """Resize an image.

    Shapes: (H, W, C) -> (new_height, new_width, C); the dtype stays.

    Args:
        src: The image.
        new_width: Pixels.
        new_height: Pixels.
        interp: 0 nearest, 1 bilinear, 2 area (best for shrinking), 3 bicubic, 4 Lanczos,
            9 cubic to enlarge and area to shrink, 10 random.
    """
    return mx.image.imresize(src, new_width, new_height, interp)


def fixed_crop(
    src: Any,
    x0: int,
    y0: int,
    w: int,
    h: int,
    size: tuple[int, int] | None = None,
    interp: int = 2,
) -> Any:
    """Crop the rectangle of `w` x `h` pixels at (`x0`, `y0`), then resize it to `size`.

    Shapes: (H, W, C) -> (h, w, C), or (size[1], size[0], C) with a size of (width, height).
    """
    return mx.image.fixed_crop(src, x0, y0, w, h, size, interp)


def color_normalize(src: Any, mean: Any, std: Any = None) -> Any:
    """Return ``(src - mean) / std`` as float32.

    Shapes: (H, W, 3) -> (H, W, 3) float32; `mean` and `std` are NDArrays of (3,) float32, numbers,
    or None.
    """
    return mx.image.color_normalize(src.astype(np.float32), mean, std)
