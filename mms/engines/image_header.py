"""Read the header of an encoded image, and refuse images that would cost too much to decode.

Pillow's own classes parse the headers, each for one format only, so that there is no second
opinion on an image's size. They process each piece of a file in Python, and some allocate a lot
before the size can be read: both are bounded here.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mms.errors import UndecodableImage

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile


class _Format(NamedTuple):
    """The first bytes of a format's files, and Pillow's module and class for it."""

    signature: re.Pattern[bytes]
    module: str
    class_name: str


_FORMATS = {
    "JPEG": _Format(re.compile(rb"\xff\xd8\xff"), "JpegImagePlugin", "JpegImageFile"),
    "PNG": _Format(re.compile(rb"\x89PNG\r\n\x1a\n"), "PngImagePlugin", "PngImageFile"),
    "BMP": _Format(re.compile(rb"BM"), "BmpImagePlugin", "BmpImageFile"),
    "GIF": _Format(re.compile(rb"GIF8[79]a"), "GifImagePlugin", "GifImageFile"),
    "WebP": _Format(re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebPImagePlugin", "WebPImageFile"),
    "TIFF": _Format(re.compile(rb"II[*+]\0|MM\0[*+]"), "TiffImagePlugin", "TiffImageFile"),
}
#: The supported formats; every message that lists formats takes them from here.
FORMATS = tuple(_FORMATS)
FORMATS_TEXT = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"

#: Reads allowed for a header. A piece of metadata takes two to four, and cameras and editors write
#: tens of pieces; a file with millions of empty ones blocks a worker for a minute.
_MAX_HEADER_READS = 10_000
#: Minimum average size of a read of pixels, beyond the reads of a header.
_BYTES_PER_READ = 256
#: Bytes that may be read for each one in the file: TIFF's tags may overlap.
_MAX_READS_PER_BYTE = 2
#: Maximum number of scans (passes over the whole image) in a JPEG. Encoders write up to 12; each
#: costs as much as decoding the image once, and takes ten bytes.
_MAX_JPEG_SCANS = 64
_START_OF_SCAN = b"\xff\xda"
#: Maximum number of strips or tiles in a TIFF; each costs a Python object or two.
_MAX_TIFF_PIECES = 65_536
#: Run-length coded BMPs are decoded by a loop in Python, at about a million pixels per second.
_MAX_RLE_PIXELS = 4_000_000
# TIFF tags: https://www.loc.gov/preservation/digital/formats/content/tiff_tags.shtml
_WIDTH, _HEIGHT, _STRIPS, _TILE_WIDTH, _TILE_HEIGHT, _TILES = 256, 257, 273, 322, 323, 324

#: Exceptions of Pillow: OSError for truncated files, then those that its parsers of single formats
#: let through. A warning is raised if the interpreter is configured to do so.
_PILLOW_ERRORS = (
    OSError,
    ArithmeticError,
    EOFError,
    LookupError,
    SyntaxError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    Warning,
    struct.error,
    zlib.error,
)


class MeteredFile(io.BytesIO):
    """An encoded image in memory that may be read a limited number of times."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._size = len(data)
        self._reads_left = _MAX_HEADER_READS
        self._bytes_left = _MAX_READS_PER_BYTE * self._size + io.DEFAULT_BUFFER_SIZE

    def allow_pixels(self, pieces: int) -> None:
        """Allow the reads that decoding needs, after those of the header."""
        self._reads_left += self._size // _BYTES_PER_READ + 2 * pieces
        self._bytes_left += _MAX_READS_PER_BYTE * self._size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `io.BytesIO` does.

        Raises:
            UndecodableImage: The limit of reads is exceeded.
        """
        data = super().read(size)
        self._reads_left -= 1
        self._bytes_left -= len(data)
        if self._reads_left < 0 or self._bytes_left < 0:
            raise UndecodableImage(
                f"the image of {self._size} bytes is cut into too many pieces: more than "
                f"{_MAX_HEADER_READS} in its header, or one per {_BYTES_PER_READ} bytes; save it "
                "again without metadata"
            )
        return data


def open_image(data: bytes, max_pixels: int) -> ImageFile:
    """Open an encoded image and check its header, without decoding any pixel.

    Args:
        data: The encoded image.
        max_pixels: Maximum number of pixels.

    Raises:
        UndecodableImage: The bytes are not an image of these `FORMATS`, or decoding it would cost
            too much.
    """
    name = next((n for n, f in _FORMATS.items() if f.signature.match(data)), None)
    if name is None:
        raise not_an_image(data)
    with pillow_errors(data):
        if name == "WebP":
            _check_size(*_webp_size(data), max_pixels)
        elif name == "TIFF":
            _check_tiff(data, max_pixels)
        elif name == "JPEG":
            _check_scans(data)
        with _pillow_limit(max_pixels):
            image = _class_of(_FORMATS[name])(MeteredFile(data))
        _check_size(*image.size, max_pixels)
        if image.tile and image.tile[0][0] == "bmp_rle":
            _check_run_lengths(*image.size)
    return image


def not_an_image(data: bytes) -> UndecodableImage:
    """Return the error for bytes that no decoder accepts."""
    if not data:
        return UndecodableImage("the image is empty (0 bytes)")
    return UndecodableImage(
        f"the {len(data)} bytes sent are not an image that can be decoded ({FORMATS_TEXT})"
    )


def too_many_pixels(size: str, max_pixels: int) -> UndecodableImage:
    """Return the error for an image above the limit; `size` describes its size in words."""
    return UndecodableImage(
        f"the image has {size}, which is more than max_image_pixels ({max_pixels}); start the "
        "server with --max-image-pixels to allow more"
    )


@contextlib.contextmanager
def pillow_errors(data: bytes) -> Iterator[None]:
    """Turn Pillow's errors on bad input into UndecodableImage, and suppress its warnings."""
    try:
        # Warnings quote the file, so each would be a new line in the log.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UndecodableImage:
        raise
    except _PILLOW_ERRORS as error:
        raise not_an_image(data) from error


