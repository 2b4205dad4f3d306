"""Pictures that lie about their size, cost more than they look, or end too early."""

from __future__ import annotations

import re
import struct
import zlib
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mms.engines import images
from mms.engines.image_header import FORMATS, MeteredFile
from mms.errors import UndecodableImage
from tests.security.pictures import (
    bmp_claiming,
    chunk,
    decode_in_little_memory,
    every_format,
    gif_claiming,
    jpeg_claiming,
    noise,
    plain,
    png,
    save,
    tiff,
    webp_claiming,
)

_LIMIT = r"more than max_image_pixels \(50000000\).*--max-image-pixels"
_ZEROS = zlib.compress(bytes(150 << 20), 9)
_FRAMES = [noise(8, seed) for seed in range(1000)]

#: What is refused by its header, and what the message says.
BOMBS: dict[str, tuple[bytes, str]] = {
    "JPEG": (jpeg_claiming(32000, 32000), rf"32000 x 32000.*{_LIMIT}"),
    "progressive JPEG": (jpeg_claiming(32000, 32000, progressive=True), _LIMIT),
    "PNG": (png(30000, 30000, pixels=zlib.compress(bytes(64))), rf"30000 x 30000.*{_LIMIT}"),
    "PNG with one endless row": (png(2**31 - 1, 1, pixels=b""), _LIMIT),
    "BMP": (bmp_claiming(40000, 40000), rf"40000 x 40000.*{_LIMIT}"),
    "BMP upside down": (bmp_claiming(40000, -40000), _LIMIT),
    "GIF canvas": (gif_claiming(65535, 65535), _LIMIT),
    "GIF frame": (gif_claiming(65535, 65535, frame=True), _LIMIT),
    "WebP canvas": (webp_claiming(1 << 23, 255, b"VP8X"), _LIMIT),
    "WebP stream": (webp_claiming(16384, 16384, b"VP8L"), rf"16384 x 16384.*{_LIMIT}"),
    "TIFF": (tiff({256: 40000, 257: 40000}), rf"40000 x 40000.*{_LIMIT}"),
    "TIFF tile": (
        tiff({322: 1 << 16, 323: 1 << 16, 324: 8, 325: 64, 259: 8}),
        rf"tiles of 65536 x 65536.*{_LIMIT}",
    ),
    "TIFF strips": (
        tiff({257: 200_000, 278: 1, 273: (8,) * 200_000, 279: (8,) * 200_000}),
        "200000 strips or tiles, more than 65536",
    ),
    "run-length BMP": (bmp_claiming(5000, 5000, 1), "run-length coded BMP of 5000 x 5000"),
}
#: What is cut into pieces each of which costs more than its bytes.
SHREDS: dict[str, bytes] = {
    "PNG of empty chunks": png(8, 8, chunk(b"abCd") * 50_000),
    "PNG of empty chunks behind": png(8, 8)[:-12] + chunk(b"abCd") * 200_000 + chunk(b"IEND"),
    "PNG of pixels byte by byte": png(8, 8).replace(
        chunk(b"IDAT", zlib.compress((b"\0" + b"\xff" * 8) * 8)),
        chunk(b"IDAT") * 300_000,
    ),
    "JPEG of empty segments": b"\xff\xd8\xff" + b"\xe5\0\x02\xff" * 50_000 + b"\xd9",
    "JPEG of rubbish": b"\xff\xd8\xff" + bytes(200_000) + save(plain(), "JPEG"),
    "GIF of comments": b"GIF89a\x08\0\x08\0\0\0\0"
    + b"!\xfe"
    + (b"\xff" + b"x" * 255) * 20_000
    + b"\0;",
}
#: What is decoded, however much else lies in the file.
CHEAP: dict[str, tuple[bytes, tuple[int, ...]]] = {
    "GIF of a thousand frames": (
        save(_FRAMES[0], "GIF", save_all=True, append_images=_FRAMES[1:]),
        (8, 8, 3),
    ),
    "WebP of a thousand frames": (
        save(_FRAMES[0], "WEBP", save_all=True, append_images=_FRAMES[1:], lossless=True),
        (8, 8, 3),
    ),
    "PNG of a thousand frames": (
        save(_FRAMES[0], "PNG", save_all=True, append_images=_FRAMES[1:]),
        (8, 8, 3),
    ),
    "TIFF of a thousand pages": (
        save(_FRAMES[0], "TIFF", save_all=True, append_images=_FRAMES[1:]),
        (8, 8, 3),
    ),
}


