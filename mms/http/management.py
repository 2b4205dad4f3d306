"""The management API, on a port of its own: register, describe, scale, split and unregister models.

Paths, parameters, statuses and messages are those of MMS 1.x wherever a client could depend on
them.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime
import logging
import os
import time
from collections.abc import Coroutine, Mapping
from typing import Any

import orjson
from aiohttp import web

from mms.config.bounds import MAX_WORKERS
from mms.config.layers import keys
from mms.config.model_settings import ModelSettings
from mms.errors import InvalidRequest, MMSError
from mms.fetch.location import shown
from mms.http import oip_repository as repository
from mms.http import paths
from mms.http.context import CONTEXT, Context
from mms.http.cors import Cors
from mms.http.guard import Guard, make_guard_middleware
from mms.http.middleware import make_middleware
from mms.http.openapi.document import management_document, routes_of
from mms.http.parameters import (
    MAX_BODY_BYTES,
    Parameters,
    page_of_models,
    read_parameters,
    to_bool,
    to_integer,
)
from mms.http.response import json_response
from mms.serving.memory import UNKNOWN, Memory, read_memory, shared_bytes
from mms.serving.registry import Model, Traffic
from mms.serving.servable import Servable
from mms.serving.tasks import Tasks
from mms.wire.codec import error_document

audit = logging.getLogger("mms.audit")
logger = logging.getLogger("mms.management")

_TASKS = web.AppKey("tasks", Tasks)
_PROCESSING = {"status": "Processing worker updates..."}
_SCALED = {"status": "Workers scaled"}
#: Parameters of a registration that 1.x reads as integers; words among them are not heeded.
_V1_NUMBERS = ("batch_size", "max_batch_delay", "response_timeout")
_RUNTIMES = ("python", "python2", "python3")
#: Settings that may change while the model serves.
_LIVE_SETTINGS = ("batch_size", "max_batch_delay", "linger", "queue_size", "response_timeout")


def make_management_app(context: Context, guard: Guard) -> web.Application:
    """Return the management application.

    Args:
        context: The objects shared with the inference application.
        guard: Checks every request, whatever its path.
    """
    app = web.Application(
        middlewares=[make_middleware(context.dataplane, debug_errors=True)],
        client_max_size=MAX_BODY_BYTES,
    )
    # A browser asks for permission without a token, so it is told before the guard.
    Cors(context.settings, is_management=True).install(app)
    app.middlewares.append(make_guard_middleware(guard, lambda: context.dataplane.is_draining))
    app[CONTEXT] = context
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
    router.add_get("/api-description", options, name="management_description")
    repository.add_routes(app)
    paths.add_route(app)
    return app


async def register(request: web.Request) -> web.Response:
    """Register a model, or with `version` a further version of one."""
    parameters = await read_parameters(request)
    controlplane = request.app[CONTEXT].controlplane
    # 1.x calls it model_url in its description, from which clients are generated.
    url = parameters.take("url", parameters.take("model_url"))
    if not isinstance(url, str) or not url:
        raise InvalidRequest("Parameter url is required.")
    name, version = parameters.take("model_name"), parameters.take("version")
    size = _initial_size(parameters, controlplane.default_workers)
    synchronous = parameters.flag("synchronous", True)
    # A version without workers becomes the default only on request.
    make_default = to_bool(parameters.take("make_default", size != 0), "make_default")
    _check_runtime(parameters.take("runtime"))
    preload = parameters.take("preload_model")
    parameters.drop_words(_V1_NUMBERS)
    settings = parameters.take_all(keys(ModelSettings))
    if preload is not None:
        settings.setdefault("preload", str(preload).lower() == "true")
    parameters.drop_rest()
    # Before a download, which may be long and in vain.
    asked = controlplane.admit(
        url,
        settings,
        name=None if name is None else str(name),
        version=None if version is None else str(version),
        size=size,
    )
    registration, fetched = await controlplane.identify(asked)
    name = registration.name
    registering = controlplane.register(registration, fetched, make_default)
    audit.info("register %s from %s", name, shown(registration.path))
    warning = parameters.warning(f"register {name}")
    if size != 0 and not synchronous:
        # Checked before the response; the load continues in the background.
        _run(request.app, registering, f"registering {name}")
        return _json(_PROCESSING, 202, warning)
    await _finish(request.app, registering)
    if size == 0 or registration.settings.load == "lazy":
        return _json({"status": f'Model "{name}" registered'}, headers=warning)
    return _json(_SCALED, headers=warning)


def _initial_size(parameters: Parameters, default_workers: int) -> int | None:
    """Return the number of workers to start; None means as the settings say."""
    if "initial_workers" in parameters:
        return parameters.integer("initial_workers", default_workers, MAX_WORKERS)
    is_set = parameters.get("workers") or parameters.get("load") == "lazy" or default_workers
    return None if is_set else 0


def _check_runtime(runtime: Any) -> None:
    """Refuse what is not Python; which version of it, the server's environment decides.

    Raises:
        InvalidRequest: It is another language, or none.
    """
    if runtime is not None and str(runtime).lower() not in _RUNTIMES:
        raise InvalidRequest(f"Invalid RuntimeType value: {str(runtime)[:50]}")


async def list_models(request: web.Request) -> web.Response:
    """List the models, a page at a time, with every version's state."""
    store = request.app[CONTEXT].settings.model_store
    return _json(page_of_models(request, lambda model: _model_row(model, store)))


