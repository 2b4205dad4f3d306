"""Answers: whatever a service returns becomes bytes, or an error that says why not."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import uuid
from collections import namedtuple
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.signature import Signature, TensorSpec
from mms.errors import InvalidServiceOutput
from mms.wire.messages import Answer, Dialect, RequestMeta
from mms.worker.response import encode_json, encode_output

PNG = b"\x89PNG\r\n\x1a\n\0\0"


def encode(
    output: Any,
    dialect: Dialect = Dialect.PLAIN,
    accept: str = "",
    images: bool = False,
    max_bytes: int = 10_000,
) -> Answer:
    signature = Signature(
        (TensorSpec("data", (0,)),),
        "application/json",
        (TensorSpec("out", (0,)),),
        "image/png" if images else "application/json",
    )
    return encode_output(output, RequestMeta("id", dialect, "", accept), signature, max_bytes)


def test_an_answer_is_the_bare_result() -> None:
    answer = encode([{"probability": 0.5, "class": "food"}])
    assert answer.is_plain
    assert answer.body == b'[{"probability":0.5,"class":"food"}]'


def test_a_v04_client_gets_its_envelope() -> None:
    assert encode([1], dialect=Dialect.V04).body == b'{"prediction":[1]}'


class Array:
    """What an NDArray looks like to the encoder."""

    def asnumpy(self) -> Any:
        return np.array([[1.5, 2.5]], np.float32)


VALUES: list[tuple[Any, Any]] = [
    (np.float32(0.5), 0.5),
    (np.int64(7), 7),
    (np.bool_(True), True),
    (np.arange(6, dtype=np.float32).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
    (np.arange(6).reshape(2, 3).T, [[0, 3], [1, 4], [2, 5]]),
    (np.array(3.0), 3.0),
    (np.array(["a", "b"]), ["a", "b"]),
    (np.array([1, "a"], dtype=object), [1, "a"]),
    (np.array([1.5], dtype=np.float16), [1.5]),
    (np.array([[1, 2], [3, 4]], dtype=">i4"), [[1, 2], [3, 4]]),
    (np.array([1.5], dtype=">f2"), [1.5]),
    (np.array(3.0, dtype=">f8"), 3.0),
    (np.array(["a"], dtype=">U1"), ["a"]),
    (np.array([np.array([1], ">i4"), "a"], dtype=object), [[1], "a"]),
    ({"a": [np.array([1], ">i4"), np.float32(0.5)], 2: {3}}, {"a": [[1], 0.5], "2": [3]}),
    (np.array([1.5], dtype=np.longdouble), [1.5]),
    (np.longdouble(1.5), 1.5),
    (np.zeros((0, 3)), []),
    (Array(), [[1.5, 2.5]]),
    ([Array(), {"a": Array()}], [[[1.5, 2.5]], {"a": [[1.5, 2.5]]}]),
    ((1, 2), [1, 2]),
    ({1: "a", None: "b"}, {"1": "a", "null": "b"}),
    ({3}, [3]),
    (iter([1, 2]), [1, 2]),
    (b"text", "text"),
    (b"\xff\x00", base64.b64encode(b"\xff\x00").decode()),
    (None, None),
]


@pytest.mark.parametrize(("value", "expected"), VALUES, ids=range(len(VALUES)))
def test_what_services_return_has_a_json_form(value: Any, expected: Any) -> None:
    assert json.loads(encode_json(value)) == expected


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_json_has_no_number_for_is_null(number: float) -> None:
    value = [number, np.float32(number), np.array([number, 1.0])]
    assert json.loads(encode_json(value)) == [None, None, [None, 1.0]]
    arrays = [np.array([number], kind) for kind in (">f4", np.float16, np.longdouble)]
    assert json.loads(encode_json(arrays)) == [[None]] * 3
    assert json.loads(encode_json(np.array([[number, 1.0]]).T)) == [[None], [1.0]]


@pytest.mark.parametrize("unit", ["ns", "s", "D"])
def test_a_date_is_the_same_text_however_its_array_lies_in_memory(unit: str) -> None:
    dates = np.array(["2020-02-29", "2021-01-01"], f"M8[{unit}]")
    texts = ["2020-02-29T00:00:00", "2021-01-01T00:00:00"]
    for array in (dates, dates.astype(dates.dtype.newbyteorder(">")), np.repeat(dates, 2)[::2]):
        assert json.loads(encode_json(array)) == texts
    for date in (dates[0], dates[0, ...]):
        assert json.loads(encode_json(date)) == texts[0]


class Bad:
    def asnumpy(self) -> Any:
        raise RuntimeError("the forward pass had failed")


def loop() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


Point = namedtuple("Point", "x y")


class Celsius(float):
    def __repr__(self) -> str:
        return f"{float(self)} degrees"


class Label(str):
    def __str__(self) -> str:
        return f"<{self!r}>"


class Markup:
    def __html__(self) -> str:
        return "<b>bold</b>"


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


#: What 0.4 sent, whose encoder was Python's own: (value, its text there).
AS_0_4: list[tuple[Any, str]] = [
    (2**64, "18446744073709551616"),
    ([-(2**70)], "[-1180591620717411303424]"),
    ({2**65: 1}, '{"36893488147419103232":1}'),
    (np.array([2**70, 1], dtype=object), "[1180591620717411303424,1]"),
    ([Point(1, 2.5)], "[[1,2.5]]"),
    (Point(2**64, "a"), '[18446744073709551616,"a"]'),
    ({"temperature": Celsius(21.5)}, '{"temperature":21.5}'),
    (Label("a"), '"a"'),
    ("\ud800", '"\\ud800"'),
    ({"\udfff": ["é"]}, '{"\\udfff":["\\u00e9"]}'),
    ([Markup()], '["<b>bold</b>"]'),
    (nested(300), "[" * 301 + "]" * 301),
    (iter([2**64, Point(1, 2)]), "[18446744073709551616,[1,2]]"),
    ((x for x in [np.float32(0.5), {2**64}]), "[0.5,[18446744073709551616]]"),
    ([2**64, uuid.UUID(int=1)], '[18446744073709551616,"00000000-0000-0000-0000-000000000001"]'),
    ([2**64, datetime.date(2020, 2, 29)], '[18446744073709551616,"2020-02-29"]'),
    ([iter([1]), np.array([1], dtype=">i4")], "[[1],[1]]"),
]


@pytest.mark.parametrize(("value", "text"), AS_0_4, ids=range(len(AS_0_4)))
def test_what_only_pythons_own_encoder_takes_is_written_as_by_it(value: Any, text: str) -> None:
    assert encode_json(value).decode() == text


@pytest.mark.parametrize("levels", [300, 500, 900])
def test_levels_beyond_the_fast_encoders_are_written(levels: int) -> None:
    """0.4 writes about 990 of them."""
    value: Any = [datetime.date(2020, 1, 2)]
    for _ in range(levels):
        value = [value]
    assert json.loads(encode_json(value)) == json.loads(
        "[" * levels + '["2020-01-02"]' + "]" * levels
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (datetime.datetime(2020, 1, 2, 3, 4, 5), "Thu, 02 Jan 2020 03:04:05 GMT"),
        (datetime.date(2020, 1, 2), "Thu, 02 Jan 2020 00:00:00 GMT"),
        (
            datetime.datetime.fromisoformat("2020-01-02T03:04:05+02:00"),
            "Thu, 02 Jan 2020 01:04:05 GMT",
        ),
    ],
)
def test_a_date_is_http_s_to_clients_of_v04_and_iso_to_others(value: Any, text: str) -> None:
    """0.4 writes dates as its framework writes headers."""
    for beside in (1, 10**30):
        body = encode([value, beside], Dialect.V04).body
        assert json.loads(bytes(body)) == {"prediction": [text, beside]}
        assert json.loads(bytes(encode([value, beside]).body)) == [value.isoformat(), beside]


@pytest.mark.parametrize("number", [float("nan"), np.float32("inf"), Celsius("nan")])
def test_beside_such_values_nan_is_still_null(number: Any) -> None:
    assert encode_json([2**64, number]) == b"[18446744073709551616,null]"


UNSENDABLE: list[tuple[Any, str]] = [
    (object(), "a object, cannot be sent as JSON: values of type object have no JSON form"),
    ([Decimal(1)], "a list, cannot .* Decimal"),
    (np.array([1j]), "a ndarray, cannot .* complex"),
    (np.array([1j], dtype=">c8"), "a ndarray, cannot .* complex"),
    (np.clongdouble(1j), "a clongdouble, cannot .* complex"),
    ([2**70, {1}, object()], "a list, cannot .* type object"),
    ({(1, 2): 3}, "a dict, cannot"),
    (loop(), "Circular reference"),
    (Bad(), "the forward pass had failed"),
]


@pytest.mark.parametrize(("value", "message"), UNSENDABLE, ids=lambda value: str(type(value)))
def test_what_cannot_be_sent_says_what_it_is(value: Any, message: str) -> None:
    with pytest.raises(InvalidServiceOutput, match=f"the service's answer, .*{message}"):
        encode(value)


def test_too_long_an_answer_names_the_setting() -> None:
    with pytest.raises(InvalidServiceOutput, match=r"12 bytes, more than max_response_bytes .11"):
        encode("0123456789", max_bytes=11)
    assert encode("0123456789", max_bytes=12).body == b'"0123456789"'


@pytest.mark.parametrize(
    "output", [PNG, bytearray(PNG), base64.b64encode(PNG), base64.b64encode(PNG).decode(), [PNG]]
)
def test_an_image_is_sent_raw_to_those_who_ask(output: Any) -> None:
    answer = encode(output, accept="text/html, image/*", images=True)
    assert (answer.body, answer.content_type, answer.status) == (PNG, "image/png", 200)


def test_an_image_is_base64_in_json_to_all_others() -> None:
    answer = encode([base64.b64encode(PNG).decode()], accept="*/*", images=True)
    assert base64.b64decode(json.loads(bytes(answer.body))[0]) == PNG


def test_what_is_not_one_image_cannot_be_sent_raw() -> None:
    with pytest.raises(InvalidServiceOutput, match=r"not one image .* but a list; ask without"):
        encode([PNG, PNG], accept="image/png", images=True)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(alphabet=st.characters())
    | st.binary(max_size=20)
    | st.builds(np.float32, st.floats(width=32))
    | st.lists(st.floats(), max_size=4).map(np.array)
    | st.complex_numbers(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.none(), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(values, st.sampled_from(["", "image/png"]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_value_is_sent_or_is_an_invalid_output(output: Any, accept: str, images: bool) -> None:
    with contextlib.suppress(InvalidServiceOutput):
        answer = encode(output, accept=accept, images=images)
        if answer.is_plain:
            json.loads(bytes(answer.body))
