"""MANIFEST.json: v0.4's schema, what is new, and what a mistake is answered with."""

from __future__ import annotations

import contextlib
import copy
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mms.archive.manifest import (
    Manifest,
    ModelFormat,
    Sample,
    ServingDefaults,
    parse_manifest,
    parse_mar_manifest,
)
from mms.archive.names import is_model_name
from mms.errors import ManifestError
from tests.kit.zips import MANIFEST
from tests.unit.test_signature import documents

BOUNDED = settings(max_examples=100, deadline=None)
texts = st.text(max_size=20)
paths = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.[a-z]{2,4}", fullmatch=True)
labels = st.dictionaries(texts, texts, max_size=3)
numbers = st.none() | st.integers(1, 100)
seconds = st.none() | st.floats(0.001, 1e6)
serving = st.builds(
    ServingDefaults,
    numbers,
    numbers,
    seconds,
    seconds,
    st.none() | texts,
    st.none() | st.builds(Sample, paths, texts),
)
manifests = st.builds(
    Manifest,
    model_name=texts.filter(lambda text: bool(text.strip())),
    model_format=st.sampled_from([f for f in ModelFormat if f is not ModelFormat.HANDLER]),
    service=paths,
    signature=paths,
    parameters=paths,
    symbol=paths,
    description=texts,
    archive_version=st.floats(0, 9),
    model_server=texts,
    engine=labels,
    created_by=labels,
    files=st.dictionaries(paths, st.from_regex(r"[0-9a-f]{64}", fullmatch=True), max_size=3),
    serving=serving,
)


@given(manifests)
@BOUNDED
def test_a_manifest_comes_back_from_its_document(manifest: Manifest) -> None:
    assert parse_manifest(manifest.to_document()) == manifest


@given(documents)
@BOUNDED
def test_any_document_is_a_manifest_or_a_manifest_error(document: Any) -> None:
    with contextlib.suppress(ManifestError):
        parse_manifest(document)


@given(st.data())
@BOUNDED
def test_a_sound_manifest_with_one_value_replaced_raises_only_manifest_errors(
    data: st.DataObject,
) -> None:
    document = copy.deepcopy(MANIFEST)
    document |= {"Serving": {"workers": 1, "sample": {"file": "a"}}, "Files": {"a": "0" * 64}}
    place = data.draw(
        st.sampled_from(
            [
                document,
                document["Model"],
                document["Engine"],
                document["Serving"],
                document["Serving"]["sample"],
                document["Files"],
            ]
        )
    )
    place[data.draw(st.sampled_from(list(place)))] = data.draw(documents)
    with contextlib.suppress(ManifestError):
        parse_manifest(document)


def change(**values: Any) -> dict[str, Any]:
    """Return the sound manifest with keys of its Model replaced; ``Model_Name`` is Model-Name."""
    model = {key.replace("_", "-"): value for key, value in values.items()}
    return {**MANIFEST, "Model": {**MANIFEST["Model"], **model}}


def test_an_archive_of_2018_is_read() -> None:
    """Its engine and its server are numbers, and it knows nothing of Files and Serving."""
    document = {**MANIFEST, "Engine": {"MXNet": 0.12}, "Model-Server": 0.1, "License": "Apache 2.0"}
    document["Created-By"] = {"Model-Server": 0.2, "Author": "mxnet-sdk"}
    manifest = parse_manifest(document)
    assert manifest.engine == {"MXNet": "0.12"}
    assert manifest.created_by == {"Model-Server": "0.2", "Author": "mxnet-sdk"}
    assert manifest.model_server == "0.1"
    assert manifest.serving == ServingDefaults()


def test_the_format_is_read_in_any_case() -> None:
    manifest = parse_manifest(change(Model_Format="gluon-imperative"))
    assert manifest.model_format is ModelFormat.GLUON


@pytest.mark.parametrize(
    ("text", "symbol", "expected"),
    [
        # 0.4 took any text; parts of "MXNet-Symbolic" made the symbol mandatory.
        ("TF", None, ModelFormat.GLUON),
        ("my own", "net-symbol.json", ModelFormat.SYMBOLIC),
        ("Symbolic", "net-symbol.json", ModelFormat.SYMBOLIC),
        ("onnx", "net.onnx", ModelFormat.ONNX),
    ],
)
def test_any_other_format_is_told_by_its_files(
    text: str, symbol: str | None, expected: ModelFormat
) -> None:
    document = change(Model_Format=text, Symbol=symbol, Parameters=symbol and "net-0000.params")
    assert parse_manifest(document).model_format is expected


def test_a_part_of_symbolic_makes_the_symbol_mandatory() -> None:
    with pytest.raises(ManifestError, match=r"needs both Model.Symbol and Model.Parameters"):
        parse_manifest(change(Model_Format="MXNet", Symbol=None, Parameters=None))


def test_a_null_symbol_is_no_symbol() -> None:
    assert parse_manifest(change(Symbol=None, Parameters=None)).symbol == ""


