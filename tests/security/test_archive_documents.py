"""Signatures and manifests of strangers: bounded cost, bounded words, bounded numbers."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from mms.archive.manifest import parse_manifest, parse_mar_manifest, parse_serving
from mms.archive.signature import MAX_TENSORS, parse_signature
from mms.errors import ManifestError, SignatureError
from mms.quoting import quoted, quoted_names
from tests.security.work import calls_of

LONG = "x" * 5_000_000
MANIFEST: dict[str, Any] = {
    "Model-Archive-Version": 0.2,
    "Model": {
        "Signature": "signature.json",
        "Service": "service.py",
        "Model-Name": "m",
        "Model-Format": "Gluon-Imperative",
    },
}


def signature(count: int = 1, **changes: Any) -> dict[str, Any]:
    entries = [{"data_name": f"n{n}", "data_shape": [0]} for n in range(count)]
    document = {"inputs": entries, "input_type": "application/json", "outputs": entries}
    return {**document, "output_type": "application/json", **changes}


def test_v05_a_signature_of_very_many_inputs_is_refused_before_they_are_read() -> None:
    many = signature(100_000)
    with pytest.raises(SignatureError, match="'inputs' has 100000 entries, at most 1000"):
        parse_signature(many)
    assert calls_of(lambda: parse_signature(many)) < 100
    few, half = signature(MAX_TENSORS), signature(MAX_TENSORS // 2)
    assert calls_of(lambda: parse_signature(few)) < 2.2 * calls_of(lambda: parse_signature(half))
    with pytest.raises(SignatureError, match="two inputs are named 'n0'"):
        parse_signature({**few, "inputs": few["inputs"][:1] * 2})


@pytest.mark.parametrize(
    "changes",
    [
        {"data_shape": [1] * 1_000_000},
        {"data_shape": [1 << 31]},
        {"data_shape": [10**4000]},
        {"data_shape": LONG},
        {"data_shape": [LONG]},
        {"data_type": LONG},
        {"data_type": [LONG] * 20},
        {"data_name": {LONG: 1}},
        {"data_name": [LONG]},
    ],
    ids=lambda changes: str(changes)[:20],
)
def test_v33_what_a_signature_holds_is_quoted_in_few_words(changes: dict[str, Any]) -> None:
    entry = {"data_name": "x", "data_shape": [0], **changes}
    with pytest.raises(SignatureError) as caught:
        parse_signature(signature(inputs=[entry]))
    assert len(str(caught.value)) < 600


def test_v33_the_rest_of_a_signature_too() -> None:
    twice = [{"data_name": LONG, "data_shape": [0]}] * 2
    strange = {f"input{n}{LONG[:100]}": 1 for n in range(10_000)}
    for document in (
        signature(input_type=LONG),
        signature(outputs=LONG),
        signature(inputs=twice),
        strange,
        LONG,
    ):
        with pytest.raises(SignatureError) as caught:
            parse_signature(document)
        assert len(str(caught.value)) < 600
    assert calls_of(lambda: parse_signature(strange)) < 20_000


@pytest.mark.parametrize(
    "changes",
    [
        {"Model": LONG},
        {"Model": {**MANIFEST["Model"], "Model-Name": [LONG]}},
        {"Model": {**MANIFEST["Model"], "Model-Format": [LONG]}},
        {"Model": {**MANIFEST["Model"], "Service": "/" + LONG}},
        {"Model": {**MANIFEST["Model"], "Signature": {LONG: LONG}}},
        {"Model": {**MANIFEST["Model"], "Description": [LONG]}},
        {"Model-Archive-Version": LONG},
        {"Engine": [LONG]},
        {"Files": {LONG: LONG}},
        {"Files": {LONG: 1}},
        {"Files": {"/" + LONG: "0" * 64}},
        {"Serving": LONG},
        {"Serving": {"device": [LONG]}},
        {"Serving": {"workers": LONG}},
        {"Serving": {"sample": {"file": "../" + LONG}}},
        {"Serving": {"quantization": {"dtype": LONG}}},
    ],
    ids=lambda changes: str(changes)[:60].replace(LONG[:20], ""),
)
def test_v33_what_a_manifest_holds_is_quoted_in_few_words(changes: dict[str, Any]) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest({**MANIFEST, **changes})
    assert len(str(caught.value)) < 700


def test_v33_a_manifest_of_1x_too() -> None:
    for document in (
        {"model": {"modelName": "m"}, "runtime": LONG},
        {"model": {"modelName": [LONG]}},
        {"model": {"modelName": "m", "handler": [LONG]}},
    ):
        with pytest.raises(ManifestError) as caught:
            parse_mar_manifest(document)
        assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("batch_size", 65_536),
        ("batch_size", 10**9),
        ("batch_size", 10**400),
        ("workers", 10**6),
        ("max_batch_delay", 1e300),
        ("max_batch_delay", float("inf")),
        ("max_batch_delay", float("nan")),
        ("max_batch_delay", 10**400),
        ("response_timeout", 1e300),
        ("response_timeout", True),
    ],
)
def test_v16_numbers_of_serving_have_an_upper_bound(key: str, value: float) -> None:
    with pytest.raises(ManifestError, match=f"Serving.{key} must be an? .*(number|integer) [<>]= "):
        parse_serving({key: value}, "MANIFEST.json")
    assert parse_serving({"batch_size": 65_535}, "it").batch_size == 65_535
    if key == "batch_size":
        with pytest.raises(ManifestError, match="batchSize"):
            parse_mar_manifest({"model": {"modelName": "m", "batchSize": value}})


def test_v33_quoting_costs_what_it_shows() -> None:
    many = {n: n for n in range(1_000_000)}
    for value in (LONG, LONG.encode(), many, list(many), set(many), 10**100_000, [[[[LONG]]]]):
        assert len(quoted(value)) <= 203
        assert calls_of(partial(quoted, value)) < 200
    assert quoted({"a": (1, [None])}) == "{'a': (1, [None])}"
    assert quoted_names(many) == "0, 1, 2, 3, 4, 5, 6, 7, ..."
