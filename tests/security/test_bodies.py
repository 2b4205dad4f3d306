"""Forms and JSON from strangers: limits named, cost in step with the bytes, numbers exact."""

from __future__ import annotations

import json
import math
from typing import Any
from urllib.parse import unquote_to_bytes

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InvalidRequest, MMSError, PayloadTooLarge, UnsupportedMedia
from mms.wire.messages import Dialect, Request, RequestLimits, RequestMeta
from mms.worker import form
from mms.worker.handler import decode_parameters
from mms.worker.json_text import check_elements, has_long_integer, read_json
from mms.worker.request import decode_inputs
from tests.security.work import run_limited

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
SIGNATURE = Signature((TensorSpec("data", (0,)),), JSON, (TensorSpec("out", (0,)),), JSON)


def decode(body: bytes, content_type: str = JSON, **limits: int) -> Any:
    request = Request(RequestMeta("id", Dialect.PLAIN, content_type, ""), memoryview(body))
    return decode_inputs(request, SIGNATURE, RequestLimits(**limits))[0]


def multipart(value: bytes, *headers: str, count: int = 1) -> tuple[bytes, str]:
    lines = ['Content-Disposition: form-data; name="data"', *headers]
    part = "--b\r\n" + "\r\n".join(lines) + "\r\n\r\n"
    return (part.encode() + value + b"\r\n") * count + b"--b--\r\n", (
        "multipart/form-data; boundary=b"
    )


class TestV05Forms:
    def test_a_form_longer_than_its_limit_is_a_413_that_names_the_option(self) -> None:
        assert decode(b"data=[1]", FORM, max_form_bytes=8) == [1]
        with pytest.raises(PayloadTooLarge, match="--max-form-bytes"):
            decode(b"data=[1] ", FORM, max_form_bytes=8)

    def test_more_fields_than_the_limit_are_a_413_in_either_form(self) -> None:
        for count in (3, 4):
            body, content_type = multipart(b"[1]", count=count)
            for sent in ((body, content_type), (b"&".join([b"data=[1]"] * count), FORM)):
                if count == 3:
                    assert decode(*sent, max_form_fields=3) == [1]
                    continue
                with pytest.raises(PayloadTooLarge, match="--max-form-fields"):
                    decode(*sent, max_form_fields=3)

    def test_escapes_by_the_million_take_little_memory(self) -> None:
        code = """
        from mms.wire.messages import RequestLimits
        from mms.worker.form import form_parts
        body = memoryview(b"data=" + b"%5B" * 5_000_000)
        limit()
        (part,) = form_parts(body, "application/x-www-form-urlencoded", {}, RequestLimits())
        print(len(part.value), part.value[:2])
        """
        code = "\n".join(line[8:] for line in code.split("\n"))
        assert run_limited(code, 120 << 20) == "5000000 b'[['"

    @given(st.lists(st.sampled_from(["%", "%4", "%41", "%zz", "%e9", "a", "F", "%%"])), st.data())
    @settings(max_examples=200, deadline=None)
    def test_escapes_mean_what_they_mean_to_python(
        self, pieces: list[str], data: st.DataObject
    ) -> None:
        text = "".join(pieces).encode()
        steps, form._STEP_BYTES = form._STEP_BYTES, data.draw(st.integers(4, 9))
        try:
            assert form.unquoted(text) == unquote_to_bytes(text)
        finally:
            form._STEP_BYTES = steps

    def test_base64_in_very_many_lines_is_not_split_into_them(self) -> None:
        code = """
        from mms.worker.image_body import image_value
        data = b"QUJD" + b"QUJD\\n" * 2_000_000
        limit()
        print(len(image_value("x", data)))
        """
        code = "\n".join(line[8:] for line in code.split("\n"))
        assert run_limited(code, 60 << 20) == "6000003"


class TestV18Charsets:
    @pytest.mark.parametrize(
        "charset", ["latin-1", "ISO-8859-1", "utf-16", "cp1252", "UTF-8", "gbk"]
    )
    def test_a_declared_charset_is_used(self, charset: str) -> None:
        text = '["é"]'.encode(charset)
        body, content_type = multipart(text, f"Content-Type: text/plain; charset={charset}")
        assert decode(body, content_type) == ["é"]
        assert decode(text, f"application/json; charset={charset}") == ["é"]

    @pytest.mark.parametrize("charset", ["punycode", "idna", "rot13", "zip", "klingon", "x" * 3000])
    def test_an_unknown_charset_is_a_415(self, charset: str) -> None:
        body, content_type = multipart(b"[1]", f"Content-Type: text/plain; charset={charset}")
        for sent in ((body, content_type), (b"[1]", f"application/json; charset={charset}")):
            with pytest.raises(UnsupportedMedia, match=r"unknown charset.*send UTF-8") as caught:
                decode(*sent)
            assert len(str(caught.value)) < 200

    def test_a_false_charset_is_a_400_and_none_is_utf8_with_replacement(self) -> None:
        body, content_type = multipart(b'["\xff"]', "Content-Type: text/plain; charset=utf-8")
        with pytest.raises(InvalidRequest, match=r"not in its charset 'utf-8' \(byte 2\)"):
            decode(body, content_type)
        body, content_type = multipart(b"['\xff']")
        assert decode(body, content_type) == ["\ufffd"]

    @pytest.mark.parametrize("decodes", [True, False])
    def test_handlers_get_texts_in_their_charset(self, decodes: bool) -> None:
        meta = RequestMeta("id", Dialect.PLAIN, "text/plain; charset=latin-1", "")
        data, _ = decode_parameters(Request(meta, memoryview(b"\xe9")), decodes)
        assert data["body"] == ("é" if decodes else bytearray(b"\xe9"))
        meta = RequestMeta("id", Dialect.PLAIN, "text/plain; charset=klingon", "")
        if decodes:
            with pytest.raises(UnsupportedMedia, match="klingon"):
                decode_parameters(Request(meta, memoryview(b"x")), decodes)