MISTAKES: list[tuple[Any, str]] = [
    ([], r"the manifest must be a JSON object, got \[\]"),
    ({}, "the manifest has no 'Model'; export the model again"),
    ({**MANIFEST, "Model": 1}, "Model must be a JSON object, got 1"),
    (change(Model_Name=" "), "Model.Model-Name is empty"),
    (change(Model_Name=7), "Model.Model-Name must be a string, got 7"),
    (change(Model_Format=3), "Model.Model-Format must be a string, got 3"),
    (change(Service="../x.py"), "Model.Service must be a relative path inside .*got '../x.py'"),
    (change(Service="/x.py"), "Model.Service must be a relative path"),
    (change(Service="a\\b.py"), "Model.Service must be a relative path"),
    (change(Service="a\0.py"), "Model.Service must be a relative path"),
    (change(Service=""), "Model.Service must be a relative path"),
    (change(Signature=3), "Model.Signature must be a string, got 3"),
    (change(Symbol="../s"), "Model.Symbol must be a relative path"),
    (change(Parameters="/p"), "Model.Parameters must be a relative path"),
    (change(Model_Format="MXNet-Symbolic"), "needs both Model.Symbol and Model.Parameters"),
    (change(Model_Format="ONNX"), "an ONNX model needs its .onnx file as Model.Symbol"),
    ({**MANIFEST, "Engine": []} | {"Engine": [1]}, r"Engine must be a JSON object, got \[1\]"),
    ({**MANIFEST, "Model-Archive-Version": "new"}, "Version must be a number, got 'new'"),
    ({**MANIFEST, "Files": {"a": "abc"}}, r"Files\['a'\] must be a sha256.*got 'abc'"),
    ({**MANIFEST, "Files": {"../a": "0" * 64}}, "must be a relative path inside"),
    ({**MANIFEST, "Serving": {"workers": 0}}, "Serving.workers must be an integer >= 1, got 0"),
    ({**MANIFEST, "Serving": {"workers": True}}, "Serving.workers must be .*got True"),
    ({**MANIFEST, "Serving": {"batch_size": 1.5}}, "Serving.batch_size must be .*got 1.5"),
    ({**MANIFEST, "Serving": {"response_timeout": 0}}, "response_timeout must be a number >="),
    ({**MANIFEST, "Serving": {"device": 1}}, "Serving.device must be a string, got 1"),
    ({**MANIFEST, "Serving": {"sample": {}}}, "Serving.sample has no 'file'"),
    ({**MANIFEST, "Serving": {"sample": {"file": "../x"}}}, "sample.file must be a relative path"),
]


@pytest.mark.parametrize(("document", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_a_mistake_names_its_key_and_what_came(document: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=f"^here.json: .*{message}"):
        parse_manifest(document, "here.json")


@pytest.mark.parametrize("key", ["Service", "Signature", "Model-Name", "Model-Format"])
def test_a_missing_key_is_named(key: str) -> None:
    model = {name: value for name, value in MANIFEST["Model"].items() if name != key}
    with pytest.raises(ManifestError, match=re.escape(f"Model has no '{key}'")):
        parse_manifest({**MANIFEST, "Model": model})


GOOD_NAMES = ["a", "Crepe-1.0_x", "7", "a" * 128, ".a", "-a", "_x", "a b", "a+b", "a@b", "a~b"]
GOOD_NAMES += ["a:b", "a%2Fb", "a?b#c", '"a"', "é", "名前", "a,b=c;d"]
BAD_NAMES = ["", ".", "..", "a/b", "../a", "a\\b", " a", "a ", "a\n", "a\0", "a\x1b[0m"]
BAD_NAMES += ["\u202ea", "\ud800", "\u00a0", "a" * 129, "é" * 65, "{a}"]


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_names_that_may_stand_in_a_url(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_may_not_stand_in_a_url(name: str) -> None:
    assert not is_model_name(name)


#: As model-archiver 1.0.3 writes it, with what its classes write if they are given more.
MAR = {
    "runtime": "python3",
    "model": {
        "modelName": "net",
        "handler": "service:handle",
        "description": "a net",
        "modelVersion": "1.0",
        "extensions": {"anything": 1},
    },
    "engine": {"engineName": "MXNet", "engineVersion": "1.2"},
    "license": "MIT",
    "modelServerVersion": "1.0",
    "implementationVersion": "1.0",
    "specificationVersion": "1.0",
    "userData": {"a": 1},
    "publisher": {"author": "A", "email": "a@b.c"},
}


def test_the_manifest_of_1x_keeps_what_descriptions_show() -> None:
    manifest = parse_mar_manifest(MAR)
    assert (manifest.model_name, manifest.handler) == ("net", "service:handle")
    assert (manifest.model_version, manifest.runtime) == ("1.0", "python3")
    assert manifest.extensions == {"anything": 1}
    assert manifest.engine == {"MXNet": "1.2"}
    assert manifest.description == "a net"


def test_a_manifest_of_1x_without_version_and_runtime_is_pythons() -> None:
    manifest = parse_mar_manifest({"model": {"modelName": "net", "handler": "service:handle"}})
    assert (manifest.model_version, manifest.runtime, manifest.extensions) == ("", "python", None)
