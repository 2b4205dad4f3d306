"""Routes of the V1 protocol of KServe and TensorFlow Serving on the inference port.

Request bodies are decoded in the worker, in `mms.worker.v1`.
"""

from __future__ import annotations

from typing import Any

import orjson
from aiohttp import web

from mms.http.context import CONTEXT
from mms.http.inference import answer
from mms.http.response import json_response
from mms.serving.servable import Servable
from mms.wire.messages import Dialect

_MODEL = "/v1/models/{model}"
_VERSION = "/v1/models/{model}/versions/{version}"


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    router = app.router
    router.add_get("/v1/models", models, name="v1_models")
    # Before the model alone, whose variable also matches a colon.
    router.add_post(f"{_MODEL}:predict", predict, name="v1_predict")
    router.add_post(f"{_VERSION}:predict", predict, name="v1_predict_version")
    router.add_get(_MODEL, model, name="v1_model")
    router.add_get(_VERSION, model, name="v1_model_version")


async def models(request: web.Request) -> web.Response:
    """V1: names of the models."""
    return _json({"models": [model.name for model in request.app[CONTEXT].registry.models()]})


async def model(request: web.Request) -> web.Response:
    """V1: readiness of a model, and the state of its version as TensorFlow Serving has it."""
    match = request.match_info
    servable = request.app[CONTEXT].dataplane.version(match["model"], match.get("version"))
    return _json(_status(servable), 200 if servable.is_ready else 503)


async def predict(request: web.Request) -> web.StreamResponse:
    """V1: run a model on instances and return a prediction for each."""
    match = request.match_info
    return await answer(request, match["model"], match.get("version"), Dialect.INSTANCES)


def _status(servable: Servable) -> dict[str, Any]:
    state = "AVAILABLE" if servable.is_ready else "LOADING"
    return {
        "name": servable.name,
        "ready": servable.is_ready,
        "model_version_status": [
            {
                "version": servable.version,
                "state": state,
                "status": {"error_code": "OK", "error_message": ""},
            }
        ],
    }


def _json(document: Any, status: int = 200) -> web.Response:
    return json_response(orjson.dumps(document) + b"\n", status)
