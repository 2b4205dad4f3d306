"""OpenAPI 3.0 documents, generated from the application's routes and the models' signatures.

Every route is included: its name is the operation's id, the first line of its handler's docstring
the summary. A ``POST`` with a model in its path runs that model, so it is expanded for each model,
with the inputs of its signature; the Open Inference Protocol (``/v2``) defines its own bodies.
Independent of requests; the handlers are in `mms.http.docs`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aiohttp import web

from mms.archive.signature import JSON_TYPE, Signature
from mms.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    MMSError,
    ModelNotFound,
    OutOfMemory,
    PayloadTooLarge,
    SlowClient,
    Unavailable,
    UnsupportedMedia,
)
from mms.http.errors import KINDS
from mms.http.inference import PRIORITY_HEADER, TIMEOUT_HEADER
from mms.http.openapi.description import (
    ANY,
    BINARY,
    BYTES_TYPE,
    Document,
    ModelDescription,
    answer_schema,
    free_content,
    request_body,
)
from mms.version import __version__

#: The version of MMS 1.x, except for the patch release; client generators support it best.
OPENAPI = "3.0.3"
#: Names of the variables in paths that stand for a model.
_MODEL_VARIABLES = ("model", "model_name")
#: Operation ids of 1.x's description, which clients generated from it have as method names.
_V1_IDS = {
    "legacy_predict": "predict",
    "api_description": "apiDescription",
    "model_api": "predictionsApi",
}
#: The same for 1.x's management API, and its parameters with their types.
_V1_CALLS: dict[str, tuple[str, dict[str, str]]] = {
    "management_options": ("apiDescription", {}),
    "list_models": ("listModels", {"limit": "integer", "next_page_token": "string"}),
    "register": (
        "registerModel",
        {
            **dict.fromkeys(("url", "model_name", "version", "handler", "runtime"), "string"),
            **dict.fromkeys(("batch_size", "initial_workers"), "integer"),
            **dict.fromkeys(("max_batch_delay", "response_timeout"), "number"),
            **dict.fromkeys(("synchronous", "preload_model", "make_default"), "boolean"),
        },
    ),
    "describe": ("describeModel", {}),
    "change": (
        "setAutoScale",
        {
            **dict.fromkeys(("min_worker", "max_worker", "number_gpu", "timeout"), "integer"),
            "synchronous": "boolean",
        },
    ),
    "unregister": ("unregisterModel", {}),
}
#: Tags besides the models' names, which have no spaces.
_SERVER_TAG = "the server"
#: Tags of KServe's protocols, by the beginning of their paths.
_PROTOCOL_TAGS = {"/v1": "KServe V1", "/v2": "Open Inference Protocol"}
#: Routes whose responses are not JSON.
_MEDIA = {"metrics": "text/plain", "docs": "text/html"}
#: Routes whose 503 has the same body as their 200.
_READINESS = ("ping", "health_ready", "model_ready")
#: Errors of inference; the nearest base class determines the status.
_FAILURES: tuple[type[MMSError], ...] = (
    InvalidRequest,
    ModelNotFound,
    SlowClient,
    PayloadTooLarge,
    UnsupportedMedia,
    InferenceFailed,
    Unavailable,
    DeadlineExceeded,
    OutOfMemory,
)


@dataclass(frozen=True, slots=True)
class Route:
    """One route of the application.

    Attributes:
        method: In upper case.
        path: With its variables in braces.
        name: Its name, or method and path if it has none.
        summary: First line of the handler's docstring.
    """

    method: str
    path: str
    name: str
    summary: str

    @property
    def model_variable(self) -> str:
        """Name of the path variable for the model, or ""."""
        return next((name for name in _MODEL_VARIABLES if f"{{{name}}}" in self.path), "")

    @property
    def is_protocol(self) -> bool:
        """Whether one of KServe's protocols, V1 or V2, defines its bodies."""
        return self.path[:3] in _PROTOCOL_TAGS

    @property
    def asks_a_model(self) -> bool:
        """Whether it runs the model in its path."""
        return self.method == "POST" and bool(self.model_variable) and not self.is_protocol

    @property
    def wraps(self) -> bool:
        """Whether its responses have v0.4's format."""
        return self.name == "legacy_predict"


def routes_of(app: web.Application) -> list[Route]:
    """Return the application's routes, in order."""
    return [
        Route(
            route.method,
            route.resource.canonical,
            route.name or f"{route.method.lower()} {route.resource.canonical}",
            first_line(route.handler),
        )
        for route in app.router.routes()
        if route.resource is not None and route.method not in ("HEAD", "*")
    ]


