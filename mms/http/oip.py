"""Routes of the Open Inference Protocol V2 on the inference port: health, metadata, infer.

Request bodies are decoded in the worker. The routes that load and unload models are in
`mms.http.oip_repository`, on the management port.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from mms.http.context import CONTEXT
from mms.http.inference import answer
from mms.http.response import json_response
from mms.serving import oip
from mms.serving.servable import Servable
from mms.wire.messages import Dialect

_MODEL = "/v2/models/{model}"
_VERSION = "/v2/models/{model}/versions/{version}"


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    router = app.router
    router.add_get("/v2/health/live", live, name="v2_live")
    router.add_get("/v2/health/ready", ready, name="v2_ready")
    router.add_get("/v2", server, name="v2_server")
    router.add_get("/v2/models", models, name="v2_models")
    router.add_get(_MODEL, model, name="v2_model")
    router.add_get(_VERSION, model, name="v2_model_version")
    router.add_get(f"{_MODEL}/ready", model_ready, name="v2_model_ready")
    router.add_get(f"{_VERSION}/ready", model_ready, name="v2_model_version_ready")
    router.add_post(f"{_MODEL}/infer", infer, name="v2_infer")
    router.add_post(f"{_VERSION}/infer", infer, name="v2_infer_version")


async def live(_: web.Request) -> web.Response:
    """V2: liveness."""
    return _json({"live": True})


async def ready(request: web.Request) -> web.Response:
    """V2: readiness of the server, as in ``/health/ready``."""
    is_ready = request.app[CONTEXT].is_ready
    return _json({"ready": is_ready}, 200 if is_ready else 503)


async def server(request: web.Request) -> web.Response:
    """V2: the server's name, version and extensions."""
    return _json(oip.server_metadata(request.app[CONTEXT].settings))


async def models(request: web.Request) -> web.Response:
    """V2: names of the models."""
    return _json({"models": [model.name for model in request.app[CONTEXT].registry.models()]})


async def model(request: web.Request) -> web.Response:
    """V2: a model's platform, versions, inputs and outputs."""
    found = request.app[CONTEXT].dataplane.find(request.match_info["model"])
    return _json(oip.model_metadata(found, _version(request)))


async def model_ready(request: web.Request) -> web.Response:
    """V2: readiness of a model."""
    servable = _version(request)
    document = {"name": servable.name, "ready": servable.is_ready}
    return _json(document, 200 if servable.is_ready else 503)


async def infer(request: web.Request) -> web.StreamResponse:
    """V2: run a model on tensors and return its output tensors."""
    match = request.match_info
    return await answer(request, match["model"], match.get("version"), Dialect.OIP)


def _version(request: web.Request) -> Servable:
    """Return the requested version, or the default.

    Raises:
        ModelNotFound: The model or version does not exist.
        ModelNotReady: The server has not read all its archives yet.
    """
    match = request.match_info
    return request.app[CONTEXT].dataplane.version(match["model"], match.get("version"))


def _json(document: Any, status: int = 200) -> web.Response:
    return json_response(orjson.dumps(document) + b"\n", status)
