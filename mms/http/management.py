"""The management API, on a port of its own: register, describe, scale, split and unregister models.

Paths, parameters, statuses and messages are those of MMS 1.x where a client could depend on them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
import os
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import orjson
from aiohttp import web

from mms.archive.location import Policy, is_remote, parse_location, shown
from mms.config import MAX_WORKERS, Layer, ModelSettings, keys, resolve
from mms.errors import Forbidden, InvalidRequest, MMSError, ModelNotFound
from mms.http.body import read_body
from mms.http.context import CONTEXT
from mms.http.guard import Guard, make_guard_middleware
from mms.http.middleware import make_middleware
from mms.http.openapi import management_document, routes_of
from mms.http.response import json_response
from mms.protocol import error_document
from mms.serving.manager import ModelManager
from mms.serving.memory import resident_bytes
from mms.serving.registry import Model, Traffic
from mms.serving.servable import Servable
from mms.serving.tasks import Tasks

audit = logging.getLogger("mms.audit")
logger = logging.getLogger("mms.management")

MANAGER = web.AppKey("manager", ModelManager)
_TASKS = web.AppKey("tasks", Tasks)
_MAX_BODY_BYTES = 1 << 20
_PAGE = 100
#: Largest of the numbers that have no bound of their own: weights, and places in a list.
_MOST = 999_999_999
_PROCESSING = {"status": "Processing worker updates..."}
#: Settings that may change while the model serves.
_LIVE_SETTINGS = ("batch_size", "max_batch_delay", "linger", "queue_size", "response_timeout")
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")


def make_management_app(context: Any, manager: ModelManager, guard: Guard) -> web.Application:
    """Return the management application.

    Args:
        context: What the inference application shares.
        manager: Does the work.
        guard: Checks every request, whatever its route.
    """
    settings = context.settings
    app = web.Application(
        middlewares=[
            make_middleware(context.metrics, True, settings.access_log),
            make_guard_middleware(guard, lambda: context.is_draining),
        ],
        client_max_size=_MAX_BODY_BYTES,
    )
    app[CONTEXT] = context
    app[MANAGER] = manager
    app[_TASKS] = Tasks()
    app.on_shutdown.append(_cancel_tasks)
    router = app.router
    router.add_post("/models", register, name="register")
    router.add_get("/models", list_models, name="list_models")
    router.add_get("/models/{model}", describe, name="describe")
    router.add_get("/models/{model}/{version}", describe, name="describe_version")
    router.add_put("/models/{model}", change, name="change")
    router.add_put("/models/{model}/traffic", split, name="split")
    router.add_put("/models/{model}/{version}", change, name="change_version")
    router.add_put("/models/{model}/{version}/set-default", set_default, name="set_default")
    router.add_delete("/models/{model}", unregister, name="unregister")
    router.add_delete("/models/{model}/{version}", unregister, name="unregister_version")
    router.add_options("/", options, name="management_options")
    # Here, because it builds on this module.
    from mms.http import repository

    repository.add_routes(app)
    return app


async def register(request: web.Request) -> web.Response:
    """Register a model, or with `version` another version of one."""
    parameters = await _parameters(request)
    manager = request.app[MANAGER]
    url = parameters.pop("url", None)
    if not isinstance(url, str) or not url:
        raise InvalidRequest("Parameter url is required.")
    fetching = manager.fetching
    location = locate(url, request.app[CONTEXT].settings.model_store, fetching.policy)
    name = parameters.pop("model_name", None)
    handler = str(parameters.get("handler", ""))
    version = parameters.pop("version", None)
    version = None if version is None else str(version)
    size: int | None = None
    is_lazy = parameters.get("load") == "lazy"
    if "initial_workers" in parameters or not (parameters.get("workers") or is_lazy):
        size = _whole(parameters.pop("initial_workers", 0), "initial_workers", MAX_WORKERS)
    synchronous = _flag(parameters.pop("synchronous", True), "synchronous")
    # A version that cannot answer yet takes over only if it is told to.
    make_default = _flag(parameters.pop("make_default", size != 0), "make_default")
    # The manifest tells, and only Python is left.
    parameters.pop("runtime", None)
    # Before a download that may take long, and for nothing.
    settings, _ = _settings(dict(parameters), str(name), manager.layers)
    if name is not None:
        manager.check(str(name), version)
    path = await fetching.fetch(location, is_trusted=False)
    manifest = await fetching.read_manifest(location, path, handler)
    name = manifest.model_name if name is None else name
    settings, origins = _settings(parameters, str(name), manager.layers)
    manager.check(str(name), version)
    registering = manager.register(
        str(name),
        location,
        fetched=path,
        version=version,
        settings=settings,
        origins=origins,
        size=size,
        make_default=make_default,
    )
    audit.info("register %s from %s", name, shown(location))
    if size != 0 and not synchronous:
        # Refused at once what can be refused at once; the load goes on by itself.
        _run(request.app, registering, f"registering {name}")
        return _json(_PROCESSING, 202)
    await _finish(request.app, registering)
    return _json({"status": f'Model "{name}" registered'})


async def list_models(request: web.Request) -> web.Response:
    """List the models, a page at a time, with every version's state."""
    return _json(page_of_models(request, _model_row))