def first_line(documented: Any) -> str:
    """Return the first line of a docstring, in Markdown."""
    return (documented.__doc__ or "").strip().split("\n", 1)[0].replace("``", "`")


def api_document(
    routes: Sequence[Route], models: Sequence[ModelDescription], server: str = "/"
) -> Document:
    """Describe the whole API as currently served, each model with its own inputs.

    Args:
        routes: The application's.
        models: The served models; their sample files are read.
        server: Base URL, or a path relative to the document's own.
    """
    document = _inference_document(server)
    ids = Names()
    for index, model in enumerate(models):
        bodies = document["components"]["requestBodies"]
        bodies[_body_key(index, model)] = request_body(model)
    for route in routes:
        if not (route.asks_a_model and models):
            _add(document, route.path, route, _plain_operation(route, ids.take(route.name)))
            continue
        for index, model in enumerate(models):
            path = _path_of(route, model)
            if path:
                operation = _model_operation(route, model, _body_key(index, model))
                words = f"{route.name}_{model.name}"
                if "{version}" in route.path:
                    words += f"_{model.version}"
                _add(document, path, route, {"operationId": ids.take(words), **operation})
    return document


def routes_document(routes: Sequence[Route]) -> Document:
    """Describe the API without its models, as MMS 1.x did, with ``{model_name}`` in paths."""
    document = _inference_document("/")
    ids = Names()
    for route in routes:
        name = _V1_IDS.get(route.name, route.name)
        operation = _plain_operation(route, ids.take(name), "model_name")
        path = route.path.replace("{model}", "{model_name}")
        _add(document, path, route, operation)
    return document


def model_document(routes: Sequence[Route], models: Sequence[ModelDescription]) -> Document:
    """Describe the routes that run one model.

    Args:
        routes: The application's.
        models: The versions of that model, at least one; their sample files are read.
    """
    asking = [route for route in routes if route.asks_a_model]
    document = api_document(asking, models)
    document["info"]["title"] = f"mxnet-model-server: {models[0].name}"
    return document


def management_document(routes: Sequence[Route]) -> Document:
    """Describe the management API, whose calls take parameters, a JSON object or no body.

    Args:
        routes: The management application's.
    """
    document = _document("mxnet-model-server management API", "/")
    ids = Names()
    for route in routes:
        id_, parameters = _V1_CALLS.get(route.name, (route.name, {}))
        operation = _plain_operation(route, ids.take(id_))
        operation["parameters"] += [
            {"in": "query", "name": name, "schema": {"type": kind}}
            for name, kind in parameters.items()
        ]
        if route.method in ("POST", "PUT"):
            operation["requestBody"] = {"content": {JSON_TYPE: {"schema": {"type": "object"}}}}
        _add(document, route.path, route, operation)
    return document


