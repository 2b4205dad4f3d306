"""OpenAPI documents of models that the tests with a server do not have."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from openapi_schema_validator import OAS30Validator
from openapi_spec_validator import validate

from mms.archive.manifest import Sample
from mms.archive.pictures import Boxes, Postprocess
from mms.archive.signature import Signature, TensorSpec
from mms.http.openapi.description import ModelDescription, input_schemas
from mms.http.openapi.document import (
    Names,
    Route,
    api_document,
    management_document,
    model_document,
    routes_document,
    routes_of,
)

ROUTES = [
    Route("GET", "/ping", "ping", "Readiness."),
    Route("POST", "/predictions/{model}", "predictions", "Predict."),
    Route("POST", "/predictions/{model}/{version}", "predictions_version", "Predict."),
    Route("POST", "/{model}/predict", "legacy_predict", "Predict as 0.4 did."),
    Route("POST", "/models/{model_name}/invoke", "invoke", "Predict as 1.x did."),
    Route("POST", "/invocations", "invocations", "Ask the sole model."),
    Route("GET", "/v2/models/{model}", "v2_model", "Metadata."),
    Route("POST", "/v2/models/{model}/infer", "v2_infer", "Infer."),
]


def describe(
    signature: Signature | None,
    name: str = "crepe",
    version: str = "1",
    is_default: bool = True,
    folder: Path | None = None,
) -> ModelDescription:
    sample = Sample("sample.json", "application/json") if folder else None
    return ModelDescription(name, version, is_default, signature, folder or Path(), sample)


def of_shape(*shape: int, kind: str = "application/json") -> Signature:
    spec = TensorSpec("data", shape)
    return Signature((spec,), kind, (TensorSpec("output", (0,)),), "application/json")


def body(document: Any, path: str) -> Any:
    found = document["paths"][path]["post"]["requestBody"]
    while "$ref" in found:
        found = document["components"]["requestBodies"][found["$ref"].rsplit("/", 1)[1]]
    return found["content"]


def checked(document: Any) -> Any:
    validate(copy.deepcopy(document))
    json.dumps(document)
    return document


def test_a_model_without_a_signature_takes_and_gives_anything() -> None:
    document = checked(api_document(ROUTES, [describe(None)]))
    content = body(document, "/predictions/crepe")
    assert set(content) == {"application/json", "multipart/form-data", "application/octet-stream"}
    assert content["application/json"]["schema"] == {}
    answer = document["paths"]["/predictions/crepe"]["post"]["responses"]["200"]
    assert set(answer["content"]) == {"*/*"}


def test_a_route_that_asks_a_model_is_written_out_for_each_and_the_protocol_is_not() -> None:
    models = [
        describe(of_shape(0, 3)),
        describe(of_shape(0, 4), version="2", is_default=False),
        describe(of_shape(0), "other"),
    ]
    document = checked(api_document(ROUTES, models, "http://127.0.0.1:8080"))
    assert document["servers"] == [{"url": "http://127.0.0.1:8080"}]
    assert set(document["paths"]) == {
        "/ping",
        "/invocations",
        "/v2/models/{model}",
        "/v2/models/{model}/infer",
        *(f"/predictions/{name}" for name in ("crepe", "crepe/1", "crepe/2", "other", "other/1")),
        *("/crepe/predict", "/other/predict"),
        *("/models/crepe/invoke", "/models/other/invoke"),
    }
    sizes = {
        path: body(document, path)["application/json"]["schema"]["anyOf"][0]["items"]["minItems"]
        for path in ("/predictions/crepe", "/predictions/crepe/1", "/predictions/crepe/2")
    }
    assert list(sizes.values()) == [3, 3, 4]
    error = document["paths"]["/v2/models/{model}/infer"]["post"]["responses"]["default"]
    schema = error["content"]["application/json"]["schema"]
    assert schema["properties"] == {"error": {"type": "string"}}


def test_names_that_look_alike_stay_apart() -> None:
    models = [describe(of_shape(0), name) for name in ("a-b", "a.b", "a_b", "a", "18")]
    models += [describe(of_shape(0), "a", "b", False), describe(of_shape(0), "Error")]
    document = checked(api_document(ROUTES, models))
    operations = [o for methods in document["paths"].values() for o in methods.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert len(document["components"]["requestBodies"]) == len(models)


def test_without_models_the_routes_themselves_are_described() -> None:
    document = checked(api_document(ROUTES, []))
    assert set(document["paths"]) == {route.path for route in ROUTES}
    parameters = document["paths"]["/predictions/{model}/{version}"]["post"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["model", "version"]


def test_a_route_is_described_by_what_its_handler_says() -> None:
    async def handler(_: web.Request) -> web.Response:
        """Say ``hello``.

        Not this.
        """
        return web.Response()

    app = web.Application()
    app.router.add_get("/hello/{name}", handler)
    app.router.add_put("/hello/{name}", handler, name="greet")
    assert routes_of(app) == [
        Route("GET", "/hello/{name}", "get /hello/{name}", "Say `hello`."),
        Route("PUT", "/hello/{name}", "greet", "Say `hello`."),
    ]
    paths = checked(api_document(routes_of(app), []))["paths"]
    assert set(paths["/hello/{name}"]) == {"get", "put"}


def test_the_management_api_takes_json_objects_and_knows_nothing_of_inference() -> None:
    routes = [
        Route("GET", "/models/{model}", "describe", "Describe."),
        Route("PUT", "/models/{model}/{version}", "change_version", "Change."),
        Route("POST", "/v2/repository/models/{model}/load", "v2_load", "Load."),
    ]
    document = checked(management_document(routes))
    assert document["info"]["title"] == "mxnet-model-server management API"
    operations = {
        operation["operationId"]: operation
        for methods in document["paths"].values()
        for operation in methods.values()
    }
    assert [name for name in operations if "requestBody" in operations[name]] == [
        *("change_version", "v2_load")
    ]
    for operation in (operations["change_version"], operations["v2_load"]):
        content = {"application/json": {"schema": {"type": "object"}}}
        assert operation["requestBody"] == {"content": content}
    assert "X-Request-Priority" not in json.dumps(document)


def test_1x_calls_the_variable_model_name() -> None:
    paths = checked(routes_document(ROUTES))["paths"]
    assert "/predictions/{model_name}/{version}" in paths
    assert "/models/{model_name}/invoke" in paths
    for path, methods in paths.items():
        for operation in methods.values():
            for parameter in operation["parameters"]:
                in_path = f"{{{parameter['name']}}}" in path
                assert in_path == (parameter["in"] == "path")


def test_one_model_s_document_has_every_way_to_ask_it() -> None:
    paths = checked(model_document(ROUTES, [describe(of_shape(0))]))["paths"]
    assert set(paths) == {
        "/predictions/crepe",
        "/predictions/crepe/1",
        "/crepe/predict",
        "/models/crepe/invoke",
    }


@pytest.mark.parametrize(
    ("declared", "keys"),
    [
        (Postprocess(softmax=True), {"class", "probability"}),
        (Postprocess(top_k=3), {"class", "score"}),
        (Postprocess(boxes=Boxes()), {"class", "score", "box"}),
        (Postprocess(normalize=True), None),
        (None, None),
    ],
)
def test_a_declared_answer_is_described(
    declared: Postprocess | None, keys: set[str] | None
) -> None:
    signature = replace(of_shape(0, 3, 8, 8, kind="image/jpeg"), postprocess=declared)
    document = checked(api_document(ROUTES, [describe(signature)]))
    answer = document["paths"]["/predictions/crepe"]["post"]["responses"]["200"]
    schema = answer["content"]["application/json"]["schema"]
    items = schema.get("items", {}).get("items", {})
    assert items.get("properties", {}).keys() == (keys or set())


def test_several_images_can_only_come_in_a_form() -> None:
    specs = (TensorSpec("left", (0, 3, 2, 2)), TensorSpec("right", (0, 3, 2, 2)))
    signature = Signature(specs, "image/png", specs, "image/png")
    content = body(checked(api_document(ROUTES, [describe(signature)])), "/predictions/crepe")
    assert set(content) == {"multipart/form-data"}
    assert content["multipart/form-data"]["schema"]["required"] == ["left", "right"]


def nested(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    "sample",
    [b"", b"{", b"\xff", b"[" + b"1," * 40_000 + b"1]", nested(65), nested(1000), b"null"],
    ids=["empty", "broken", "no text", "long", "deep", "very deep", "null"],
)
def test_a_sample_that_is_of_no_use_is_left_out(sample: bytes, tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_bytes(sample)
    document = api_document(ROUTES, [describe(of_shape(0, 3), folder=tmp_path)])
    assert "example" not in body(checked(document), "/predictions/crepe")["application/json"]


def test_a_sample_of_an_archive_that_is_gone_is_left_out(tmp_path: Path) -> None:
    document = api_document(ROUTES, [describe(of_shape(0), folder=tmp_path / "gone")])
    assert "example" not in body(document, "/predictions/crepe")["application/json"]


@pytest.mark.parametrize(
    "sample",
    [
        {"review": "x"},
        {"data": [1]},
        [[1, 2, 3]],
        [[1, 2], [3]],
        ["a", 1, None],
        [],
        [{"a": {"b": [True, None]}}],
        orjson.loads(nested(64)),
    ],
    ids=repr,
)
def test_an_example_fits_its_schema_whatever_the_sample(sample: Any, tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_bytes(orjson.dumps(sample))
    document = api_document(ROUTES, [describe(of_shape(0, 3), folder=tmp_path)])
    content = body(checked(document), "/predictions/crepe")
    media = content["application/json"]
    OAS30Validator(media["schema"]).validate(media["example"])
    field = content["multipart/form-data"]["schema"]["properties"]["data"]["example"]
    assert isinstance(json.loads(field), list)


def array(shape: list[int], leaf: Any = 0.5) -> Any:
    """Build nested lists: two along the batch axis, one where any size will do."""
    value = leaf
    for size in reversed(shape[1:]):
        value = [value] * (size or 1)
    return [value, value]


def schema_of(shape: list[int]) -> OAS30Validator:
    return OAS30Validator(input_schemas(of_shape(*shape), None)["data"])


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
@settings(max_examples=100, deadline=None)
def test_arrays_of_the_shape_fit_the_schema_and_no_others_do(shape: list[int]) -> None:
    schema = schema_of(shape)
    assert schema.is_valid(array(shape))
    assert not schema.is_valid(array(shape)[0])
    assert not schema.is_valid(array(shape, [0.5]))
    assert not schema.is_valid(array(shape, "0.5"))
    for axis, size in enumerate(shape[1:], 1):
        longer = [*shape[:axis], size + 1, *shape[axis + 1 :]]
        assert schema.is_valid(array(longer)) == (size == 0)


@pytest.mark.parametrize("axes", [1, 17, 5000])
def test_a_shape_that_says_nothing_or_too_much_allows_any_list(axes: int) -> None:
    schema = schema_of([0] * axes)
    assert schema.is_valid([1, "a", {}])
    assert not schema.is_valid("text")


@given(st.lists(st.text(min_size=1), max_size=20))
@settings(max_examples=100, deadline=None)
def test_names_are_distinct_identifiers(texts: list[str]) -> None:
    names = Names(["class"])
    taken = [names.take(text) for text in texts]
    assert len({*taken, "class"}) == len(texts) + 1
    assert all(name.isidentifier() and name.isascii() for name in taken)
