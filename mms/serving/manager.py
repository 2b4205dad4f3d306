"""Registers, replaces, scales and unregisters models while the server runs.

Whatever changes goes through here, be it asked for at start, by the management API, by a changed
file, or by the state kept from before a restart. A new version loads and warms up beside the old
one, becomes the default in one step, and the old one drains: no request meets a gap.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
import weakref
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mms.archive.fetch import Progress
from mms.archive.location import parse_location
from mms.archive.manifest import is_model_name
from mms.archive.reader import remove_unpacked
from mms.config import (
    MAX_WORKERS,
    Config,
    Layer,
    ModelConfig,
    ModelSettings,
    keys,
    request_limits,
    resolve,
    with_archive_defaults,
)
from mms.errors import ConfigError, Conflict, Forbidden, InvalidRequest, MMSError
from mms.serving.fetching import Fetching, stamp
from mms.serving.lifecycle import ServableState
from mms.serving.pool.child import reap_orphans
from mms.serving.pool.placement import Placement
from mms.serving.registry import DEFAULT_VERSION, Registry, Traffic
from mms.serving.servable import Servable
from mms.serving.state import State, read_state, write_state
from mms.serving.tasks import Tasks

logger = logging.getLogger("mms.manager")

HOUSEKEEPING_S = 0.5
#: What the requests of a version that is being replaced or removed get to finish, seconds.
_DRAIN_S = 60.0


@dataclass(slots=True)
class Registration:
    """What was asked for, so that it can be asked for again.

    Attributes:
        path: Where the archive is: a path or a URL.
        settings: As given, without the archive's defaults.
        origins: Where each setting came from, by its key.
        size: Number of workers if it was set by the management API.
        is_startup: Whether readiness waits for it.
        keep: Whether the state file keeps it: not what the command line names anyway.
        stamp: State of the files when they were read, to see changes.
    """

    path: str
    settings: ModelSettings
    origins: Mapping[str, str]
    size: int | None
    is_startup: bool
    keep: bool
    stamp: Any = None


class ModelManager:
    """All that changes which models there are.

    Args:
        config: The server's.
        registry: Where servables become known to the routes.
        workspace: Folder to unpack archives in.
        make_environment: Gives the environment of a worker with so many compute threads.
        placement: The GPUs of this machine.
        progress: Who is told how downloads go on.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        workspace: Path,
        make_environment: Callable[[int], Mapping[str, str]],
        placement: Placement | None = None,
        progress: Progress | None = None,
    ) -> None:
        self._config = config
        self.fetching = Fetching(config.server, progress)
        self._registry = registry
        self._workspace = workspace
        self._make_environment = make_environment
        self._registrations: dict[tuple[str, str], Registration] = {}
        # One of a name is there as long as somebody holds it or waits for it: a client may ask for
        # any number of names, known or not.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._hurry = asyncio.Event()
        self._placement = placement or Placement()
        self._tasks = Tasks()
        self._reloads = Tasks()
        # Of the state file, what is not registered yet or could not be.
        self._unrestored: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any] | None]] = {}
        self._housekeeper: asyncio.Task[None] | None = None

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What flags, environment and file set for every model."""
        return self._config.layers

    @property
    def expects_models(self) -> bool:
        """Whether the configuration names models, so that a server without any is not ready."""
        return bool(self._config.models)

    def registration(self, servable: Servable) -> Registration:
        """Return what a servable was registered with."""
        return self._registrations[servable.name, servable.version]

    async def start(self) -> None:
        """Load the models of the configuration, and those kept from before a restart.

        Raises:
            MMSError: A model of the configuration does not load. What was kept and does not load
                any more is logged, stays in the state file, and keeps nobody from being served.
        """
        # Before anything is registered, which writes the file again.
        state = self._recall()
        await self._gather(self.register_configured(model) for model in self._config.models)
        await self._restore(state)
        self._housekeeper = asyncio.create_task(self._housekeep())

    async def stop(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Drain and unload everything."""
        if self._housekeeper:
            self._housekeeper.cancel()
            await asyncio.gather(self._housekeeper, return_exceptions=True)
        await self._reloads.cancel()
        self._hurry.set()
        await self._tasks.finish()
        await asyncio.gather(
            *(servable.unload(timeout_s, hurry) for servable in self._registry.servables())
        )

    async def register_configured(self, model: ModelConfig) -> Servable:
        """Register a model of the configuration."""
        return await self.register(
            model.name,
            model.path,
            settings=model.settings,
            origins=self._config.origins,
            is_startup=True,
            keep=False,
        )

    async def register(
        self,
        name: str,
        path: str,
        *,
        fetched: Path | None = None,
        version: str | None = None,
        settings: ModelSettings,
        origins: Mapping[str, str],
        size: int | None = None,
        make_default: bool = True,
        is_startup: bool = False,
        keep: bool = True,
    ) -> Servable:
        """Load a model and make it known.

        Args:
            name: Name clients use.
            path: Archive file or folder, or a URL of one.
            fetched: What is there, if it has been fetched just now.
            version: Its version; without one, a new model gets "1".
            settings: How to serve it.
            origins: Where the settings came from; the archive fills in those from "default".
            size: Workers to start, 0 included; by default what the settings say.
            make_default: Whether it answers requests that name no version once it is loaded.
            is_startup: Whether the server is not ready without it.
            keep: Whether to register it again after a restart.

        Raises:
            Conflict: The name, or the version of it, is taken.
            MMSError: The archive is not valid or the model does not load. Nothing is registered
                then, and nothing is left on disk.
        """
        async with self._lock(name):
            self.check(name, version)
            version = version or DEFAULT_VERSION
            registration = Registration(
                path, settings, origins, size, is_startup, keep, stamp(path)
            )
            servable = await self._open(name, version, registration, fetched)
            # Known while it loads, so that asking for it gives 503 and not 404. A version beside
            # others is only known once it can answer.
            is_first = name not in self._registry
            self._registrations[name, version] = registration
            if is_first:
                self._registry.add(servable)
            try:
                if settings.load != "lazy":
                    await self._load(servable)
            except BaseException:
                if not is_startup:
                    del self._registrations[name, version]
                    if is_first:
                        self._registry.remove(servable)
                    await self._unload(servable, 0.0)
                raise
            if not is_first:
                self._registry.add(servable, make_default)
            self._unrestored.pop((name, version), None)
            self._save_state()
            return servable

    def check(self, name: str, version: str | None) -> None:
        """Refuse names and versions that cannot be registered now.

        Raises:
            InvalidRequest: One of them cannot stand in a URL.
            Conflict: The name, or the version of it, is taken.
        """
        for text, kind in ((name, "model name"), (version, "version")):
            if text is not None and not is_model_name(text):
                raise InvalidRequest(
                    f"{kind} {text[:100]!r} cannot stand in a URL; use letters, digits, '.', '_', "
                    "'-'"
                )
        if version is None and name in self._registry:
            raise Conflict(
                f"Model {name} is already registered; give a version to add one beside it"
            )
        version = version or DEFAULT_VERSION
        if (name, version) in self._registrations:
            raise Conflict(f"Version {version} of model {name} is already registered")

    async def replace(self, servable: Servable) -> Servable:
        """Load a version again from its files, beside the old one, and swap them.

        Raises:
            ModelNotFound: It has been unregistered.
            MMSError: The new one does not load; the old one goes on serving.
        """
        async with self._lock(servable.name):
            current = self._registry.get(servable.name, servable.version)
            # Another one may have taken its place while this waited.
            return current if current is not servable else await self._swap(servable)

    async def _swap(self, servable: Servable) -> Servable:
        """Load a version again as it is registered now, and swap them; its name is locked."""
        registration = self.registration(servable)
        registration.stamp = stamp(registration.path)
        fresh = await self._open(servable.name, servable.version, registration)
        fresh.metrics = servable.metrics
        try:
            # One that sleeps is not woken up by this.
            if servable.state is not ServableState.UNLOADED:
                await self._load(fresh)
        except BaseException:
            await self._unload(fresh, 0.0)
            raise
        self._registry.add(fresh)
        self._tasks.start(self._unload(servable, _DRAIN_S))
        return fresh

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Forget a model, or one version of it; what it has accepted is still answered.

        Raises:
            ModelNotFound: There is no such model or version.
            Conflict: The version is the default and others are left.
        """
        async with self._lock(name):
            model = self._registry.model(name)
            if version is not None and version == model.default and len(model.versions) > 1:
                raise Conflict(
                    f"version {version} is the default of model {name}; set another one first"
                )
            versions = [version] if version is not None else list(model.versions)
            for servable in [model.version(v) for v in versions]:
                self._registry.remove(servable)
                self._registrations.pop((name, servable.version), None)
                self._tasks.start(self._unload(servable, _DRAIN_S))
            self._save_state()

    def set_default(self, name: str, version: str) -> None:
        """Have a version answer requests that name none.

        Raises:
            ModelNotFound: There is no such model or version.
        """
        model = self._registry.model(name)
        model.version(version)
        model.default = version
        self._save_state()

    def split(self, name: str, traffic: Traffic) -> None:
        """Change how a model's traffic is split over its versions.

        Raises:
            ModelNotFound, InvalidRequest: It cannot be split so.
        """
        self._registry.model(name).split(traffic)
        self._save_state()

    async def scale(self, servable: Servable, size: int) -> None:
        """Change the number of workers, and wait for new ones.

        Raises:
            ModelNotFound: It has been unregistered.
            MMSError: A new one could not be started.
        """
        async with self._lock(servable.name):
            # Another one may have taken its place while this waited.
            current = self._registry.get(servable.name, servable.version)
            self.registration(current).size = size
            self._save_state()
            await current.resize(size)

    async def configure(self, servable: Servable, changes: Mapping[str, Any]) -> None:
        """Change settings of a servable that need no reload.

        Raises:
            ModelNotFound: It has been unregistered.
            ConfigError: A value is of the wrong type or range.
        """
        async with self._lock(servable.name):
            self._configure(self._registry.get(servable.name, servable.version), changes)

    def _configure(self, servable: Servable, changes: Mapping[str, Any]) -> None:
        values = {**dataclasses.asdict(servable.settings), **changes}
        settings, _ = resolve(ModelSettings, [Layer("request", values)])
        servable.configure(settings)
        registration = self.registration(servable)
        asked = {key: getattr(settings, key) for key in changes}
        registration.settings = dataclasses.replace(registration.settings, **asked)
        registration.origins = {
            **registration.origins,
            **{f"models.{servable.name}.{key}": "request" for key in changes},
        }
        self._save_state()

    async def apply(self, config: Config) -> list[str]:
        """Bring the start-up models to what a changed configuration says.

        Returns:
            What was done, a line each.

        Raises:
            ConfigError: It names no model at all, where there are some; nothing has changed then.
        """
        if not config.models and self.expects_models:
            # Most likely a file that is just being written.
            raise ConfigError("it names no model; stop the server to serve none")
        self._config = config
        done = []
        wanted = {model.name: model for model in config.models}
        for (name, version), registration in list(self._registrations.items()):
            if not registration.is_startup:
                continue
            model = wanted.pop(name, None)
            if model is None:
                done.append(await _said(name, "unregistered", self.unregister(name, version)))
            elif (model.path, model.settings) != (registration.path, registration.settings):
                changing = self._change(model, version)
                done.append(await _said(name, "loaded with its new settings", changing))
        for model in wanted.values():
            done.append(await _said(model.name, "registered", self._register_late(model)))
        return done

    async def _change(self, model: ModelConfig, version: str) -> None:
        """Load a start-up model with other settings; if that fails, it keeps those it has."""
        # Locked as a whole: a reload of its files, under way at the same moment, is waited for, and
        # neither takes the other's work for its own.
        async with self._lock(model.name):
            servable = self._registry.get(model.name, version)
            registration = self.registration(servable)
            old = dataclasses.replace(registration)
            registration.path, registration.settings = model.path, model.settings
            registration.origins = self._config.origins
            try:
                await self._swap(servable)
            except BaseException:
                registration.path, registration.settings = old.path, old.settings
                registration.origins = old.origins
                raise

    async def _register_late(self, model: ModelConfig) -> None:
        """Register a start-up model after the start: readiness waits for it once it is loaded."""
        servable = await self.register(
            model.name,
            model.path,
            settings=model.settings,
            origins=self._config.origins,
            keep=False,
        )
        self.registration(servable).is_startup = servable.is_startup = True

    async def _open(
        self, name: str, version: str, registration: Registration, fetched: Path | None = None
    ) -> Servable:
        location = registration.path
        if fetched is None:
            # What the state file keeps was asked for by others than the operator.
            fetched = await self.fetching.fetch(location, is_trusted=not registration.keep)
        archive = await self.fetching.open(
            location, fetched, self._workspace, registration.settings.handler
        )
        try:
            settings = with_archive_defaults(
                registration.settings, archive.manifest.serving, registration.origins, name
            )
            servable = Servable(
                name,
                version,
                archive,
                settings,
                self._config.server.max_response_bytes,
                self._make_environment,
                registration.size,
                self._placement,
                request_limits(self._config.server),
            )
        except BaseException:
            remove_unpacked(archive, self._workspace)
            raise
        servable.is_startup = registration.is_startup
        return servable

    async def _load(self, servable: Servable) -> None:
        extra = {"model": servable.name}
        logger.info("loading %s", servable.archive.source, extra=extra)
        try:
            await servable.load()
        except MMSError as error:
            error.args = (f"model {servable.name!r} ({servable.archive.source}): {error}",)
            raise
        seconds = servable.metrics.load_seconds
        logger.info(
            "ready with %d workers after %.2f s", len(servable.workers), seconds, extra=extra
        )

    async def _unload(self, servable: Servable, timeout_s: float) -> None:
        await servable.unload(timeout_s, self._hurry)
        remove_unpacked(servable.archive, self._workspace)

    async def _housekeep(self) -> None:
        watches, watched_at = self._config.server.watch, time.monotonic()
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            now = time.monotonic()
            try:
                reap_orphans()
                for servable in self._registry.servables():
                    servable.housekeep(now)
                if self._config.server.memory_budget:
                    await self._keep_within_budget()
                is_due = now - watched_at >= self._config.server.watch_interval
                if watches and is_due and not self._reloads:
                    watched_at = now
                    # Beside this: a load may take its time, or hang.
                    self._reloads.start(self._reload_changed())
            except Exception:
                # One failed look must not end all further ones.
                logger.exception("housekeeping failed")

    async def _keep_within_budget(self) -> None:
        """Put models to sleep, the one unused for longest first, until the rest fit."""
        servables = [s for s in self._registry.servables() if s.state is ServableState.READY]
        used = {servable: servable.memory_bytes() for servable in servables}
        excess = sum(used.values()) - self._config.server.memory_budget
        for servable in sorted(servables, key=lambda s: s.last_used_at):
            if excess <= 0:
                return
            if servable.settings.pinned or servable.queue_depth or servable.in_flight:
                continue
            logger.info("put to sleep to keep within memory_budget", extra={"model": servable.name})
            excess -= used[servable]
            await servable.sleep()

    async def _reload_changed(self) -> None:
        for servable in self._registry.servables():
            registration = self._registrations.get((servable.name, servable.version))
            if registration is None:
                continue
            current = await asyncio.to_thread(stamp, registration.path)
            # There is none of what is remote or gone.
            if current == registration.stamp or current is None:
                continue
            extra = {"model": servable.name}
            logger.info("%s has changed; reloading", registration.path, extra=extra)
            registration.stamp = current
            try:
                await self.replace(servable)
            except MMSError as error:
                detail = error.detail.traceback if error.detail else ""
                logger.error(
                    "the change cannot be loaded, so the old version goes on serving: %s%s",
                    error,
                    f"; {detail}" if detail else "",
                    extra=extra,
                )

    def _recall(self) -> State:
        """Read what the state file has kept, so that it is kept until it is registered again."""
        state = read_state(self._config.server.state_file)
        self._unrestored = {
            (entry["name"], entry["version"]): (entry, state.traffic.get(entry["name"]))
            for entry in state.models
        }
        return state

    async def _restore(self, state: State) -> None:
        """Register again what the state file had kept."""
        for key, (entry, _) in list(self._unrestored.items()):
            try:
                await self._restore_one(entry)
            except MMSError as error:
                # Kept in the file: what it lacks today may be back at the next start.
                logger.error("%s is not registered again: %s", entry["name"], error)
            else:
                self._unrestored.pop(key, None)
        for name, split in state.traffic.items():
            # A model that could not be registered again has no traffic to split.
            with contextlib.suppress(MMSError):
                model = self._registry.model(name)
                model.default = model.version(split["default"]).version
                model.split(Traffic(split["weights"], split["sticky_header"], split["shadow"]))
        if state.models:
            self._save_state()

    async def _restore_one(self, entry: Mapping[str, Any]) -> None:
        if (entry["name"], entry["version"]) in self._registrations:
            return
        known = {k: v for k, v in entry["settings"].items() if k in keys(ModelSettings)}
        if known.pop("service", ""):
            # The API takes none, so no entry of ours has one.
            logger.warning("%s: the service file in the state file is ignored", entry["name"])
        if (entry["size"] or 0) > MAX_WORKERS:
            raise ConfigError(f"state file: size must be at most {MAX_WORKERS}")
        self._check_place(entry["path"])
        settings, origins = resolve(
            ModelSettings, [Layer("state file", known)], f"models.{entry['name']}."
        )
        await self.register(
            entry["name"],
            entry["path"],
            version=entry["version"],
            settings=settings,
            origins=origins,
            size=entry["size"],
            make_default=False,
        )

    def _check_place(self, location: str) -> None:
        """Refuse an archive that could not be registered by the API, as all in the state file were.

        Raises:
            Forbidden: It is neither in the model store nor permitted by `allowed_urls`.
        """
        path = parse_location(location).path
        if path is None:
            # Asked when it is fetched.
            return
        store, real = self._config.server.model_store, os.path.realpath(path)
        if store and Path(real).is_relative_to(os.path.realpath(store)):
            return
        if not self.fetching.policy.patterns:
            raise Forbidden(f"{location} is not in the model store")
        self.fetching.policy.check_url(f"file://{real}")

    def _save_state(self) -> None:
        defaults = dataclasses.asdict(ModelSettings())
        models = [
            {
                "name": name,
                "version": version,
                "path": _lasting(registration.path),
                "size": registration.size,
                "settings": {
                    key: value
                    for key, value in dataclasses.asdict(registration.settings).items()
                    # One set to what is the default still outweighs the archive's.
                    if value != defaults[key]
                    or registration.origins.get(f"models.{name}.{key}", "default") != "default"
                },
            }
            for (name, version), registration in self._registrations.items()
            if registration.keep
        ]
        traffic = {
            model.name: {
                "default": model.default,
                "weights": dict(model.traffic.weights),
                "sticky_header": model.traffic.sticky_header,
                "shadow": model.traffic.shadow,
            }
            for model in self._registry.models()
        }
        models += [entry for entry, _ in self._unrestored.values()]
        traffic |= {
            entry["name"]: split
            for entry, split in self._unrestored.values()
            if split and entry["name"] not in traffic
        }
        write_state(self._config.server.state_file, State(models, traffic))

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    async def _gather(self, coroutines: Any) -> None:
        """Run all to their end; at the first failure, cancel the others and raise it."""
        tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _lasting(location: str) -> str:
    """Return a location so that it holds in whatever folder the server is started next."""
    return location if "://" in location else os.path.abspath(location)


async def _said(name: str, done: str, work: Awaitable[Any]) -> str:
    """Do something for one model and say what came of it: one that fails stops no others."""
    try:
        await work
    except MMSError as error:
        logger.error("%s: %s", name, error)
        return f"{name}: failed"
    return f"{name}: {done}"