async def describe(request: web.Request) -> web.Response:
    """Describe a model: state, workers, queue, batches, archive and last error."""
    registry = request.app[CONTEXT].registry
    match = request.match_info
    model = registry.model(match["model"])
    servable = registry.get(match["model"], match.get("version"))
    document = describe_servable(servable)
    document |= {
        "memoryUsage": await asyncio.to_thread(servable.memory_bytes),
        "defaultVersion": model.default,
        "versions": list(model.versions),
        "traffic": {
            "weights": dict(model.traffic.weights),
            "stickyHeader": model.traffic.sticky_header,
            "shadow": model.traffic.shadow,
        },
    }
    return _json(document)


async def change(request: web.Request) -> web.Response:
    """Scale a model's workers, and change settings of its queue and batches."""
    parameters = await _parameters(request)
    manager, match = request.app[MANAGER], request.match_info
    servable = request.app[CONTEXT].registry.get(match["model"], match.get("version"))
    live = {key: parameters.pop(key) for key in _LIVE_SETTINGS if key in parameters}
    asked = set(parameters)
    scales = not live or "min_worker" in parameters or "max_worker" in parameters
    minimum = _whole(parameters.pop("min_worker", 1), "min_worker", MAX_WORKERS)
    maximum = _whole(parameters.pop("max_worker", minimum), "max_worker", MAX_WORKERS)
    synchronous = _flag(parameters.pop("synchronous", False), "synchronous")
    parameters.pop("number_gpu", None)
    _refuse_unknown(parameters)
    if maximum < minimum:
        raise InvalidRequest("max_worker cannot be less than min_worker.")
    if scales and (maximum != minimum or "max_worker" in asked):
        live["max_workers"] = maximum if maximum > minimum else 0
    if live:
        await manager.configure(servable, live)
        audit.info("change %s/%s: %s", servable.name, servable.version, live)
    if not scales:
        return _json({"status": f'Model "{servable.name}" changed'})
    audit.info("scale %s/%s to %d", servable.name, servable.version, minimum)
    if not synchronous:
        _run(request.app, manager.scale(servable, minimum), f"scaling {servable.name}")
        return _json(_PROCESSING, 202)
    await _finish(request.app, manager.scale(servable, minimum))
    return _json({"status": "Workers scaled"})


async def split(request: web.Request) -> web.Response:
    """Split a model's traffic over its versions: `weights`, `sticky_header`, `shadow`."""
    parameters = await _parameters(request)
    weights = parameters.pop("weights", {})
    sticky, shadow = parameters.pop("sticky_header", ""), parameters.pop("shadow", "")
    _refuse_unknown(parameters)
    if not isinstance(weights, dict) or not isinstance(sticky, str) or not isinstance(shadow, str):
        raise InvalidRequest('send {"weights": {"1": 90, "2": 10}, "sticky_header": "", ...}')
    numbers = {str(version): _whole(weight, "weights") for version, weight in weights.items()}
    name = request.match_info["model"]
    request.app[MANAGER].split(name, Traffic(numbers, sticky, shadow))
    audit.info("split %s: %s, shadow %r", name, numbers, shadow)
    return _json({"status": f'Traffic of model "{name}" changed'})


