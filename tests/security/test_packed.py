"""Bodies with a Content-Encoding: what is accepted, and what unpacking may cost."""

from __future__ import annotations

import contextlib
import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.errors import InvalidRequest, MMSError, PayloadTooLarge, UnsupportedMedia
from mms.wire.messages import Dialect, Request, RequestLimits, RequestMeta
from mms.worker.content import MAX_MEMBERS, unpacked
from tests.security.work import calls_of, run_limited

TEXT = b'["some text", 1, 2, 3]' * 100


def gzipped(data: bytes, level: int = 9) -> bytes:
    """Return `data` in gzip's format, the same bytes at any time (test processes compare ids)."""
    return gzip.compress(data, level, mtime=0)


def raw_deflate(data: bytes) -> bytes:
    engine = zlib.compressobj(wbits=-15)
    return engine.compress(data) + engine.flush()


def unpack(body: bytes, encoding: str, **limits: int) -> bytes:
    meta = RequestMeta("id", Dialect.PLAIN, "application/json", "", encoding)
    return bytes(unpacked(Request(meta, memoryview(body)), RequestLimits(**limits)))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        ("", TEXT),
        ("identity", TEXT),
        ("Identity, IDENTITY", TEXT),
        ("gzip", gzipped(TEXT)),
        ("GZip", gzipped(TEXT)),
        ("x-gzip", gzipped(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("gzip, identity", gzipped(TEXT)),
        ("deflate, gzip", gzipped(zlib.compress(TEXT))),
        ("gzip", gzipped(TEXT[:50]) + gzipped(b"") + gzipped(TEXT[50:])),
        ("gzip", gzipped(TEXT, 0)),
    ],
)
def test_v23_what_is_accepted_is_unpacked(encoding: str, body: bytes) -> None:
    assert unpack(body, encoding) == TEXT


@given(st.binary(max_size=300_000), st.sampled_from(["gzip", "deflate"]), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_v23_any_bytes_come_back(data: bytes, encoding: str, times: int) -> None:
    pack = gzipped if encoding == "gzip" else zlib.compress
    assert unpack(pack(data * times), encoding) == data * times


@pytest.mark.parametrize(
    "encoding", ["br", "zstd", "compress", "gzip, br", "gzip;q=1", "gzip, gzip, gzip", "x" * 5000]
)
def test_v23_any_other_encoding_is_a_415_that_names_those_accepted(encoding: str) -> None:
    with pytest.raises(UnsupportedMedia, match="send gzip, deflate and identity") as caught:
        unpack(gzipped(TEXT), encoding)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("encoding", "whole"),
    [
        ("gzip", gzipped(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
        ("gzip", gzipped(TEXT) + gzipped(TEXT)),
    ],
)
def test_v23_truncated_packed_data_is_a_400_at_every_length(encoding: str, whole: bytes) -> None:
    member = len(gzipped(TEXT))
    for length in range(len(whole)):
        if encoding == "gzip" and length == member:
            continue
        with pytest.raises(InvalidRequest, match=r"truncated|not valid|after the end"):
            unpack(whole[:length], encoding)


@pytest.mark.parametrize("tail", [b"\0", b"garbage", gzipped(TEXT)[:5], b"\0" * 100_000])
def test_v23_bytes_after_the_end_are_a_400(tail: bytes) -> None:
    for encoding, body in (
        ("gzip", gzipped(TEXT)),
        ("deflate", zlib.compress(TEXT)),
        ("deflate", raw_deflate(TEXT)),
    ):
        with pytest.raises(InvalidRequest, match="the body"):
            unpack(body + tail, encoding)


@given(st.binary(max_size=200), st.sampled_from(["gzip", "deflate"]), st.integers(0, 60))
@settings(max_examples=300, deadline=None)
def test_v23_any_other_bytes_are_refused_in_our_words(data: bytes, encoding: str, at: int) -> None:
    packed = bytearray(gzipped(TEXT))
    packed[at : at + 1] = data[:1]
    for body in (data, bytes(packed)):
        with contextlib.suppress(MMSError):
            unpack(body, encoding)


def test_v02_what_is_unpacked_is_limited_in_size_and_ratio() -> None:
    packed = gzipped(bytes(3 << 20))
    assert len(unpack(packed, "gzip", max_decompression_ratio=10_000)) == 3 << 20
    with pytest.raises(PayloadTooLarge, match="--max-decompression-ratio"):
        unpack(packed, "gzip")
    with pytest.raises(PayloadTooLarge, match="--max-decompressed-bytes"):
        unpack(packed, "gzip", max_decompressed_bytes=(3 << 20) - 1, max_decompression_ratio=10_000)
    # Small bodies may be packed as well as they will.
    assert len(unpack(gzipped(bytes(1 << 20)), "gzip")) == 1 << 20


@pytest.mark.parametrize("limit", ["max_decompressed_bytes", "max_decompression_ratio"])
def test_v02_a_bomb_takes_no_more_memory_than_the_limit(limit: str) -> None:
    code = f"""
    import zlib
    from mms.errors import PayloadTooLarge
    from mms.wire.messages import Request, RequestLimits, RequestMeta, Dialect
    from mms.worker.content import unpacked
    engine = zlib.compressobj(wbits=31)
    packed = b"".join(engine.compress(bytes(1 << 20)) for _ in range(1000)) + engine.flush()
    limits = dict(max_decompressed_bytes=32 << 20, max_decompression_ratio=1 << 30)
    if {limit!r} == "max_decompression_ratio":
        limits = dict(max_decompressed_bytes=1 << 30, max_decompression_ratio=30)
    meta = RequestMeta("id", Dialect.PLAIN, "", "", "gzip")
    limit()
    try:
        unpacked(Request(meta, memoryview(packed)), RequestLimits(**limits))
    except PayloadTooLarge as error:
        print(error)
    """
    assert limit in run_limited(code, 80 << 20)


def test_v02_a_bomb_in_a_bomb_and_very_many_members_are_refused() -> None:
    inner = gzipped(bytes(64 << 20))
    with pytest.raises(PayloadTooLarge, match="--max-decompression-ratio"):
        unpack(gzipped(inner), "gzip, gzip")
    many = gzipped(b"") * (MAX_MEMBERS + 1)
    with pytest.raises(InvalidRequest, match=f"more than {MAX_MEMBERS} gzip members"):
        unpack(many, "gzip")
    assert calls_of(lambda: unpack(many * 10, "gzip")) < 2 * calls_of(lambda: unpack(many, "gzip"))
