"""The model repository extension of the Open Inference Protocol V2, on the management port.

Loading is registering by the name of an archive in the model store, unloading is unregistering.
What was unloaded here is loaded again as it was, wherever it came from.
"""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import Any

import orjson
from aiohttp import web

from mms.archive.manifest import is_model_name
from mms.archive.reader import ARCHIVE_SUFFIXES, find_archives
from mms.config.layers import Layer, keys, resolve
from mms.config.settings import ModelSettings
from mms.errors import Conflict, InvalidRequest, MMSError, ModelNotFound
from mms.fetch.admission import admit
from mms.http.body import read_body
from mms.http.context import CONTEXT
from mms.http.management import MANAGER, audit
from mms.http.response import json_response
from mms.serving.controlplane import Registration
from mms.serving.lifecycle import ServableState
from mms.serving.servable import Servable

_MAX_BODY_BYTES = 1 << 20
_BODY_TIMEOUT_S = 30.0
#: Names that could not be loaded, and what is remembered of why: callers choose both.
_MOST_FAILURES = 1000
_MOST_REASON_CHARS = 2000
_STATES = {
    ServableState.LOADING: "LOADING",
    ServableState.READY: "READY",
    ServableState.DRAINING: "UNLOADING",
    ServableState.UNLOADED: "UNAVAILABLE",
    ServableState.FAILED: "UNAVAILABLE",
}


@dataclasses.dataclass
class Unloaded:
    """What is not loaded, and why.

    Attributes:
        registrations: (version, registration) of what was unloaded by name, the default first.
        failures: Why a name could not be loaded.
    """

    registrations: dict[str, list[tuple[str, Registration]]] = dataclasses.field(
        default_factory=dict
    )
    failures: dict[str, str] = dataclasses.field(default_factory=dict)

    def note_failure(self, name: str, reason: str) -> None:
        """Remember why a name could not be loaded; the oldest reasons are forgotten."""
        self.failures.pop(name, None)
        self.failures[name] = reason[:_MOST_REASON_CHARS]
        while len(self.failures) > _MOST_FAILURES:
            del self.failures[next(iter(self.failures))]


_UNLOADED = web.AppKey("unloaded", Unloaded)


def add_routes(app: web.Application) -> None:
    """Add the routes of this module."""
    app[_UNLOADED] = Unloaded()
    router = app.router
    router.add_post("/v2/repository/index", index, name="v2_index")
    router.add_post("/v2/repository/models/{model}/load", load, name="v2_load")
    router.add_post("/v2/repository/models/{model}/unload", unload, name="v2_unload")


async def index(request: web.Request) -> web.Response:
    """V2: list the models, loaded or in the model store, with their states."""
    document = await _document(request)
    only_ready = document.get("ready", False)
    if not isinstance(only_ready, bool):
        raise InvalidRequest("ready must be true or false")
    registry = request.app[CONTEXT].registry
    entries = [_entry(servable) for servable in registry.servables()]
    entries += [
        entry for entry in await _unloaded_entries(request.app) if entry["name"] not in registry
    ]
    if only_ready:
        entries = [entry for entry in entries if entry["state"] == "READY"]
    return json_response(orjson.dumps(sorted(entries, key=_name_and_version)) + b"\n")


async def load(request: web.Request) -> web.Response:
    """V2: load a model of the model store, or again one that is loaded, without a gap."""
    name, manager = request.match_info["model"], request.app[MANAGER]
    parameters = _parameters(await _document(request))
    registry, unloaded = request.app[CONTEXT].registry, request.app[_UNLOADED]
    audit.info("load %s", name[:128])
    if name in registry:
        if parameters:
            raise Conflict(
                f"model {name!r} is loaded; unload it first to load it with other parameters"
            )
        for servable in list(registry.model(name).versions.values()):
            await manager.replace(servable)
    elif name in unloaded.registrations and not parameters:
        await _restore(request.app, name)
    else:
        await _register(request.app, name, parameters)
    unloaded.registrations.pop(name, None)
    unloaded.failures.pop(name, None)
    return json_response(orjson.dumps({"name": name, "load": True}) + b"\n")


async def unload(request: web.Request) -> web.Response:
    """V2: unload a model; what it has accepted is still answered."""
    name, manager = request.match_info["model"], request.app[MANAGER]
    parameters = _parameters(await _document(request))
    # Nothing depends on a model here, so there is nothing more to unload.
    parameters.pop("unload_dependents", None)
    _refuse_unknown(parameters)
    model = request.app[CONTEXT].registry.model(name)
    versions = sorted(model.versions.values(), key=lambda s: s.version != model.default)
    registrations = [(s.version, dataclasses.replace(manager.registration(s))) for s in versions]
    audit.info("unload %s", name)
    await manager.unregister(name)
    request.app[_UNLOADED].registrations[name] = registrations
    return json_response(orjson.dumps({"name": name, "unload": True}) + b"\n")