@contextlib.contextmanager
def _pillow_limit(max_pixels: int) -> Iterator[None]:
    """Make Pillow's own check refuse larger images within the context.

    A GIF's first frame and a WebP's canvas are allocated while the header is read.
    """
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]
    try:
        yield
    except Image.DecompressionBombError as error:
        raise too_many_pixels("a frame or canvas of too many pixels", max_pixels) from error
    finally:
        Image.MAX_IMAGE_PIXELS = before


def set_pillow_limit(max_pixels: int) -> None:
    """Make Pillow raise DecompressionBombError for images of more pixels."""
    from PIL import Image

    # Pillow raises above twice the value and warns above it. A fraction is fine: it only compares.
    Image.MAX_IMAGE_PIXELS = max_pixels / 2  # type: ignore[assignment]
    warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@functools.cache
def _class_of(form: _Format) -> type[ImageFile]:
    """Return Pillow's class for a format; JPEG's does not read the resolution from EXIF data.

    Nothing uses it, and overlapping tags make Pillow before 13 copy gigabytes.
    """
    cls: type[ImageFile] = getattr(importlib.import_module(f"PIL.{form.module}"), form.class_name)
    if form.class_name != "JpegImageFile":
        return cls
    return type(cls.__name__, (cls,), {"_read_dpi_from_exif": lambda self: None})


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width <= 0 or height <= 0:
        raise UndecodableImage(f"the image has no pixels: its header says {width} x {height}")
    if width * height > max_pixels:
        raise too_many_pixels(f"{width} x {height} = {width * height} pixels", max_pixels)


def _webp_size(data: bytes) -> tuple[int, int]:
    """Return width and height of a WebP image.

    Read here because Pillow before 13 allocates the canvas (8 bytes per pixel) before its size can
    be read: https://developers.google.com/speed/webp/docs/riff_container
    """
    kind = data[12:16]
    if len(data) < 30:
        raise not_an_image(data)
    if kind == b"VP8X":
        return (
            int.from_bytes(data[24:27], "little") + 1,
            int.from_bytes(data[27:30], "little") + 1,
        )
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, ((bits >> 14) & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise not_an_image(data)


def _check_tiff(data: bytes, max_pixels: int) -> None:
    """Check the first image's directory before Pillow creates an object per strip or tile."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    file = MeteredFile(data)
    header = file.read(8)
    if header[2] == ord("+"):
        header += file.read(8)
    directory = ImageFileDirectory_v2(header)
    file.seek(directory.next)
    directory.load(file)
    _check_size(int(directory[_WIDTH]), int(directory[_HEIGHT]), max_pixels)
    tile = int(directory.get(_TILE_WIDTH, 1)), int(directory.get(_TILE_HEIGHT, 1))
    if tile[0] * tile[1] > max_pixels:
        raise too_many_pixels(f"tiles of {tile[0]} x {tile[1]} pixels", max_pixels)
    for tag in (_STRIPS, _TILES):
        pieces = directory.get(tag, ())
        if isinstance(pieces, tuple) and len(pieces) > _MAX_TIFF_PIECES:
            raise UndecodableImage(
                f"the image consists of {len(pieces)} strips or tiles, more than "
                f"{_MAX_TIFF_PIECES}; save it again with larger ones"
            )


def _check_scans(data: bytes) -> None:
    """Refuse a JPEG with too many scans.

    The marker cannot occur in coded pixels; thumbnails in the metadata add one or two.
    """
    scans = data.count(_START_OF_SCAN)
    if scans > _MAX_JPEG_SCANS:
        raise UndecodableImage(
            f"the image has {scans} scans, more than {_MAX_JPEG_SCANS}; save it again as a "
            "baseline JPEG"
        )


def _check_run_lengths(width: int, height: int) -> None:
    if width * height > _MAX_RLE_PIXELS:
        raise UndecodableImage(
            f"the image is a run-length coded BMP of {width} x {height} pixels, more than "
            f"{_MAX_RLE_PIXELS}; save it again without compression"
        )
