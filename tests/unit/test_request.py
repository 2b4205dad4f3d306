"""Bodies of requests: every accepted shape, and an answer to every mistake."""

from __future__ import annotations

import base64
import contextlib
import json
import urllib.parse
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InvalidRequest, MMSError, UnsupportedMedia
from mms.wire.messages import Dialect, Request, RequestMeta
from mms.worker.form import parse_media_type
from mms.worker.request import decode_inputs, parse_literal

BOUNDED = settings(max_examples=100, deadline=None)
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(40)


def signature(*names: str, images: bool = False) -> Signature:
    return Signature(
        tuple(TensorSpec(name, (0,)) for name in names or ("data",)),
        "image/jpeg" if images else JSON,
        (TensorSpec("out", (0,)),),
        JSON,
    )


def decode(body: bytes, content_type: str, *names: str, images: bool = False) -> list[Any]:
    request = Request(RequestMeta("id", Dialect.PLAIN, content_type, ""), memoryview(body))
    return decode_inputs(request, signature(*names, images=images))


def multipart(parts: dict[str, bytes], filename: str = "") -> tuple[bytes, str]:
    """Return a multipart body and its content type, built by hand."""
    boundary = "----boundary7MA4YWxk"
    body = b""
    for name, content in parts.items():
        disposition = f'form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        body += f"--{boundary}\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
        body += content + b"\r\n"
    return body + f"--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"


def refuse(
    message: str, body: bytes, content_type: str, *names: str, images: bool = False
) -> InvalidRequest:
    with pytest.raises(InvalidRequest, match=message) as caught:
        decode(body, content_type, *names, images=images)
    str(caught.value).encode()  # what cannot be encoded cannot be answered either
    return caught.value


# JSON inputs


@pytest.mark.parametrize("content_type", [JSON, "", "text/json", "Application/JSON; charset=utf-8"])
def test_a_json_body_is_the_value_of_a_sole_input(content_type: str) -> None:
    assert decode(b"[[1, 2], [3, 4]]", content_type) == [[[1, 2], [3, 4]]]


def test_a_bare_object_is_wrapped_in_a_list() -> None:
    assert decode(b'{"review": "good"}', JSON) == [[{"review": "good"}]]


def test_an_object_with_the_inputs_names_is_taken_apart() -> None:
    body = b'{"b": [2], "a": {"x": 1}, "c": 3}'
    assert decode(body, JSON, "a", "b") == [[{"x": 1}], [2]]
    assert decode(b'{"data": [1]}', JSON) == [[1]]


def test_json_that_curl_calls_a_form_is_still_json() -> None:
    assert decode(b'[{"review": "a=b&c"}]', FORM) == [[{"review": "a=b&c"}]]


def test_form_fields_hold_json_or_python_literals() -> None:
    for text in ('[{"review": "good"}]', "[{'review': 'good'}]", "({'review': 'good'},)"):
        body, content_type = multipart({"data": text.encode()})
        assert decode(body, content_type) == [[{"review": "good"}]]
        body = urllib.parse.urlencode({"data": text}).encode()
        assert decode(body, FORM) == [[{"review": "good"}]]


@pytest.mark.parametrize(
    "body",
    ['data=["é", "日本"]'.encode(), urllib.parse.urlencode({"data": '["é", "日本"]'}).encode()],
)
def test_text_beyond_ascii_survives_a_form(body: bytes) -> None:
    assert decode(body, FORM) == [["é", "日本"]]


def test_extra_and_repeated_fields_are_ignored() -> None:
    assert decode(b"x=1&data=[1]&data=[2]", FORM) == [[1]]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.lists(json_values, max_size=4))
@BOUNDED
def test_python_literals_and_json_agree(value: list[Any]) -> None:
    assert parse_literal("data", repr(value).encode()) == value
    assert parse_literal("data", json.dumps(value).encode()) == value