class Names:
    """Derives unique identifiers from strings."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._taken = set(taken)

    def take(self, text: str) -> str:
        """Return an identifier derived from a string, with a number appended if it is taken."""
        base = re.sub(r"\W", "_", text, flags=re.ASCII) or "_"
        base = f"_{base}" if base[0].isdecimal() else base
        name, number = base, 1
        while name in self._taken:
            number += 1
            name = f"{base}_{number}"
        self._taken.add(name)
        return name


def _model_operation(route: Route, model: ModelDescription, body: str) -> Document:
    return {
        "summary": route.summary,
        "tags": [model.name],
        "parameters": [_ref("parameters", name) for name in ("request_id", "timeout", "priority")],
        "requestBody": _ref("requestBodies", body),
        "responses": {"200": _answer(route, model.signature), **_failures()},
    }


def _answer(route: Route, signature: Signature | None) -> Document:
    if signature is None:
        content: Document = {"*/*": {"schema": BINARY}}
    else:
        schema = answer_schema(signature)
        if route.wraps:
            schema = {
                "type": "object",
                "required": ["prediction"],
                "properties": {"prediction": schema},
            }
        content = {JSON_TYPE: {"schema": schema}}
        if signature.gives_images:
            content[signature.output_type] = {"schema": BINARY}
    return {
        "description": "The model's result.",
        "headers": {"X-Request-Id": _ref("headers", "request_id")},
        "content": content,
    }


def _plain_operation(route: Route, id_: str, model_name: str = "model") -> Document:
    names = [
        model_name if name == "model" else name for name in re.findall(r"{([^}]+)}", route.path)
    ]
    operation: Document = {
        "operationId": id_,
        "summary": route.summary,
        "tags": [_PROTOCOL_TAGS.get(route.path[:3], _SERVER_TAG)],
        "parameters": [
            {"in": "path", "name": name, "required": True, "schema": {"type": "string"}}
            for name in names
        ],
        "responses": _plain_responses(route),
    }
    if route.name == "invocations":
        description = "The model to run; required if there are several."
        schema = {"type": "string"}
        operation["parameters"].append(
            {"in": "query", "name": "model_name", "description": description, "schema": schema}
        )
    if route.method == "POST":
        content = free_content()
        if route.is_protocol:
            content = {JSON_TYPE: {"schema": {"type": "object"}}, BYTES_TYPE: {"schema": BINARY}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _plain_responses(route: Route) -> Document:
    media = _MEDIA.get(route.name, JSON_TYPE)
    content: Document = {media: {"schema": ANY if media == JSON_TYPE else {"type": "string"}}}
    if route.asks_a_model:
        content = {"*/*": {"schema": BINARY}}
    responses: Document = {"200": {"description": "OK", "content": content}}
    if route.name in _READINESS:
        responses["503"] = {"description": "Not ready.", "content": content}
    if route.is_protocol:
        schema = {"type": "object", "properties": {"error": {"type": "string"}}}
        error = {"description": "The error.", "content": {JSON_TYPE: {"schema": schema}}}
        return {**responses, "default": error}
    return {**responses, "default": _ref("responses", "error")}


def _failures() -> Document:
    named = {str(KINDS[cls].status): _ref("responses", cls.code) for cls in _FAILURES}
    return {**dict(sorted(named.items())), "default": _ref("responses", "error")}


def _document(title: str, server: str) -> Document:
    return {
        "openapi": OPENAPI,
        "info": {"title": title, "version": __version__},
        "servers": [{"url": server}],
        "paths": {},
        "components": {
            "schemas": {"Error": _error_schema()},
            "headers": {
                "request_id": {
                    "description": "The request's id, as in the log lines about it.",
                    "schema": {"type": "string"},
                },
            },
            "responses": {"error": _error_response("Any other error.")},
        },
    }


def _inference_document(server: str) -> Document:
    """Return a document with the components that operations on models refer to."""
    document = _document("mxnet-model-server", server)
    components = document["components"]
    components["headers"]["retry_after"] = {
        "description": "Time after which to retry, in seconds.",
        "schema": {"type": "integer"},
    }
    components["parameters"] = {
        "request_id": _header("X-Request-Id", "An id to identify the request.", "string"),
        "timeout": _header(
            TIMEOUT_HEADER, "Milliseconds after which the request fails with 504.", "integer"
        ),
        "priority": _header(
            PRIORITY_HEADER,
            "`high` runs before other queued requests, up to three in a row.",
            "string",
        ),
    }
    components["requestBodies"] = {}
    components["responses"] |= {cls.code: _failure(cls) for cls in _FAILURES}
    return document


def _error_schema() -> Document:
    texts = ("code", "type", "message", "request_id")
    return {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": list(texts),
                "properties": {key: {"type": "string"} for key in texts},
            },
            "code": {"type": "integer", "description": "the HTTP status, as in 1.x"},
            "type": {"type": "string"},
            "message": {"type": "string"},
        },
    }


def _failure(cls: type[MMSError]) -> Document:
    leaves = cls.__subclasses__() if issubclass(cls, Unavailable) else [cls]
    response = _error_response(" Or: ".join(map(first_line, leaves)))
    if issubclass(cls, Unavailable):
        response["headers"]["Retry-After"] = _ref("headers", "retry_after")
    return response


def _error_response(description: str) -> Document:
    return {
        "description": description,
        "headers": {"X-Request-Id": _ref("headers", "request_id")},
        "content": {JSON_TYPE: {"schema": _ref("schemas", "Error")}},
    }


def _header(name: str, description: str, kind: str) -> Document:
    return {"in": "header", "name": name, "description": description, "schema": {"type": kind}}


def _ref(kind: str, name: str) -> Mapping[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}


def _body_key(index: int, model: ModelDescription) -> str:
    # The key of a component may have nothing else in it.
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{model.name}.{index}")


def _path_of(route: Route, model: ModelDescription) -> str:
    """Return the path of a route for one version of a model, "" if there is none."""
    path = route.path.replace(f"{{{route.model_variable}}}", quote(model.name, safe=""))
    if "{version}" in path:
        return path.replace("{version}", quote(model.version, safe=""))
    return path if model.is_default else ""


def _add(document: Document, path: str, route: Route, operation: Document) -> None:
    document["paths"].setdefault(path, {})[route.method.lower()] = operation
