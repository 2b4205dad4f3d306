"""Make pictures of every format, good ones and bombs, and decode them in little memory.

``python -m tests.security.pictures`` is the process that does so.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import resource
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import psutil
from PIL import Image

from mms.engines import images
from mms.engines.image_header import FORMATS
from mms.errors import UndecodableImage

#: Memory that decoding a picture may take in the child, beyond what it has after its imports.
BUDGET_BYTES = 96 << 20


def save(image: Image.Image, kind: str, **options: Any) -> bytes:
    output = io.BytesIO()
    image.save(output, kind, **options)
    return output.getvalue()


def plain(colour: tuple[int, int, int] = (200, 100, 50), size: int = 64) -> Image.Image:
    return Image.new("RGB", (size, size), colour)


def noise(size: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def every_format(image: Image.Image) -> dict[str, bytes]:
    """Encode a picture in each format that the messages list, without loss where there is a way."""
    options: dict[str, dict[str, Any]] = {
        "WebP": {"lossless": True},
        "JPEG": {"quality": 95, "subsampling": 0},
    }
    return {name: save(image, name.upper(), **options.get(name, {})) for name in FORMATS}


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """Write a grey PNG with more chunks before its pixels, which are white unless given."""
    if pixels is None:
        pixels = zlib.compress((b"\0" + b"\xff" * width) * height)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *chunks,
            chunk(b"IDAT", pixels),
            chunk(b"IEND"),
        ]
    )


def jpeg_claiming(width: int, height: int, **options: Any) -> bytes:
    """Write a JPEG of a few pixels whose header says that it is larger."""
    data = save(plain(size=8), "JPEG", **options)
    start = re.search(rb"\xff[\xc0\xc2]\x00\x11\x08", data)
    assert start is not None
    return data[: start.end()] + struct.pack(">HH", height, width) + data[start.end() + 4 :]


def bmp_claiming(width: int, height: int, compression: int = 0) -> bytes:
    data = bytearray(save(plain(size=8).convert("L"), "BMP"))
    data[18:26] = struct.pack("<ii", width, height)
    data[30:34] = struct.pack("<I", compression)
    return bytes(data)


def gif_claiming(width: int, height: int, *, frame: bool = False) -> bytes:
    """Write a GIF with a large canvas, or a large first frame that is to be cleared afterwards."""
    size = struct.pack("<HH", width, height)
    control = b"!\xf9\x04\x08\0\0\0\0"
    return (
        b"GIF89a"
        + (b"\x08\0\x08\0" if frame else size)
        + b"\x80\0\0\0\0\0\xff\xff\xff"
        + control
        + b",\0\0\0\0"
        + (size if frame else b"\x08\0\x08\0")
        + b"\0\x02\x03\x84\x8f\x05\0;"
    )


def webp_claiming(width: int, height: int, kind: bytes) -> bytes:
    """Write a WebP whose canvas (VP8X) or stream (VP8L) says that it is larger."""
    inner = bytearray(save(plain(size=8), "WEBP", lossless=True)[12:])
    if kind == b"VP8L":
        bits = struct.unpack_from("<I", inner, 9)[0] & ~0xFFFFFFF
        struct.pack_into("<I", inner, 9, bits | (width - 1) | (height - 1) << 14)
    else:
        sizes = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        inner = bytearray(b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + sizes + inner)
    return b"RIFF" + struct.pack("<I", len(inner) + 4) + b"WEBP" + bytes(inner)


def tiff(tags: dict[int, int | tuple[int, ...]], data: bytes = b"\xff" * 64) -> bytes:
    """Write a grey TIFF of 8 x 8 pixels, some of its tags replaced by others."""
    all_tags = {256: 8, 257: 8, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 8, 279: 64, **tags}
    body = bytearray(data)
    entries = bytearray()
    for tag, value in sorted(all_tags.items()):
        if isinstance(value, int):
            entries += struct.pack("<HHII", tag, 4, 1, value)
        else:
            entries += struct.pack("<HHII", tag, 4, len(value), 8 + len(body))
            body += struct.pack(f"<{len(value)}I", *value)
    start = 8 + len(body)
    return (
        b"II*\0"
        + struct.pack("<I", start)
        + bytes(body)
        + struct.pack("<H", len(all_tags))
        + bytes(entries)
        + b"\0\0\0\0"
    )


def decode_in_little_memory(
    pictures: Iterable[tuple[str, bytes]], max_pixels: int | None = None
) -> dict[str, Any]:
    """Decode pictures in a child process; return a shape or an error's text for each name.

    A child that dies has the names it came to in the assertion's message.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.security.pictures"],
        input=pickle.dumps((list(pictures), max_pixels)),
        capture_output=True,
        check=False,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (lines[-1:], done.stderr.decode()[-2000:])
    return dict(lines)


def _decode_all() -> None:
    pictures, max_pixels = pickle.load(sys.stdin.buffer)
    if max_pixels is not None:
        images.configure(max_pixels)
    for data in every_format(plain(size=8)).values():
        images.decode(data)
    used = psutil.Process().memory_info().vms
    resource.setrlimit(resource.RLIMIT_AS, (used + BUDGET_BYTES,) * 2)
    for name, data in pictures:
        try:
            result: Any = list(images.decode(data).shape)
        except UndecodableImage as error:
            result = str(error)
        print(json.dumps([name, result]), flush=True)  # noqa: T201 - the way to the parent


if __name__ == "__main__":
    _decode_all()
