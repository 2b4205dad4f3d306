"""signature.json: what is accepted, and what a mistake is answered with."""

from __future__ import annotations

import contextlib
import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.signature import DATA_TYPES, Signature, TensorSpec, parse_signature
from mms.errors import SignatureError
from tests.kit.zips import SIGNATURE

BOUNDED = settings(max_examples=100, deadline=None)
names = st.text(min_size=1, max_size=20)
specs = st.builds(
    TensorSpec,
    names,
    st.lists(st.integers(0, 10_000), min_size=1, max_size=5).map(tuple),
    st.sampled_from(["", *DATA_TYPES]),
)
types = st.sampled_from(["application/json", "image/jpeg", "image/png"])
signatures = st.builds(
    Signature,
    st.lists(specs, min_size=1, max_size=4, unique_by=lambda spec: spec.name).map(tuple),
    types,
    st.lists(specs, min_size=1, max_size=4).map(tuple),
    types,
)
scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
documents = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*SIGNATURE, "data_name", "data_shape", "data_type"])
            | st.text(max_size=5),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(signatures)
@BOUNDED
def test_a_signature_comes_back_from_its_document(signature: Signature) -> None:
    assert parse_signature(signature.to_document()) == signature


@given(documents)
@BOUNDED
def test_any_document_is_a_signature_or_a_signature_error(document: Any) -> None:
    with contextlib.suppress(SignatureError):
        parse_signature(document)


@given(st.data())
@BOUNDED
def test_a_sound_signature_with_one_value_replaced_raises_only_signature_errors(
    data: st.DataObject,
) -> None:
    document = copy.deepcopy(SIGNATURE)
    place: Any = document
    places: list[list[Any]] = [["inputs"], ["outputs", 0], ["inputs", 0, "data_shape"], []]
    for key in data.draw(st.sampled_from(places)):
        place = place[key]
    keys: list[Any] = list(place) if isinstance(place, dict) else [0]
    key = data.draw(st.sampled_from(keys))
    place[key] = data.draw(documents)
    with contextlib.suppress(SignatureError):
        parse_signature(document)


def test_a_type_of_elements_is_written_only_if_there_is_one() -> None:
    spec = {"data_name": "x", "data_shape": [0]}
    typed = {**spec, "data_type": "INT64"}
    signature = parse_signature({**SIGNATURE, "inputs": [typed], "outputs": [spec]})
    assert [entry.data_type for entry in (*signature.inputs, *signature.outputs)] == ["INT64", ""]
    document = signature.to_document()
    assert (document["inputs"], document["outputs"]) == ([typed], [spec])


def test_unknown_keys_are_ignored() -> None:
    assert parse_signature({**SIGNATURE, "author": "me"}) == parse_signature(SIGNATURE)


def test_a_data_type_is_written_only_where_there_is_one() -> None:
    document = parse_signature(SIGNATURE).to_document()
    assert all("data_type" not in spec for spec in [*document["inputs"], *document["outputs"]])
    typed = {"data_name": "ids", "data_shape": [0, 8], "data_type": "INT64"}
    signature = parse_signature({**SIGNATURE, "inputs": [typed]})
    assert signature.inputs == (TensorSpec("ids", (0, 8), "INT64"),)
    assert signature.to_document()["inputs"] == [typed]


def test_a_mime_type_is_read_in_any_case() -> None:
    signature = parse_signature({**SIGNATURE, "input_type": " Image/JPEG "})
    assert signature.input_type == "image/jpeg"
    assert signature.takes_images
    assert not signature.gives_images


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"inputs": None}, "'inputs' must be a list with at least one entry.*got null"),
    ({"inputs": []}, "'inputs' must be a list.*got an empty list"),
    ({"inputs": [3]}, r"inputs\[0\] must be an object such as .*got 3"),
    ({"inputs": [{"data_shape": [1]}]}, r"inputs\[0\] has no 'data_name'; add"),
    ({"inputs": [{"data_nam": "x", "data_shape": [1]}]}, "is 'data_nam' a typo"),
    ({"inputs": [{"data_name": "", "data_shape": [1]}]}, "non-empty string, got an empty string"),
    ({"inputs": [{"data_name": 5, "data_shape": [1]}]}, "non-empty string, got 5"),
    (
        {"inputs": [{"data_name": "x", "data_shape": [1], "data_type": "float32"}]},
        r"inputs\[0\].data_type must be one of BOOL, .*, got 'float32'",
    ),
    (
        {"inputs": [{"data_name": "x", "data_shape": [1], "data_type": ["FP32"]}]},
        r"data_type must be one of .*, got \['FP32'\]",
    ),
    ({"inputs": [{"data_name": "x"}]}, r"inputs\[0\] has no 'data_shape'; add"),
    ({"inputs": [{"data_name": "x", "data_shape": "3"}]}, "data_shape must be a list.*got '3'"),
    ({"inputs": [{"data_name": "x", "data_shape": []}]}, r"data_shape must be .*got \[\]"),
    ({"inputs": [{"data_name": "x", "data_shape": [-1]}]}, r">= 0 .*got \[-1\]"),
    ({"inputs": [{"data_name": "x", "data_shape": [1.0]}]}, r"integers.*got \[1.0\]"),
    ({"inputs": [{"data_name": "x", "data_shape": [True]}]}, r"integers.*got \[True\]"),
    ({"inputs": [{"data_name": "x", "data_shape": [1]}] * 2}, "two inputs are named 'x'"),
    (
        {"inputs": [{"data_name": "x", "data_shape": [1], "data_type": "int64"}]},
        r"inputs\[0\].data_type must be one of BOOL, .*, BYTES, got 'int64'",
    ),
    ({"outputs": {}}, "'outputs' must be a list.*got an object"),
    ({"input_type": "text/plain"}, "'input_type' must be .*got 'text/plain'"),
    ({"input_type": "image/"}, "'input_type' must be .*got 'image/'"),
    ({"output_type": None}, "'output_type' must be .*got None"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_a_mistake_names_its_key_and_what_to_write(change: dict[str, Any], message: str) -> None:
    with pytest.raises(SignatureError, match=f"^here.json: .*{message}"):
        parse_signature({**SIGNATURE, **change}, "here.json")


@pytest.mark.parametrize("key", list(SIGNATURE))
def test_a_missing_key_is_named_with_an_example(key: str) -> None:
    document = {name: value for name, value in SIGNATURE.items() if name != key}
    with pytest.raises(SignatureError, match=re.escape(f"has no '{key}'; add")):
        parse_signature(document)
