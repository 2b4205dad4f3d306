"""Routes that describe the API: ``/`` and v0.4's ``/api-description`` (Swagger 2)."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import web

from mms.archive.signature import Signature, TensorSpec
from mms.http.context import CONTEXT
from mms.http.response import json_response
from mms.serving.servable import Servable
from mms.version import __version__


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_get("/", root, name="root")
    app.router.add_get("/api-description", api_description, name="api_description")


async def root(request: web.Request) -> web.Response:
    """List the routes and models; ``health`` and ``status`` are as in v0.4 and 1.x."""
    context = request.app[CONTEXT]
    is_ready = context.is_ready
    document = {
        "health": "healthy!" if is_ready else "unhealthy!",
        "status": "Healthy" if is_ready else "Unhealthy",
        "server": "mxnet-model-server",
        "version": __version__,
        "models": [_model_document(servable) for servable in context.registry.servables()],
        "routes": _routes(request.app),
    }
    return json_response(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n")


async def api_description(request: web.Request) -> web.Response:
    """Describe each model's v0.4 endpoint in Swagger 2, as v0.4 did."""
    context = request.app[CONTEXT]
    paths: dict[str, Any] = {}
    for model in context.registry.models():
        servable = model.versions[model.default]
        paths[f"/{quote(model.name, safe='')}/predict"] = {
            "post": predict_operation(model.name, servable.archive.signature)
        }
    paths["/ping"] = {"get": _plain_operation("ping", "health")}
    paths["/api-description"] = {"get": _plain_operation("api-description", "description")}
    description = {
        "swagger": "2.0",
        "info": {"version": "1.0.0", "title": "Model Serving Apis"},
        "host": request.host,
        "schemes": [request.scheme],
        "paths": paths,
    }
    return json_response(orjson.dumps({"description": description}) + b"\n")


def predict_operation(name: str, signature: Signature | None) -> dict[str, Any]:
    """Return the Swagger 2 operation of a model's ``/{model}/predict``."""
    if signature is None:
        # A 1.x handler, which accepts any body.
        return {
            "operationId": f"{name}_predict",
            "consumes": ["*/*"],
            "produces": ["*/*"],
            "parameters": [{"in": "body", "name": "body", "schema": {}}],
            "responses": {"200": {"description": "OK"}},
        }
    schema: dict[str, Any] = {"type": "object", "properties": {"prediction": {"type": "string"}}}
    if signature.gives_images:
        schema = {"type": "file"}
    return {
        "operationId": f"{name}_predict",
        "consumes": ["multipart/form-data"],
        "produces": [signature.output_type],
        "parameters": [_parameter(spec, signature.takes_images) for spec in signature.inputs],
        "responses": {"200": {"description": "OK", "schema": schema}},
    }


def _parameter(spec: TensorSpec, is_image: bool) -> dict[str, Any]:
    shape = list(spec.shape[1:])
    if is_image:
        description = f"{spec.name} should be image which will be resized to: {shape}"
    else:
        # v0.4's own typo ("should tensor"), kept so that the description is the same.
        description = f"{spec.name} should tensor with shape: {shape}"
    return {
        "in": "formData",
        "name": spec.name,
        "description": description,
        "required": True,
        "type": "file" if is_image else "string",
    }


def _plain_operation(name: str, field: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {field: {"type": "string"}}}
    return {
        "operationId": name,
        "produces": ["application/json"],
        "responses": {"200": {"description": "OK", "schema": schema}},
    }


def _model_document(servable: Servable) -> dict[str, Any]:
    signature = servable.archive.signature
    return {
        "name": servable.name,
        "version": servable.version,
        "state": servable.state.value,
        "predict": f"/predictions/{quote(servable.name, safe='')}",
        **(signature.to_document() if signature else {}),
    }


def _routes(app: web.Application) -> list[str]:
    return sorted(
        {
            f"{route.method} {route.resource.canonical}"
            for route in app.router.routes()
            if route.resource is not None and route.method not in ("HEAD", "*")
        }
    )
