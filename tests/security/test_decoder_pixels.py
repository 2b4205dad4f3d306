"""Our decoder's pixels are those of ``mx.image.imdecode`` in MXNet 1.9.1, wherever that decodes.

The pictures here are our own, so they may go to MXNet's decoder, which stays in place in this
process.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image, ImageCms

from mms.engines import images
from mms.engines.imports import import_mxnet
from mms.engines.mxnet_decoder import imdecode
from tests.security.pictures import chunk, png, save

# Of SciPy, about what MXNet does in mx.nd.array.
pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")

mx = import_mxnet()

_PHOTOS = Path(sklearn.datasets.__file__).parent / "images"
#: An odd size, so that no block of a codec fits.
PHOTO = Image.open(_PHOTOS / "china.jpg").convert("RGB").crop((3, 5, 336, 256))
PHOTO.info.clear()
_LUMINANCE = PHOTO.convert("L")
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_alpha() -> Image.Image:
    image = PHOTO.copy()
    image.putalpha(_LUMINANCE)
    return image


def turned(how: int, kind: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = how
    return save(PHOTO, kind, exif=exif)


def with_chunk(kind: bytes, data: bytes) -> bytes:
    whole = save(PHOTO, "PNG")
    return whole[:33] + chunk(kind, data) + whole[33:]


def deep_png(image: Image.Image, colour_type: int) -> bytes:
    """Write 16 bits per channel, the lower ones at random."""
    low = np.random.default_rng(0).integers(0, 256, np.asarray(image).shape, dtype=np.uint16)
    values = (np.asarray(image).astype(np.uint16) << 8 | low).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in values)
    header = struct.pack(">IIBBBBB", image.width, image.height, 16, colour_type, 0, 0, 0)
    inner = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND")
    return png(1, 1)[:8] + inner


def deep_tiff() -> bytes:
    return save(Image.fromarray(np.asarray(_LUMINANCE).astype(np.uint16) * 257), "TIFF")


EQUAL: dict[str, bytes] = {
    "a camera's JPEG": (_PHOTOS / "china.jpg").read_bytes(),
    "a JPEG with a profile": (_PHOTOS / "flower.jpg").read_bytes(),
    **{
        f"JPEG {name} at {quality}": save(PHOTO, "JPEG", quality=quality, subsampling=sampling)
        for sampling, name in enumerate(["4:4:4", "4:2:2", "4:2:0"])
        for quality in (50, 75, 95)
    },
    "JPEG progressive": save(PHOTO, "JPEG", progressive=True),
    "JPEG grey": save(_LUMINANCE, "JPEG"),
    "JPEG CMYK": save(PHOTO.convert("CMYK"), "JPEG"),
    **{f"JPEG turned {how}": turned(how) for how in range(1, 9)},
    "PNG turned": turned(6, "PNG"),
    **{f"PNG {mode}": save(PHOTO.convert(mode), "PNG") for mode in ("RGB", "L", "P", "1")},
    "PNG RGBA": save(with_alpha(), "PNG"),
    "PNG LA": save(with_alpha().convert("LA"), "PNG"),
    "PNG of 13 colours": save(PHOTO.quantize(13), "PNG"),
    "PNG P with a transparent colour": save(PHOTO.convert("P"), "PNG", transparency=3),
    "PNG RGB with a transparent colour": save(PHOTO, "PNG", transparency=(9, 9, 9)),
    "PNG 16 bits grey": deep_png(_LUMINANCE, 0),
    "PNG 16 bits grey and alpha": deep_png(with_alpha().convert("LA"), 4),
    "PNG with a gamma": with_chunk(b"gAMA", struct.pack(">I", 45455)),
    "PNG with another gamma": with_chunk(b"gAMA", struct.pack(">I", 30000)),
    "PNG with no gamma": with_chunk(b"gAMA", struct.pack(">I", 100000)),
    "PNG in sRGB": with_chunk(b"sRGB", b"\0"),
    "PNG with a profile": save(PHOTO, "PNG", icc_profile=_SRGB),
    **{f"BMP {mode}": save(PHOTO.convert(mode), "BMP") for mode in ("RGB", "L", "P", "1")},
    "BMP RGBA": save(with_alpha(), "BMP"),
    **{f"TIFF {mode}": save(PHOTO.convert(mode), "TIFF") for mode in ("RGB", "L", "P", "1")},
    "TIFF CMYK": save(PHOTO.convert("CMYK"), "TIFF"),
    "TIFF RGBA": save(with_alpha(), "TIFF"),
    "TIFF LA": save(with_alpha().convert("LA"), "TIFF"),
    "TIFF LZW": save(PHOTO, "TIFF", compression="tiff_lzw"),
    "TIFF PackBits": save(PHOTO, "TIFF", compression="packbits"),
    "TIFF fax": save(PHOTO.convert("1"), "TIFF", compression="group4"),
    "TIFF 16 bits": deep_tiff(),
    "TIFF of two pages": save(PHOTO, "TIFF", save_all=True, append_images=[PHOTO.rotate(90)]),
    **{f"TIFF turned {how}": save(PHOTO, "TIFF", tiffinfo={0x0112: how}) for how in range(1, 5)},
}
#: Off by one, from another order of rounding.
NEARLY: dict[str, bytes] = {
    "PNG 16 bits": deep_png(PHOTO, 2),
    "TIFF YCbCr": save(PHOTO.convert("YCbCr"), "TIFF", compression="tiff_lzw"),
}


@pytest.mark.parametrize("flag", [1, 0], ids=["colour", "grey"])
@pytest.mark.parametrize("name", EQUAL)
def test_the_pixels_are_mxnets(name: str, flag: int) -> None:
    expected = mx.image.imdecode(EQUAL[name], flag).asnumpy()
    assert np.array_equal(images.decode(EQUAL[name], grey=flag == 0), expected)


@pytest.mark.parametrize("flag", [1, 0], ids=["colour", "grey"])
@pytest.mark.parametrize("name", NEARLY)
def test_the_pixels_are_mxnets_but_for_one_unit(name: str, flag: int) -> None:
    expected = mx.image.imdecode(NEARLY[name], flag).asnumpy().astype(int)
    assert abs(images.decode(NEARLY[name], grey=flag == 0) - expected).max() <= 1


@pytest.mark.parametrize(
    "arguments",
    [{}, {"flag": 0}, {"to_rgb": False}, {"to_rgb": 0}, {"flag": 0, "to_rgb": 0}, {"flag": "0"}],
    ids=str,
)
@pytest.mark.parametrize(
    "make", [bytes, bytearray, np.frombuffer, mx.nd.array], ids=lambda f: f.__name__
)
def test_the_arguments_are_mxnets(make: Any, arguments: dict[str, Any]) -> None:
    data = EQUAL["PNG RGB"]
    if make in (np.frombuffer, mx.nd.array):
        buffer = make(np.frombuffer(data, np.uint8), dtype=np.uint8)
    else:
        buffer = make(data)
    theirs, ours = mx.image.imdecode(buffer, **arguments), imdecode(buffer, **arguments)
    assert type(ours) is type(theirs)
    assert (ours.dtype, ours.context) == (theirs.dtype, theirs.context)
    assert np.array_equal(ours.asnumpy(), theirs.asnumpy())


def test_the_result_can_go_into_an_array_of_the_callers() -> None:
    out = mx.nd.zeros((PHOTO.height, PHOTO.width, 3), dtype=np.uint8)
    assert imdecode(EQUAL["PNG RGB"], out=out) is out
    assert np.array_equal(out.asnumpy(), np.asarray(PHOTO))
    with pytest.raises(mx.base.MXNetError, match="out has shape"):
        imdecode(EQUAL["PNG RGB"], out=mx.nd.zeros((2, 2, 3), dtype=np.uint8))


def test_what_mxnet_refuses_is_refused_by_an_error_of_both_kinds() -> None:
    from mms.errors import UndecodableImage

    with pytest.raises(UndecodableImage) as caught:
        imdecode(b"no picture")
    assert isinstance(caught.value, mx.base.MXNetError)
    assert caught.value.code == "undecodable_image"
    with pytest.raises(ValueError, match="buf must be of type"):
        imdecode("text")
    with pytest.raises(mx.base.MXNetError):
        imdecode(b"", 1)