async def set_default(request: web.Request) -> web.Response:
    """Make a version the one that answers requests which name none."""
    name, version = request.match_info["model"], request.match_info["version"]
    request.app[MANAGER].set_default(name, version)
    audit.info("set default of %s to %s", name, version)
    return _json({"status": f'Default version of model "{name}" is now "{version}"'})


async def unregister(request: web.Request) -> web.Response:
    """Unregister a model, or one version of it; what it has accepted is still answered."""
    name, version = request.match_info["model"], request.match_info.get("version")
    await request.app[MANAGER].unregister(name, version)
    audit.info("unregister %s %s", name, version or "")
    return _json({"status": f'Model "{name}" unregistered'})


async def options(request: web.Request) -> web.Response:
    """Describe this API as OpenAPI 3."""
    return _json(management_document(routes_of(request.app)))


def page_of_models(request: web.Request, describe: Callable[[Model], Any]) -> dict[str, Any]:
    """Return the page of the list of models that a request asks for.

    Args:
        request: Its `limit` and `next_page_token` say how many, and from which on.
        describe: Gives what the list says of a model.

    Raises:
        InvalidRequest: One of these is not a whole number.
    """
    limit = _whole(request.query.get("limit", _PAGE), "limit")
    start = _whole(request.query.get("next_page_token", 0), "next_page_token")
    end = start + min(max(limit, 1), _PAGE)
    models = list(request.app[CONTEXT].registry.models())
    document: dict[str, Any] = {"models": [describe(model) for model in models[start:end]]}
    if end < len(models):
        document["nextPageToken"] = str(end)
    return document


def _model_row(model: Model) -> dict[str, Any]:
    return {
        "modelName": model.name,
        "modelUrl": model.versions[model.default].archive.source,
        "defaultVersion": model.default,
        "versions": {v: s.state.value for v, s in model.versions.items()},
    }


def describe_servable(servable: Servable) -> dict[str, Any]:
    """Return what the management API shows of one version of a model."""
    settings, limits = servable.settings, servable.limits
    signature = servable.archive.signature
    quantization = servable.archive.manifest.serving.quantization
    now, wall = time.monotonic(), time.time()
    document: dict[str, Any] = {
        "modelName": servable.name,
        "modelVersion": servable.version,
        "modelUrl": servable.archive.source,
        "runtime": "python",
        "state": servable.state.value,
        "ready": servable.is_ready,
        "minWorkers": servable.size,
        "maxWorkers": max(settings.max_workers, servable.size),
        "batchSize": limits.batch_size,
        "batching": _batching(servable),
        "maxBatchDelay": settings.max_batch_delay,
        "responseTimeout": limits.response_timeout_s,
        "queue": {
            "depth": servable.queue_depth,
            "limit": limits.queue_size,
            "inFlight": servable.in_flight,
        },
        "archive": {
            "digest": servable.archive.digest,
            "format": servable.archive.manifest.model_format.value,
            "signature": signature.to_document() if signature else None,
            "quantization": quantization and dataclasses.asdict(quantization),
        },
        "loadSeconds": servable.metrics.load_seconds,
        "restarts": dict(servable.metrics.restarts),
        "lastError": None,
        "workers": [
            {
                "id": str(worker.id),
                "pid": worker.child.pid,
                "startTime": _iso(wall - (now - worker.ready_at)),
                "status": status.value.upper(),
                "gpu": worker.gpu is not None,
                "device": "cpu" if worker.gpu is None else f"gpu:{worker.gpu}",
                "memoryUsage": resident_bytes(worker.child.pid),
                "requests": worker.requests,
            }
            for worker in servable.workers
            if (status := servable.pool.state(worker))
        ],
    }
    if servable.last_error is not None:
        document["lastError"] = error_document(servable.last_error)
    return document


def _batching(servable: Servable) -> dict[str, Any]:
    """Describe whether requests share forward passes, and if not, why."""
    reason = servable.alone_reason
    if servable.limits.batch_size == 1:
        reason = "batch_size is 1"
    return {"joined": not reason, "reason": reason}


