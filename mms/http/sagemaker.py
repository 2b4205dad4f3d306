"""SageMaker's routes: ``/invocations``, and those of a multi-model container.

The contract: https://docs.aws.amazon.com/sagemaker/latest/dg/mms-container-apis.html. The routes
that load, list and unload models only exist with ``multi_model``, since they are on the port that
any client may reach, and are guarded like the management API.
"""

from __future__ import annotations

import dataclasses
import os

import orjson
from aiohttp import web

from mms.archive.reader import find_archives
from mms.config.settings import SAGEMAKER_MODELS, ServerSettings
from mms.errors import Draining, InvalidRequest, MMSError, ModelNotReady
from mms.fetch.location import is_remote, parse_location
from mms.http.body import read_body
from mms.http.context import CONTEXT, Context
from mms.http.guard import Guard
from mms.http.inference import add_for_models, answer
from mms.http.parameters import page_of_models
from mms.http.response import json_response
from mms.serving.dataplane import ServerState
from mms.serving.registry import Model, listed
from mms.wire.messages import Dialect

_MAX_BODY_BYTES = 64 << 10


#: Whether callers of the multi-model routes may see the paths of archives on this machine.
_SHOWS_PATHS = web.AppKey("shows_paths", bool)


def add_routes(app: web.Application, guard: Guard | None, shows_paths: bool = True) -> None:
    """Add the routes of this module.

    Args:
        app: The inference application.
        guard: Checks the requests of the multi-model routes; None omits these.
        shows_paths: Whether their callers may see paths of this machine.
    """
    add_for_models(app, "/invocations", "invocations", invocations)
    add_for_models(app, "/models/{model}/invoke", "invoke", invoke)
    if guard:
        app[_SHOWS_PATHS] = shows_paths
        router, managed = app.router, guard.managed
        router.add_post("/models", managed(load), name="sagemaker_load")
        router.add_get("/models", managed(list_models), name="sagemaker_list")
        router.add_get("/models/{model}", managed(describe), name="sagemaker_describe")
        router.add_delete("/models/{model}", managed(unload), name="sagemaker_unload")


async def invocations(request: web.Request) -> web.StreamResponse:
    """Run the model named by ``?model_name=``; without it, the only model.

    Raises:
        InvalidRequest: There are several models, and none is named.
    """
    context = request.app[CONTEXT]
    name = request.query.get("model_name") or _only_model(context)
    return await answer(request, name, dialect=Dialect.V1)


async def invoke(request: web.Request) -> web.StreamResponse:
    """Run a model by its name, as in 1.x's multi-model mode."""
    return await answer(request, request.match_info["model"], dialect=Dialect.V1)


async def load(request: web.Request) -> web.Response:
    """Load a model: ``{"model_name", "url"}``, where url is a path below the model store.

    Any other location is refused unless `allowed_urls` permits it.

    Raises:
        Conflict: It is already loaded.
        OutOfMemory: There is no memory for it; SageMaker then unloads another model and retries.
    """
    context = request.app[CONTEXT]
    chunks, _ = await read_body(request, _MAX_BODY_BYTES, context.settings.body_timeout)
    try:
        document = orjson.loads(b"".join(chunks))
        name, url = document["model_name"], document["url"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        raise InvalidRequest('send {"model_name": NAME, "url": FOLDER} as JSON') from None
    if not isinstance(name, str) or not isinstance(url, str):
        raise InvalidRequest("model_name and url must be strings")
    if context.dataplane.is_draining:
        raise Draining("the server is starting or stopping", 1.0)
    admitted = context.controlplane.admit(url, {}, name=name)
    try:
        await context.controlplane.register(
            dataclasses.replace(admitted, path=_archive_in(admitted.path))
        )
    except MMSError as error:
        if not request.app[_SHOWS_PATHS]:
            error.args = (_without_store(str(error), context.settings),)
        raise
    return json_response(orjson.dumps({"status": f'Model "{name}" registered'}) + b"\n")


async def list_models(request: web.Request) -> web.Response:
    """List the loaded models, a page at a time."""
    page = page_of_models(request, lambda model: _document(model, request))
    return json_response(orjson.dumps(page) + b"\n")


async def describe(request: web.Request) -> web.Response:
    """Describe a loaded model."""
    model = request.app[CONTEXT].registry.model(request.match_info["model"])
    return json_response(orjson.dumps(_document(model, request)) + b"\n")


async def unload(request: web.Request) -> web.Response:
    """Unload a model after its accepted requests have finished."""
    context = request.app[CONTEXT]
    name = request.match_info["model"]
    if context.dataplane.is_draining:
        raise Draining("the server is starting or stopping", 1.0)
    await context.controlplane.unregister(name)
    return json_response(orjson.dumps({"status": f'Model "{name}" unregistered'}) + b"\n")


def _document(model: Model, request: web.Request) -> dict[str, str]:
    source = model.versions[model.default].archive.source
    if not request.app[_SHOWS_PATHS]:
        source = _public_source(source, request.app[CONTEXT].settings)
    return {"modelName": model.name, "modelUrl": source}


def _public_source(source: str, settings: ServerSettings) -> str:
    """Return a location relative to the model store, without the paths of this machine."""
    if is_remote(source):
        return source
    found = _without_store(source, settings)
    return os.path.basename(found) if os.path.isabs(found) and not _is_known(found) else found


def _without_store(text: str, settings: ServerSettings) -> str:
    """Return a string with the paths in it made relative to the model store."""
    if _is_known(f"{settings.model_store}/"):
        # SageMaker's own folder, which the contract includes in responses.
        return text
    for store in (settings.model_store, os.path.realpath(settings.model_store)):
        text = text.replace(f"{store.rstrip('/')}/", "")
    return text


def _is_known(path: str) -> bool:
    return path.startswith(f"{SAGEMAKER_MODELS}/")


def _only_model(context: Context) -> str:
    names = sorted({s.name for s in context.controlplane.startup_servables()}) or [
        model.name for model in context.registry.models()
    ]
    if len(names) == 1:
        return names[0]
    if context.dataplane.state is ServerState.STARTING:
        raise ModelNotReady("the server is starting", retry_after_s=1.0)
    raise InvalidRequest(f"select a model with ?model_name=NAME; loaded models: {listed(names)}")


def _archive_in(location: str) -> str:
    """Return the location to load: for a folder that SageMaker unpacked, the archive in it."""
    given = parse_location(location)
    found = find_archives(given.path) if given.path and given.path.is_dir() else []
    if len(found) != 1:
        return location
    return f"{found[0]}#sha256={given.pin}" if given.pin else str(found[0])
