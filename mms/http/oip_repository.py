"""The model repository extension of the Open Inference Protocol V2, on the management port.

Loading registers an archive in the model store by its name; unloading unregisters it. A model that
was unloaded here is loaded again as it was, whatever its origin.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

import orjson
from aiohttp import web

from mms.errors import Conflict, InvalidRequest, MMSError
from mms.http.context import CONTEXT, Context
from mms.http.parameters import read_object, refuse_unknown
from mms.http.response import json_response
from mms.serving.lifecycle import ServableState
from mms.serving.model_store import names_in
from mms.serving.servable import Servable
from mms.serving.unloaded import Unloaded

audit = logging.getLogger("mms.audit")

_STATES = {
    ServableState.LOADING: "LOADING",
    ServableState.READY: "READY",
    ServableState.DRAINING: "UNLOADING",
    ServableState.UNLOADED: "UNAVAILABLE",
    ServableState.FAILED: "UNAVAILABLE",
}


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    router = app.router
    router.add_post("/v2/repository/index", index, name="v2_index")
    router.add_post("/v2/repository/models/{model}/load", load, name="v2_load")
    router.add_post("/v2/repository/models/{model}/unload", unload, name="v2_unload")


async def index(request: web.Request) -> web.Response:
    """V2: list the models, loaded or in the model store, with their states."""
    document = await read_object(request)
    only_ready = document.get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequest("ready must be true or false")
    registry = request.app[CONTEXT].registry
    entries = [_entry(servable) for servable in registry.servables()]
    unloaded = await _unloaded_entries(request.app[CONTEXT])
    entries += [entry for entry in unloaded if entry["name"] not in registry]
    if only_ready:
        entries = [entry for entry in entries if entry["state"] == "READY"]
    return json_response(orjson.dumps(sorted(entries, key=_name_and_version)) + b"\n")


async def load(request: web.Request) -> web.Response:
    """V2: load a model from the model store, or reload a loaded one without downtime."""
    name, context = request.match_info["model"], request.app[CONTEXT]
    controlplane, unloaded = context.controlplane, context.controlplane.unloaded
    parameters = _parameters(await read_object(request))
    audit.info("load %s", name[:128])
    if name in context.registry:
        if parameters:
            raise Conflict(
                f"model {name!r} is loaded; unload it first to load it with other parameters"
            )
        await controlplane.reload(name)
    elif name in unloaded.registrations and not parameters:
        await _noting(unloaded, name, controlplane.load_again(name))
    else:
        version, url = parameters.pop("version", None), parameters.pop("url", None)
        registration = controlplane.admit(
            None if url is None else str(url),
            parameters,
            name=name,
            version=None if version is None else str(version),
        )
        await _noting(unloaded, name, controlplane.register(registration))
    unloaded.forget(name)
    return json_response(orjson.dumps({"name": name, "load": True}) + b"\n")


async def unload(request: web.Request) -> web.Response:
    """V2: unload a model after its accepted requests have finished."""
    name = request.match_info["model"]
    parameters = _parameters(await read_object(request))
    # Models have no dependents here, so there is nothing more to unload.
    parameters.pop("unload_dependents", None)
    refuse_unknown(parameters)
    controlplane = request.app[CONTEXT].controlplane
    audit.info("unload %s", name[:128])
    await controlplane.unload(name)
    return json_response(orjson.dumps({"name": name, "unload": True}) + b"\n")


async def _noting(unloaded: Unloaded, name: str, work: Coroutine[Any, Any, Any]) -> None:
    """Load a model; record the reason for the index if it fails."""
    try:
        await work
    except MMSError as error:
        unloaded.note_failure(name, str(error))
        raise


def _entry(servable: Servable) -> dict[str, str]:
    state, reason = _STATES[servable.state], ""
    if servable.is_ready:
        # An idle-unloaded model is loaded again by its next request.
        state = "READY"
    elif servable.last_error is not None and servable.state is ServableState.FAILED:
        reason = str(servable.last_error)
    return {"name": servable.name, "version": servable.version, "state": state, "reason": reason}


async def _unloaded_entries(context: Context) -> list[dict[str, str]]:
    """Return the entries of unloaded models and of the model store's, loaded or not."""
    unloaded = context.controlplane.unloaded
    entries = [
        {"name": name, "version": r.version or "", "state": "UNAVAILABLE", "reason": "unloaded"}
        for name, registrations in unloaded.registrations.items()
        for r in registrations
    ]
    store = context.settings.model_store
    for name in await asyncio.to_thread(names_in, store) if store else ():
        if name not in unloaded.registrations:
            entries.append({"name": name, "state": "UNAVAILABLE", "reason": "not loaded"})
    for entry in entries:
        entry["reason"] = unloaded.failures.get(entry["name"], entry["reason"])
    return entries


def _name_and_version(entry: dict[str, str]) -> tuple[str, str]:
    return entry["name"], entry.get("version", "")


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object")
    for key in parameters:
        if key.startswith("file:") or key in ("config", "service"):
            raise InvalidRequest(
                f"the parameter {key[:100]!r} is not supported: a model's files come from its "
                "archive; pass settings such as batch_size by their names"
            )
    return dict(parameters)
