"""Routes for the server's health: liveness, readiness, ping and metrics."""

from __future__ import annotations

import orjson
from aiohttp import web

from mms.http.context import CONTEXT
from mms.http.response import json_response

_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app.router.add_get("/ping", ping, name="ping")
    app.router.add_get("/health/live", live, name="health_live")
    app.router.add_get("/health/ready", ready, name="health_ready")
    app.router.add_get("/models/{model}/ready", model_ready, name="model_ready")
    app.router.add_get("/metrics", metrics, name="metrics")


async def ping(request: web.Request) -> web.Response:
    """Readiness in the formats of v0.4 (``health``) and 1.x (``status``)."""
    if request.app[CONTEXT].is_ready:
        return json_response(b'{"health":"healthy!","status":"Healthy"}\n')
    return json_response(b'{"health":"unhealthy!","status":"Unhealthy"}\n', 503)


async def live(_: web.Request) -> web.Response:
    """Liveness: this process answers."""
    return json_response(b'{"live":true}\n')


async def ready(request: web.Request) -> web.Response:
    """Readiness: every start-up model can serve now; the models that cannot are named."""
    context = request.app[CONTEXT]
    document = {
        "ready": context.is_ready,
        "draining": context.dataplane.is_draining,
        "models": {
            f"{servable.name}/{servable.version}": {
                "ready": servable.is_ready,
                "state": servable.state.value,
            }
            for servable in context.registry.servables()
        },
    }
    return json_response(orjson.dumps(document) + b"\n", 200 if context.is_ready else 503)


async def model_ready(request: web.Request) -> web.Response:
    """Readiness of one model.

    Raises:
        ModelNotFound: No model has this name.
    """
    servable = request.app[CONTEXT].registry.get(request.match_info["model"])
    document = {"name": servable.name, "ready": servable.is_ready, "state": servable.state.value}
    return json_response(orjson.dumps(document) + b"\n", 200 if servable.is_ready else 503)


async def metrics(request: web.Request) -> web.Response:
    """Return all metrics in Prometheus' text format."""
    context = request.app[CONTEXT]
    body = await context.exporter.fresh(context.registry.read_memory)
    return web.Response(body=body, headers={"Content-Type": _METRICS_TYPE})