class TestV03Bombs:
    def test_v03_all_are_refused_by_their_headers_in_little_memory(self) -> None:
        results = decode_in_little_memory((name, data) for name, (data, _) in BOMBS.items())
        for name, (_, said) in BOMBS.items():
            assert re.search(said, str(results[name])), (name, results[name])

    def test_v03_compressed_metadata_is_not_unpacked(self) -> None:
        texts = {
            "zTXt": chunk(b"zTXt", b"key\0\0" + _ZEROS),
            "iTXt": chunk(b"iTXt", b"key\0\x01\0\0\0" + _ZEROS),
            "iCCP": chunk(b"iCCP", b"name\0\0" + _ZEROS),
        }
        results = decode_in_little_memory((name, png(8, 8, text)) for name, text in texts.items())
        for result in results.values():
            # Left out or refused, as Pillow thinks best.
            assert result == [8, 8, 3] or "not an image that can be decoded" in result

    def test_v03_metadata_do_not_hide_pixels_that_never_end(self) -> None:
        pixels = png(8, 8, pixels=_ZEROS)
        assert decode_in_little_memory([("pixels", pixels)]) == {"pixels": [8, 8, 3]}

    @pytest.mark.parametrize("name", SHREDS)
    def test_v03_a_file_cut_into_very_many_pieces_is_refused(self, name: str) -> None:
        with pytest.raises(UndecodableImage, match="cut into too many pieces"):
            images.decode(SHREDS[name])

    def test_v03_a_jpeg_of_very_many_scans_is_refused(self) -> None:
        data = save(plain(), "JPEG", progressive=True)
        start = data.rindex(b"\xff\xda")
        scan = data[start:-2]
        assert images.decode(data[:-2] + scan * 5 + b"\xff\xd9").shape == (64, 64, 3)
        with pytest.raises(UndecodableImage, match="scans, more than 64"):
            images.decode(data[:-2] + scan * 1000 + b"\xff\xd9")

    def test_v03_tags_on_top_of_each_other_are_read_once(self) -> None:
        data = bytearray(tiff({60_000: (0,) * 50_000}))
        # A thousand tags that name the same 200 kB.
        (start,) = struct.unpack_from("<I", data, 4)
        (count,) = struct.unpack_from("<H", data, start)
        last = bytes(data[start + 2 + 12 * (count - 1) : start + 2 + 12 * count])
        more = b"".join(struct.pack("<H", 60_001 + n) + last[2:] for n in range(1000))
        struct.pack_into("<H", data, start, count + 1000)
        data[start + 2 + 12 * count : start + 2 + 12 * count] = more
        assert isinstance(decode_in_little_memory([("tags", bytes(data))])["tags"], str | list)

    def test_v03_no_byte_of_a_header_is_read_more_than_twice(self) -> None:
        file = MeteredFile(bytes(200_000))
        for _ in range(2):
            file.seek(0)
            file.read(200_000)
        file.seek(0)
        with pytest.raises(UndecodableImage, match="too many pieces"):
            file.read(200_000)

    def test_v03_frames_and_pages_beyond_the_first_cost_nothing(self) -> None:
        results = decode_in_little_memory((name, data) for name, (data, _) in CHEAP.items())
        assert results == {name: list(shape) for name, (_, shape) in CHEAP.items()}

    @pytest.mark.parametrize("name", FORMATS)
    def test_v03_exactly_as_many_pixels_as_the_limit_are_decoded(self, name: str) -> None:
        pictures = {
            "at the limit": every_format(plain(size=1000))[name],
            "one row more": every_format(Image.new("RGB", (1000, 1001)))[name],
        }
        results = decode_in_little_memory(pictures.items(), max_pixels=1_000_000)
        assert results["at the limit"] == [1000, 1000, 3]
        assert re.search(
            r"1000 x 1001 = 1001000 pixels.*more than max_image_pixels \(1000000\)",
            results["one row more"],
        )

    def test_v03_pillow_itself_has_the_limit_in_a_worker(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
        monkeypatch.setattr(images, "_max_pixels", images._max_pixels)
        images.configure(4095)
        with pytest.raises(Image.DecompressionBombError):
            Image.open(_file(save(plain(size=64), "PNG")))
        Image.open(_file(save(plain(size=63), "PNG"))).load()


def _file(data: bytes) -> MeteredFile:
    return MeteredFile(data)


class TestV01Damage:
    """What is incomplete is refused, or decoded into its own pixels."""

    @pytest.mark.parametrize("name", FORMATS)
    def test_v01_no_truncation_shows_anything_but_the_pictures_own_pixels(self, name: str) -> None:
        data = every_format(noise(16))[name]
        whole = images.decode(data)
        for length in range(len(data)):
            try:
                pixels = images.decode(data[:length])
            except UndecodableImage:
                continue
            # What is missing comes after the pixels.
            assert length > len(data) * 0.9, length
            assert np.array_equal(pixels, whole), length

    @pytest.mark.parametrize("name", FORMATS)
    def test_v01_half_a_body_is_refused(self, name: str) -> None:
        data = every_format(noise(64))[name]
        with pytest.raises(UndecodableImage, match="not an image that can be decoded"):
            images.decode(data[: len(data) // 2])

    @pytest.mark.parametrize("name", FORMATS)
    def test_v01_a_damaged_signature_is_refused(self, name: str) -> None:
        data = bytearray(every_format(plain())[name])
        length = 12 if name == "WebP" else 4 if name == "TIFF" else 3 if name == "JPEG" else 2
        for at in set(range(length)) - ({4, 5, 6, 7} if name == "WebP" else set()):
            damaged = bytearray(data)
            damaged[at] ^= 0x80
            with pytest.raises(UndecodableImage, match="JPEG, PNG, BMP, GIF, WebP or TIFF"):
                images.decode(bytes(damaged))

    def test_v01_the_37_bytes_are_refused(self) -> None:
        for size in ((64, 64), (16, 369098768)):
            data = bytearray(png(*size, pixels=b"")[:37])
            data[4:8] = b"XXXX"
            with pytest.raises(UndecodableImage):
                images.decode(bytes(data))

    @pytest.mark.parametrize("kind", ["PPM", "JPEG2000", "ICO", "TGA", "PCX", "DDS", "AVIF", "SGI"])
    def test_v01_formats_that_are_not_listed_are_refused(self, kind: str) -> None:
        with pytest.raises(UndecodableImage, match="JPEG, PNG, BMP, GIF, WebP or TIFF"):
            images.decode(save(plain(), kind))

    @pytest.mark.parametrize("mode", ["I", "F", "LAB"])
    def test_v01_pixels_of_no_form_in_8_bits_are_refused(self, mode: str) -> None:
        with pytest.raises(UndecodableImage, match="send it in RGB or grey"):
            images.decode(save(Image.new(mode, (8, 8)), "TIFF"))


PICTURES = [
    *every_format(noise(12)).values(),
    *every_format(plain(size=12)).values(),
    save(noise(12).convert("P"), "PNG"),
    save(noise(12).convert("RGBA"), "PNG"),
    save(noise(12).convert("CMYK"), "JPEG"),
    save(noise(12), "JPEG", progressive=True),
    save(noise(12), "TIFF", compression="tiff_lzw"),
    save(noise(12), "TIFF", compression="tiff_adobe_deflate"),
    save(noise(12), "WEBP"),
    save(_FRAMES[0], "GIF", save_all=True, append_images=_FRAMES[1:3]),
    save(_FRAMES[0], "WEBP", save_all=True, append_images=_FRAMES[1:3]),
    save(_FRAMES[0], "PNG", save_all=True, append_images=_FRAMES[1:3]),
]


#: What whole words of a header are replaced by.
_WORDS = [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\1"]
_MUTATIONS = 1500


def mutate(picture: bytes, random: Random) -> bytes:
    data = bytearray(picture)
    for _ in range(random.randint(1, 6)):
        # Headers decide, so they are hit more often.
        end = random.choice([40, 120, len(data)])
        at = random.randrange(min(end, len(data)))
        patch = random.choice([*_WORDS, random.randbytes(random.randint(1, 4))])
        data[at : at + len(patch)] = patch
    return bytes(data[: random.choice([len(data), random.randint(1, len(data))])])


class TestV03Mutations:
    @settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
    @given(seed=st.integers(0, 2**32))
    def test_v03_mutated_pictures_are_refused_or_decoded_in_little_memory(self, seed: int) -> None:
        random = Random(seed)
        pictures = [mutate(random.choice(PICTURES), random) for _ in range(_MUTATIONS)]
        named = [(str(number), data) for number, data in enumerate(pictures)]
        results = decode_in_little_memory(named, max_pixels=1_000_000)
        assert len(results) == len(pictures)
        for number, result in results.items():
            if isinstance(result, list):
                height, width, channels = result
                assert 0 < height * width <= 1_000_000, pictures[int(number)]
                assert channels == 3