@given(
    st.dictionaries(
        st.from_regex(r"[a-z_]{1,10}", fullmatch=True),
        st.lists(json_values, max_size=3),
        min_size=1,
        max_size=4,
    )
)
@BOUNDED
def test_multipart_and_urlencoded_forms_round_trip(values: dict[str, list[Any]]) -> None:
    texts = {name: json.dumps(value) for name, value in values.items()}
    body, content_type = multipart({name: text.encode() for name, text in texts.items()})
    assert decode(body, content_type, *values) == list(values.values())
    body = urllib.parse.urlencode(texts).encode()
    assert decode(body, FORM, *values) == list(values.values())


MISTAKES = [
    ("the body is empty; send a JSON value for input 'data'", b"", JSON),
    ("the body is not valid JSON: .*column", b"[1,", JSON),
    ("the body is not valid JSON", b"\xff", JSON),
    ("the body is not valid JSON", b"[" * 100_000, JSON),
    ("input 'data' must be a list or an object, got a number: 5", b"5", JSON),
    ("input 'data' must be a list or an object, got null", b"null", JSON),
    ("input 'data' must be a list or an object, got a string: hello", b'"hello"', JSON),
    ("input 'data' must be a list or an object, got a boolean", b"true", JSON),
    ("input 'data' is missing; the form has 'x', 'y'", b"x=1&y=2", FORM),
    ("input 'data' is missing; the form has no fields", b"", FORM),
    ("input 'data' is neither JSON nor a Python literal: open\\('x'\\)", b"data=open('x')", FORM),
    ("input 'data' is neither JSON nor", b"data=__import__('os').system('true')", FORM),
    ("input 'data' is neither JSON nor a Python literal: .\ufffd.", b"data=[%FF]", FORM),
    ("input 'data' is nested deeper than 100", b"data=" + b"(" * 101, FORM),
    ("input 'data' is neither JSON nor", b"data=" + b"~" * 65 + b"1", FORM),
    ("got a number: a number of hundreds of digits", b"data=0x" + b"f" * 5000, FORM),
    ("got a number: 0x1|got complex", b"data=1j", FORM),
    ("got a string", b"data='%5Cud800'", FORM),
    ("no boundary of 1 to 70", b"x", "multipart/form-data"),
    ("no boundary of 1 to 70", b"x", "multipart/form-data; boundary=" + "b" * 71),
    ("the multipart body is malformed", b"x", "multipart/form-data; boundary=b"),
]


@pytest.mark.parametrize(("message", "body", "content_type"), MISTAKES)
def test_a_mistake_is_named_and_can_be_answered(
    message: str, body: bytes, content_type: str
) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        decode(body, content_type)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [b"1+" * 50_000 + b"1", b"f" + b"()" * 50_000, b"not " * 50_000 + b"1", b"[')'," * 50_000],
)
def test_deep_literals_do_not_exhaust_the_stack(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="input 'x' is"):
        parse_literal("x", text)


def test_a_missing_input_of_several_is_named() -> None:
    refuse("input 'b' is missing; the body has 'a', 'c'", b'{"a": [1], "c": [2]}', JSON, "a", "b")
    refuse("2 inputs; send a JSON object with the keys 'a', 'b'", b"[1]", JSON, "a", "b")
    refuse("input 'b' is missing; the form has 'a'", b"a=[1]", FORM, "a", "b")


def test_a_multipart_body_cut_short_is_malformed() -> None:
    body, content_type = multipart({"data": b"[1]"})
    refuse("the multipart body is malformed", body[:-10], content_type)


def test_a_content_type_that_no_model_reads_names_those_that_it_does() -> None:
    with pytest.raises(UnsupportedMedia, match=r"'text/plain' is not supported.*text/csv"):
        decode(b"1,2", "text/plain; charset=utf-8")


# Image inputs


@pytest.mark.parametrize("content_type", ["", "image/png", "application/octet-stream", FORM])
def test_a_raw_body_is_the_image(content_type: str) -> None:
    assert decode(PNG, content_type, images=True) == [PNG]


def test_files_of_a_form_are_the_images() -> None:
    body, content_type = multipart({"b": PNG + b"2", "a": PNG}, filename="x.png")
    assert decode(body, content_type, "a", "b", images=True) == [PNG, PNG + b"2"]