async def _register(app: web.Application, name: str, parameters: dict[str, Any]) -> None:
    """Load a model that is not known, from the model store."""
    manager = app[MANAGER]
    store = app[CONTEXT].settings.model_store
    version = parameters.pop("version", None)
    version = None if version is None else str(version)
    manager.check(name, version)
    url = parameters.pop("url", None)
    # Files may not be named from here: they run as the server.
    known = [key for key in keys(ModelSettings) if key != "service"]
    layer = Layer("request", {key: parameters.pop(key) for key in known if key in parameters})
    _refuse_unknown(parameters)
    settings, origins = resolve(ModelSettings, [layer, *manager.layers])
    policy = manager.fetching.policy
    path = admit(_file_name(name, store) if url is None else str(url), store, policy)
    try:
        await manager.register(name, str(path), version=version, settings=settings, origins=origins)
    except MMSError as error:
        app[_UNLOADED].note_failure(name, str(error))
        raise


async def _restore(app: web.Application, name: str) -> None:
    """Load what was unloaded, all its versions or none."""
    manager, unloaded = app[MANAGER], app[_UNLOADED]
    try:
        for version, registration in unloaded.registrations[name]:
            servable = await manager.register(
                name,
                registration.path,
                version=version,
                settings=registration.settings,
                origins=registration.origins,
                size=registration.size,
                make_default=False,
                keep=registration.keep,
            )
            # Only now: one that does not load must not stay as a model that has failed.
            manager.registration(servable).is_startup = registration.is_startup
            servable.is_startup = registration.is_startup
    except BaseException as error:
        if isinstance(error, MMSError):
            unloaded.note_failure(name, str(error))
        if name in app[CONTEXT].registry:
            await manager.unregister(name)
        raise


def _entry(servable: Servable) -> dict[str, str]:
    state, reason = _STATES[servable.state], ""
    if servable.is_ready:
        # One that sleeps is woken up by its next request.
        state = "READY"
    elif servable.last_error is not None and servable.state is ServableState.FAILED:
        reason = str(servable.last_error)
    return {"name": servable.name, "version": servable.version, "state": state, "reason": reason}


async def _unloaded_entries(app: web.Application) -> list[dict[str, str]]:
    """Return what was unloaded, and what lies in the model store, loaded or not."""
    unloaded = app[_UNLOADED]
    entries = [
        {"name": name, "version": version, "state": "UNAVAILABLE", "reason": "unloaded"}
        for name, registrations in unloaded.registrations.items()
        for version, _ in registrations
    ]
    store = app[CONTEXT].settings.model_store
    for name in await asyncio.to_thread(_names_in, store) if store else ():
        if name not in unloaded.registrations:
            entries.append({"name": name, "state": "UNAVAILABLE", "reason": "not loaded"})
    for entry in entries:
        entry["reason"] = unloaded.failures.get(entry["name"], entry["reason"])
    return entries


def _names_in(store: str) -> list[str]:
    """Return the names by which the archives of the model store can be loaded."""
    names = set()
    try:
        for path in Path(store).iterdir():
            if path.suffix in ARCHIVE_SUFFIXES and path.is_file():
                names.add(path.stem)
            elif path.is_dir() and find_archives(path) == [path]:
                names.add(path.name)
    except OSError:
        # Gone, or not ours to read: what is loaded can still be told.
        return []
    return sorted(name for name in names if is_model_name(name))


def _file_name(name: str, store: str) -> str:
    """Return the file or folder of the model store that has a model's name.

    Raises:
        ModelNotFound: There is none.
    """
    candidates = [f"{name}{suffix}" for suffix in ARCHIVE_SUFFIXES] + [name]
    for candidate in candidates:
        if not store or (Path(store) / candidate).exists():
            return candidate
    raise ModelNotFound(
        f"Model not found in model store: {name}; looked for {', '.join(candidates)}"
    )


def _name_and_version(entry: dict[str, str]) -> tuple[str, str]:
    return entry["name"], entry.get("version", "")


def _parameters(document: dict[str, Any]) -> dict[str, Any]:
    parameters = document.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise InvalidRequest("parameters must be an object")
    for key in parameters:
        if key.startswith("file:") or key == "config":
            raise InvalidRequest(
                f"the parameter {key[:100]!r} is not offered: a model's files come from its "
                "archive; give settings such as batch_size by their names"
            )
    return dict(parameters)


def _refuse_unknown(parameters: dict[str, Any]) -> None:
    for key in parameters:
        raise InvalidRequest(f"unknown parameter {key[:100]!r}")


async def _document(request: web.Request) -> dict[str, Any]:
    """Return the JSON object of a body; without one, an empty object."""
    chunks, size = await read_body(request, _MAX_BODY_BYTES, _BODY_TIMEOUT_S)
    if not size:
        return {}
    try:
        document = orjson.loads(b"".join(chunks))
    except orjson.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    if not isinstance(document, dict):
        raise InvalidRequest("the body must be a JSON object")
    return document