class TestV05Elements:
    @pytest.mark.parametrize("unit", [b"[]", b"{}", b"1", b'""', b"[1]", b'{"a":1}'])
    def test_too_many_elements_are_refused_before_any_is_made(self, unit: bytes) -> None:
        code = f"""
        from mms.errors import PayloadTooLarge
        from mms.worker.json_text import read_json
        data = b"[" + b",".join([{unit!r}] * 2_000_000) + b"]"
        limit()
        try:
            read_json(data, "the body", 1_000_000)
        except PayloadTooLarge as error:
            print(error)
        """
        code = "\n".join(line[8:] for line in code.split("\n"))
        assert "--max-json-elements" in run_limited(code, 60 << 20)

    def test_what_stands_in_texts_is_no_element(self) -> None:
        for value in (
            ["a,[{," * 50] * 5,
            {'"\\,,,,' * 30: '\\",,' * 30},
            ["\\", ",,,,,,,,,,,,,,,"],
        ):
            text = json.dumps(value).encode()
            check_elements(text, "it", 12)
            with pytest.raises(PayloadTooLarge):
                check_elements(text, "it", 1)

    @given(
        st.recursive(
            st.integers() | st.text(alphabet='",[]{}\\a', max_size=6),
            lambda i: st.lists(i, max_size=4) | st.dictionaries(st.text(max_size=3), i, max_size=4),
            max_leaves=12,
        )
    )
    @settings(max_examples=300, deadline=None)
    def test_the_count_is_exact(self, value: Any) -> None:
        def count(found: Any) -> int:
            parts = found.values() if isinstance(found, dict) else found
            return 1 + (sum(map(count, parts)) if isinstance(found, (list, dict)) else 0)

        text = orjson.dumps(value) if _fits(value) else json.dumps(value, separators=(",", ":"))
        data = text if isinstance(text, bytes) else text.encode()
        check_elements(data, "it", count(value))
        if len(data) > count(value) - 1:
            with pytest.raises(PayloadTooLarge):
                check_elements(data, "it", count(value) - 1)

    def test_forms_images_and_handlers_count_too(self) -> None:
        body, content_type = multipart(b"[1,2,3,4]")
        meta = RequestMeta("id", Dialect.PLAIN, JSON, "")
        limits = RequestLimits(max_json_elements=3)
        with pytest.raises(PayloadTooLarge, match="input 'data' has more than"):
            decode(body, content_type, max_json_elements=3)
        with pytest.raises(PayloadTooLarge, match="'body' has more than"):
            decode_parameters(Request(meta, memoryview(b"[1,2,3,4]")), True, limits)


def _fits(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


class TestV05Numbers:
    @pytest.mark.parametrize("digits", [18, 19, 20, 25, 400])
    @pytest.mark.parametrize("room", [0, 4090, 300_000])
    @pytest.mark.parametrize("sign", ["", "-"])
    def test_integers_are_exact(self, digits: int, room: int, sign: str) -> None:
        for offset in range(8):
            number = int(sign + "9" * digits)
            text = b"[" + b" " * (room + offset) + str(number).encode() + b", 0.5]"
            assert decode(text) == [number, 0.5]
            assert decode(b"data=" + text.replace(b" ", b"+"), FORM) == [number, 0.5]
            assert has_long_integer(text) == (digits >= 19)

    def test_fractions_are_no_integers(self) -> None:
        for room in (0, 5000):
            text = b" " * room + b"[0." + b"1" * 30 + b",-12.000001234567890123456,5]"
            assert not has_long_integer(text)

    def test_a_handler_gets_them_too(self) -> None:
        meta = RequestMeta("id", Dialect.PLAIN, JSON, "")
        data, _ = decode_parameters(Request(meta, memoryview(b"[36893488147419103233]")), True)
        assert data["body"] == [36893488147419103233]

    def test_what_python_reads_is_read(self) -> None:
        value = decode(b'[NaN, -Infinity, 1e400, "\\ud800", {"a": 1, "a": 2}]')
        assert math.isnan(value[0])
        assert value[1:] == [-math.inf, math.inf, "\ud800", {"a": 2}]
        assert decode(b"\xef\xbb\xbf[1]") == [1]
        for text in (b"[NaN]", b"[NaN, 36893488147419103233]"):
            with pytest.raises(InvalidRequest, match="not valid JSON"):
                read_json(text, "it", 10, is_strict=True)

    def test_thousands_of_digits_are_a_400(self) -> None:
        with pytest.raises(InvalidRequest, match="5000 digits; at most 4300"):
            decode(b"[" + b"9" * 5000 + b"]")


@pytest.mark.parametrize("body", [b"[" * 100_000, b"[" * 1500 + b"]" * 1500, b'{"a":' * 50_000])
def test_v05_depth_is_a_400(body: bytes) -> None:
    for content_type, sent in ((JSON, body), (FORM, b"data=" + body)):
        with pytest.raises(MMSError):
            decode(sent, content_type)