@pytest.mark.parametrize("prefix", [b"", b"data:image/png;base64,"])
def test_base64_is_an_image_wherever_text_can_stand(prefix: bytes) -> None:
    text = prefix + base64.b64encode(PNG)
    part, part_type = multipart({"data": text})
    for body, content_type in (
        (part, part_type),
        (urllib.parse.urlencode({"data": text}).encode(), FORM),
        (b"data=" + text, FORM),  # '+' unescaped, as careless clients send it
        (json.dumps({"data": text.decode()}).encode(), JSON),
        (json.dumps([text.decode()]).encode(), JSON),
        (json.dumps(text.decode()).encode(), JSON),
    ):
        assert decode(body, content_type, images=True) == [PNG]


IMAGE_MISTAKES = [
    ("the body is empty; send an image for input 'data'", b"", "image/png"),
    ("input 'data' is missing; the body has 'x'", b'{"x": ""}', JSON),
    ("the image for input 'data' must be a base64 string, got a number", b'{"data": 5}', JSON),
    ("the image for input 'data' is neither an image file nor base64", b'{"data": "%%"}', JSON),
    ("the image for input 'data' is empty", b'{"data": ""}', JSON),
    ("the image for input 'data' is empty", b"data=", FORM),
    ("send the images in base64 as a JSON object with the keys 'data', got a number", b"5", JSON),
    ("not valid JSON", b"{", JSON),
    ("input 'data' is missing; the form has 'x'", b"x=1", FORM),
]


@pytest.mark.parametrize(("message", "body", "content_type"), IMAGE_MISTAKES)
def test_a_mistake_with_an_image_is_named(message: str, body: bytes, content_type: str) -> None:
    refuse(message, body, content_type, images=True)


def test_several_images_need_a_form() -> None:
    refuse(
        "2 image inputs; send multipart/form-data with a file for each of 'a', 'b'",
        PNG,
        "image/png",
        "a",
        "b",
        images=True,
    )


# Anything at all


content_types = st.one_of(
    st.sampled_from(
        [JSON, FORM, "", "image/png", "multipart/form-data; boundary=b", "text/plain", "a/b+json"]
    ),
    st.text(max_size=40),
    st.text(alphabet="multipart/form-data; boundary=\"=*'\\%,", max_size=40).map(
        lambda text: "multipart/form-data;" + text
    ),
)
bodies = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet="[]{}()\"',:=&%+-~0123456789abcdefxj \\ud\n", max_size=80).map(str.encode),
    st.text(alphabet="[]{}()\"',:=&%+-~0123456789abcdefxj \\ud\n", max_size=80).map(
        lambda text: b"data=" + text.encode()
    ),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.lists(
        st.sampled_from(
            [
                b"--b",
                b"--b--",
                b"\r\n",
                b"\n",
                b'Content-Disposition: form-data; name="data"',
                b"Content-Type: text/plain",
                b"[1]",
                b"\xff",
                b": ",
            ]
        ),
        max_size=12,
    ).map(b"".join),
)


@given(bodies, content_types, st.booleans(), st.sampled_from([("data",), ("a", "data")]))
@settings(max_examples=300, deadline=None)
def test_any_body_of_any_type_is_read_or_refused(
    body: bytes, content_type: str, images: bool, names: tuple[str, ...]
) -> None:
    with contextlib.suppress(MMSError):
        inputs = decode(body, content_type, *names, images=images)
        assert len(inputs) == len(names)
        assert all(isinstance(value, bytes if images else list) for value in inputs)


@given(st.text(max_size=60))
@BOUNDED
def test_any_header_gives_a_media_type(header: str) -> None:
    media_type, parameters = parse_media_type(header)
    assert media_type == media_type.strip().lower()
    assert isinstance(parameters, dict)


def test_a_media_type_comes_apart() -> None:
    assert parse_media_type('Multipart/Form-Data; boundary="a b"') == (
        "multipart/form-data",
        {"boundary": "a b"},
    )