async def describe(request: web.Request) -> web.Response:
    """Describe a model: state, workers, queue, batching, archive and last error."""
    registry = request.app[CONTEXT].registry
    match = request.match_info
    model = registry.model(match["model"])
    servable = registry.get(match["model"], match.get("version"))
    pids = servable.pids
    resident, shared = await asyncio.to_thread(lambda: (read_memory(pids), shared_bytes(pids)))
    controlplane = request.app[CONTEXT].controlplane
    document = describe_servable(servable, resident, controlplane.settings.model_store)
    document |= {
        "loadedAtStartup": controlplane.registration(servable).is_startup,
        "memoryUsage": shared,
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
    """Scale a model's workers, and change its queue and batch settings."""
    parameters = await read_parameters(request)
    context, match = request.app[CONTEXT], request.match_info
    controlplane = context.controlplane
    servable = context.registry.get(match["model"], match.get("version"))
    live = parameters.take_all(_LIVE_SETTINGS)
    scales = not live or "min_worker" in parameters or "max_worker" in parameters
    is_bounded = "max_worker" in parameters
    minimum = parameters.integer("min_worker", 1, MAX_WORKERS)
    maximum = parameters.integer("max_worker", minimum, MAX_WORKERS)
    synchronous = parameters.flag("synchronous", False)
    # GPUs are set when a model is registered, and a worker that is stopped finishes its batch.
    parameters.take_all(("number_gpu", "timeout"))
    parameters.drop_rest()
    if maximum < minimum:
        raise InvalidRequest("max_worker cannot be less than min_worker.")
    if scales and (maximum != minimum or is_bounded):
        live["max_workers"] = maximum if maximum > minimum else 0
    if live:
        await controlplane.configure(servable, live)
        audit.info("change %s/%s: %s", servable.name, servable.version, live)
    warning = parameters.warning(f"change {servable.name}")
    if not scales:
        return _json({"status": f'Model "{servable.name}" changed'}, headers=warning)
    audit.info("scale %s/%s to %d", servable.name, servable.version, minimum)
    if not synchronous:
        _run(request.app, controlplane.scale(servable, minimum), f"scaling {servable.name}")
        return _json(_PROCESSING, 202, warning)
    await _finish(request.app, controlplane.scale(servable, minimum))
    return _json(_SCALED, headers=warning)


async def split(request: web.Request) -> web.Response:
    """Split a model's traffic between its versions: `weights`, `sticky_header`, `shadow`."""
    parameters = await read_parameters(request)
    weights = parameters.take("weights", {})
    sticky, shadow = parameters.take("sticky_header", ""), parameters.take("shadow", "")
    # No call of 1.x, and one with a mistyped name would end the split.
    parameters.refuse_rest()
    if not isinstance(weights, dict) or not isinstance(sticky, str) or not isinstance(shadow, str):
        raise InvalidRequest('send {"weights": {"1": 90, "2": 10}, "sticky_header": "", ...}')
    numbers = {str(version): to_integer(weight, "weights") for version, weight in weights.items()}
    name = request.match_info["model"]
    request.app[CONTEXT].controlplane.split(name, Traffic(numbers, sticky, shadow))
    audit.info("split %s: %s, shadow %r", name, numbers, shadow)
    return _json({"status": f'Traffic of model "{name}" changed'})


async def set_default(request: web.Request) -> web.Response:
    """Set the default version, which serves requests without a version."""
    name, version = request.match_info["model"], request.match_info["version"]
    request.app[CONTEXT].controlplane.set_default(name, version)
    audit.info("set default of %s to %s", name, version)
    return _json({"status": f'Default version of model "{name}" is now "{version}"'})


async def unregister(request: web.Request) -> web.Response:
    """Unregister a model, or one version of it, after its accepted requests have finished."""
    name, version = request.match_info["model"], request.match_info.get("version")
    await request.app[CONTEXT].controlplane.unregister(name, version)
    audit.info("unregister %s %s", name, version or "")
    return _json({"status": f'Model "{name}" unregistered'})


async def options(request: web.Request) -> web.Response:
    """Describe this API as OpenAPI 3."""
    return _json(management_document(routes_of(request.app)))


def _model_row(model: Model, store: str) -> dict[str, Any]:
    return {
        "modelName": model.name,
        "modelUrl": _registered_url(model.versions[model.default].archive.source, store),
        "defaultVersion": model.default,
        "versions": {v: s.state.value for v, s in model.versions.items()},
    }


def _registered_url(location: str, store: str) -> str:
    """Return a location as it is registered: of what is in the model store, the path below it."""
    for folder in (store, os.path.realpath(store)) if store else ():
        if location.startswith(prefix := f"{folder.rstrip('/')}/"):
            return location[len(prefix) :]
    return location


def describe_servable(
    servable: Servable, memory: Mapping[int, Memory], store: str
) -> dict[str, Any]:
    """Return the management API's description of one version of a model.

    Args:
        servable: The version.
        memory: Memory of its processes, by process id.
        store: The model store.
    """
    settings, limits = servable.settings, servable.lane.limits
    signature = servable.archive.signature
    manifest = servable.archive.manifest
    quantization = manifest.serving.quantization
    # What 1.x calls the engine stands in its manifests; of ours, what runs the model is told.
    engine = next(iter(manifest.engine), None) if servable.wants_headers else None
    ready = servable.last_ready
    now, wall = time.monotonic(), time.time()
    document: dict[str, Any] = {
        "modelName": servable.name,
        **({"modelVersion": manifest.model_version} if manifest.model_version else {}),
        "version": servable.version,
        "modelUrl": _registered_url(servable.archive.source, store),
        "runtime": manifest.runtime,
        "engine": engine or (ready.engine if ready else None),
        "service": ready.service if ready else None,
        "state": servable.state.value,
        "ready": servable.is_ready,
        "minWorkers": servable.size,
        "maxWorkers": max(settings.max_workers, servable.size),
        "batchSize": limits.batch_size,
        "batching": _batching(servable),
        "maxBatchDelay": _whole(settings.max_batch_delay),
        "responseTimeout": limits.response_timeout_s,
        "queue": {
            "depth": servable.lane.depth,
            "limit": limits.queue_size,
            "inFlight": servable.lane.in_flight,
        },
        "archive": {
            "digest": servable.archive.digest,
            "format": manifest.model_format.value,
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
                "memoryUsage": memory.get(worker.child.pid, UNKNOWN).resident,
                "requests": worker.requests,
            }
            for worker in servable.pool.workers
            if (status := servable.pool.state(worker))
        ],
    }
    if servable.last_error is not None:
        document["lastError"] = error_document(servable.last_error)
    return document


def _whole(number: float) -> float:
    """Return a number as an integer if it is one: clients of 1.x read nothing else."""
    return int(number) if number.is_integer() else number


def _batching(servable: Servable) -> dict[str, Any]:
    """Return whether requests are batched, and if not, why."""
    reason = servable.alone_reason
    if servable.lane.limits.batch_size == 1:
        reason = "batch_size is 1"
    return {"joined": not reason, "reason": reason}


def _run(app: web.Application, work: Coroutine[Any, Any, Any], what: str) -> None:
    """Run something in the background after the response; log its failure."""

    async def run() -> None:
        try:
            await work
        except MMSError as error:
            logger.error("%s failed: %s", what, error)

    app[_TASKS].start(run())


async def _finish(app: web.Application, work: Coroutine[Any, Any, Any]) -> None:
    """Run something to completion, even if the client disconnects."""
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


def _json(
    document: Any, status: int = 200, headers: Mapping[str, str] | None = None
) -> web.Response:
    body = orjson.dumps(document, option=orjson.OPT_INDENT_2) + b"\n"
    return json_response(body, status, headers)


def _iso(seconds: float) -> str:
    moment = datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