def locate(url: str, model_store: str, policy: Policy) -> str:
    """Return the location that a `url` names: of an archive inside the model store, or permitted.

    Raises:
        Forbidden: It is neither.
        ModelNotFound: The store has no such archive.
        ArchiveError: It is not valid.
    """
    if not model_store and not policy.patterns:
        raise Forbidden(
            "no model store: start the server with --model-store DIR to register models"
        )
    if "\0" in url:
        raise Forbidden("the url holds a NUL")
    if is_remote(url):
        if not policy.patterns:
            raise Forbidden(
                f"only archives in the model store can be registered, not {shown(url)}; "
                "the server's allowed_urls can permit more"
            )
        if not url.lower().startswith(("http://", "https://", "s3://")):
            raise Forbidden(f"{shown(url)}: only http://, https://, s3:// and file:// are fetched")
        policy.check_url(parse_location(url).url)
        return url
    name, separator, pin = url.partition("#sha256=")
    if name.startswith(("file:///", "file://localhost/")):
        name = str(parse_location(name).path)
    # os.path raises nothing, however long a name is and wherever a link leads.
    path = Path(os.path.realpath(Path(model_store, name.removeprefix("file://"))))
    if not (model_store and _is_inside(path, Path(os.path.realpath(model_store)))):
        if not policy.patterns:
            raise Forbidden(f"{url[:200]!r} is not in the model store")
        # Links and .. are resolved: what a pattern permits is where the file really is.
        policy.check_url(f"file://{path}")
    if not os.path.exists(path):
        raise ModelNotFound(f"Model not found in model store: {url[:200]}")
    return f"{path}{separator}{pin}"


def _is_inside(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and path != folder


def _settings(
    parameters: dict[str, Any], name: str, layers: Sequence[Layer]
) -> tuple[ModelSettings, Mapping[str, str]]:
    if "service" in parameters:
        raise Forbidden("service files outside archives cannot be named here")
    known = {key: parameters.pop(key) for key in keys(ModelSettings) if key in parameters}
    _refuse_unknown(parameters)
    return resolve(ModelSettings, [Layer("request", known), *layers], f"models.{name}.")


def _refuse_unknown(parameters: Mapping[str, Any]) -> None:
    for key in parameters:
        raise InvalidRequest(f"unknown parameter {str(key)[:100]!r}")


async def _parameters(request: web.Request) -> dict[str, Any]:
    """Return the parameters of a call: from the query, a form, or a JSON object."""
    parameters: dict[str, Any] = dict(request.query)
    chunks, size = await read_body(request, _MAX_BODY_BYTES, 30.0)
    if not size:
        return parameters
    body = b"".join(chunks)
    if request.content_type == "application/x-www-form-urlencoded" and not body.startswith(b"{"):
        return parameters | dict(parse_qsl(body.decode(errors="replace")))
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    return parameters | document


def _whole(value: Any, name: str, maximum: int = _MOST) -> int:
    text = str(value)
    is_number = not isinstance(value, bool) and text.isascii() and text.isdecimal()
    # The length first: Python refuses to convert very long numbers.
    if not is_number or len(text) > len(str(_MOST)) or int(text) > maximum:
        raise InvalidRequest(
            f"Parameter {name} must be a whole number from 0 to {maximum}, got {text[:50]!r}"
        )
    return int(text)


def _flag(value: Any, name: str) -> bool:
    text = str(value).lower()
    if text not in _TRUE + _FALSE:
        raise InvalidRequest(f"Parameter {name} must be true or false, got {text[:50]!r}")
    return text in _TRUE


def _run(app: web.Application, work: Coroutine[Any, Any, Any], what: str) -> None:
    """Go on with something after it was answered; its failure is logged."""

    async def run() -> None:
        try:
            await work
        except MMSError as error:
            logger.error("%s failed: %s", what, error)

    app[_TASKS].start(run())


async def _finish(app: web.Application, work: Coroutine[Any, Any, Any]) -> None:
    """Do something to its end, even if the client leaves meanwhile."""
    task = asyncio.ensure_future(work)

    async def end() -> None:
        try:
            await asyncio.gather(task, return_exceptions=True)
        finally:
            task.cancel()

    app[_TASKS].start(end())
    await asyncio.shield(task)


async def _cancel_tasks(app: web.Application) -> None:
    await app[_TASKS].cancel()


def _json(document: Any, status: int = 200) -> web.Response:
    return json_response(orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n", status)


def _iso(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
