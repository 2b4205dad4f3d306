"""The control plane: registrations in, a registry of servables out.

Every change of the set of models goes through here, whether requested at start-up, by an API, by a
changed file, or by the state file after a restart. A new version loads and warms up beside the old
one, becomes the default atomically, and the old one drains: there is no downtime.
"""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mms.archive.names import NAME_RULE, is_model_name
from mms.config.build import Config, ModelConfig
from mms.config.layers import Layer, keys, resolve
from mms.config.settings import ModelSettings, ServerSettings
from mms.errors import Conflict, Draining, Forbidden, InvalidRequest
from mms.fetch.admission import Policy, admit
from mms.fetch.download import Progress
from mms.serving.archives import Fetching
from mms.serving.builder import Builder
from mms.serving.lifecycle import ServableState
from mms.serving.model_store import find_archive
from mms.serving.registration import Registration, Trust
from mms.serving.registry import DEFAULT_VERSION, Registry, Traffic
from mms.serving.saved import Saved
from mms.serving.servable import Servable
from mms.serving.tasks import Tasks
from mms.serving.unloaded import Unloaded

#: Time that the requests of a replaced or removed version have to finish, seconds.
_DRAIN_S = 60.0


class ControlPlane:
    """Registers, replaces, changes and unregisters models.

    Args:
        config: The server's.
        registry: The registry of servables that the routes use.
        make_environment: Returns the environment of a worker for a number of compute threads.
        progress: Receives the progress of downloads.

    Attributes:
        config: The current configuration.
        saved: The contents of the state file.
        unloaded: Models that were unloaded by name and may be loaded again.
    """

    def __init__(
        self,
        config: Config,
        registry: Registry,
        make_environment: Callable[[int], Mapping[str, str]],
        progress: Progress | None = None,
    ) -> None:
        self.config = config
        self._registry = registry
        self._make_environment = make_environment
        self._fetching = Fetching(config.server, progress)
        self._opened: Builder | None = None
        self._registrations: dict[tuple[str, str], Registration] = {}
        # A name's lock exists only while it is held or waited for: clients may request any number
        # of names, known or not.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._tasks = Tasks()
        self.saved = Saved(config.server.state_file)
        self.unloaded = Unloaded()

    @property
    def policy(self) -> Policy:
        """The policy on what callers may fetch."""
        return self._fetching.policy

    @property
    def settings(self) -> ServerSettings:
        """The server's current settings."""
        return self.config.server

    @property
    def expects_models(self) -> bool:
        """Whether the configuration names models, so that a server without models is not ready."""
        return bool(self.config.models)

    @property
    def default_workers(self) -> int:
        """The number of workers that the configuration sets for every model; 0 if it sets none."""
        return resolve(ModelSettings, list(self.config.layers))[0].workers

    def registration(self, servable: Servable) -> Registration:
        """Return the registration of a servable."""
        return self._registrations[servable.name, servable.version]

    def registrations(self) -> list[Registration]:
        """Return all registrations."""
        return list(self._registrations.values())

    def has(self, name: str, version: str) -> bool:
        """Return whether a version is registered."""
        return (name, version) in self._registrations

    def startup_servables(self) -> list[Servable]:
        """Return the servables that readiness waits for."""
        return [
            servable
            for servable in self._registry.servables()
            if (registration := self._registrations.get((servable.name, servable.version)))
            and registration.is_startup
        ]

    def open(self, workspace: Path) -> None:
        """Accept registrations from now on.

        Args:
            workspace: Folder to unpack archives in.
        """
        self._opened = Builder(self._fetching, self._make_environment, workspace)

    @property
    def _builder(self) -> Builder:
        if self._opened is None:
            raise Draining("the server is starting or stopping", 1.0)
        return self._opened

    async def stop(self, timeout_s: float, hurry: asyncio.Event) -> None:
        """Drain and unload everything."""
        if self._opened:
            self._opened.hurry()
        await self._tasks.finish()
        await asyncio.gather(
            *(servable.unload(timeout_s, hurry) for servable in self._registry.servables())
        )

    def admit(
        self,
        url: str | None,
        values: Mapping[str, Any],
        *,
        name: str | None = None,
        version: str | None = None,
        size: int | None = None,
    ) -> Registration:
        """Return the registration that a caller requests, checked without reading its archive.

        Args:
            url: Location of the archive; None means the model store's archive of that name.
            values: Settings of the model, as received.
            name: Name clients use; None means the name in the archive.
            version: Its version.
            size: Number of workers to start, possibly 0; None means as set.

        Raises:
            Forbidden: The archive may not be registered by callers.
            ModelNotFound: The model store has no such archive.
            ConfigError: A value has the wrong type or is out of range.
            InvalidRequest, Conflict: As for `check`.
        """
        if name is not None:
            self.check(name, version)
        if "service" in values:
            # It would run with the server's rights.
            raise Forbidden("a service file outside the archive is not allowed here")
        for key in values:
            if key not in keys(ModelSettings):
                raise InvalidRequest(f"unknown parameter {str(key)[:100]!r}")
        settings, origins = resolve(ModelSettings, [Layer("request", values), *self.config.layers])
        store = self.settings.model_store
        place = find_archive(name or "", store) if url is None else url
        location = admit(place, store, self.policy)
        return Registration(name or "", location, settings, origins, Trust.CALLER, version, size)

    async def identify(self, registration: Registration) -> tuple[Registration, Path]:
        """Fetch a registration's archive, and read its manifest.

        Returns:
            The registration with its name, and the fetched file or folder.

        Raises:
            ArchiveError: It is not valid, or cannot be fetched.
            InvalidRequest, Conflict: As for `check`, with the name in the archive.
        """
        fetched = await self._builder.fetch(registration)
        handler = registration.settings.handler
        manifest = await self._fetching.read_manifest(registration.path, fetched, handler)
        if not registration.name:
            registration = replace(registration, name=manifest.model_name)
            self.check(registration.name, registration.version)
        return registration, fetched

    def check(self, name: str, version: str | None) -> None:
        """Refuse names and versions that cannot be registered now.

        Raises:
            InvalidRequest: One of them cannot be used in a URL.
            Conflict: The name, or the version of it, is taken.
        """
        for text, kind in ((name, "model name"), (version, "version")):
            if text is not None and not is_model_name(text):
                raise InvalidRequest(f"{kind} {text[:100]!r} cannot be used in a URL: {NAME_RULE}")
        if version is None and name in self._registry:
            raise Conflict(f"Model {name} is already registered; pass a version to add another one")
        version = version or DEFAULT_VERSION
        if (name, version) in self._registrations:
            raise Conflict(f"Version {version} of model {name} is already registered")

    async def register(
        self,
        registration: Registration,
        fetched: Path | None = None,
        make_default: bool = True,
        stays: bool = False,
    ) -> Servable:
        """Load a model and register it; readiness depends on it from then on if it is to.

        Args:
            registration: The registration.
            fetched: The fetched file or folder, if it has just been fetched.
            make_default: Whether it becomes the default version once it is loaded.
            stays: Whether it stays registered, and readiness depends on it, if it does not load.

        Raises:
            Conflict: The name, or the version of it, is taken.
            MMSError: The archive is not valid or the model does not load. Unless it stays, nothing
                is registered then, and nothing is left on disk.
        """
        name, builder = registration.name, self._builder
        async with self._lock(name):
            self.check(name, registration.version)
            version = await builder.version_of(registration) or DEFAULT_VERSION
            registration, key = replace(registration, version=version), (name, version)
            servable = await builder.open(registration, version, self.settings, fetched)
            # A new model is registered while it loads, so that requests get 503 and not 404. A
            # further version is only registered once it can serve.
            is_first = name not in self._registry
            self._registrations[key] = (
                registration if stays else replace(registration, is_startup=False)
            )
            if is_first:
                self._registry.add(servable)
            try:
                if registration.settings.load != "lazy":
                    await builder.load(servable)
            except BaseException:
                if not stays:
                    del self._registrations[key]
                    if is_first:
                        self._registry.remove(servable)
                    await builder.unload(servable, 0.0)
                raise
            if not is_first:
                self._registry.add(servable, make_default)
            self._registrations[key] = registration
            self.saved.settle(*key)
            self.save()
            return servable

    async def replace(self, servable: Servable) -> Servable:
        """Reload a version from its files, beside the old one, and swap them.

        Raises:
            ModelNotFound: It has been unregistered.
            MMSError: The new one does not load; the old one continues to serve.
        """
        async with self._lock(servable.name):
            current = self._registry.get(servable.name, servable.version)
            # Another one may have taken its place while this waited.
            if current is not servable:
                return current
            return await self._swap(servable, self.registration(servable))

    async def _swap(self, servable: Servable, registration: Registration) -> Servable:
        """Load a version from a registration, and swap them; the caller holds the name's lock."""
        key, builder = (servable.name, servable.version), self._builder
        fresh = await builder.open(
            registration, servable.version, self.settings, metrics=servable.metrics
        )
        try:
            # An idle-unloaded model stays unloaded.
            if servable.state is not ServableState.UNLOADED:
                await builder.load(fresh)
        except BaseException:
            await builder.unload(fresh, 0.0)
            raise
        self._registrations[key] = registration
        self._registry.add(fresh)
        self._tasks.start(builder.unload(servable, _DRAIN_S))
        return fresh

    async def unregister(self, name: str, version: str | None = None) -> None:
        """Unregister a model, or one version of it, after its accepted requests have finished.

        Raises:
            ModelNotFound: The model or version does not exist.
            Conflict: The version is the default and others are left.
        """
        async with self._lock(name):
            model = self._registry.model(name)
            if version is not None and version == model.default and len(model.versions) > 1:
                raise Conflict(
                    f"version {version} is the default of model {name}; set another default first"
                )
            versions = [version] if version is not None else list(model.versions)
            for servable in [model.version(v) for v in versions]:
                self._registry.remove(servable)
                self._registrations.pop((name, servable.version), None)
                self._tasks.start(self._builder.unload(servable, _DRAIN_S))
            self.save()

    async def reload(self, name: str) -> None:
        """Reload all versions of a model from their files, without downtime.

        Raises:
            ModelNotFound: The model does not exist.
            MMSError: One of them does not load; its old servable continues to serve.
        """
        for servable in list(self._registry.model(name).versions.values()):
            await self.replace(servable)

    async def unload(self, name: str) -> None:
        """Unregister a model, and keep its registrations for `load_again`.

        Raises:
            ModelNotFound: The model does not exist.
        """
        model = self._registry.model(name)
        versions = sorted(model.versions.values(), key=lambda s: s.version != model.default)
        registrations = [self.registration(servable) for servable in versions]
        await self.unregister(name)
        self.unloaded.registrations[name] = registrations

    async def load_again(self, name: str) -> None:
        """Load a model that `unload` has unloaded, as it was: all its versions or none.

        Raises:
            MMSError: One of them does not load.
        """
        try:
            for registration in self.unloaded.registrations[name]:
                await self.register(registration, make_default=False)
        except BaseException:
            if name in self._registry:
                await self.unregister(name)
            raise

    def set_default(self, name: str, version: str) -> None:
        """Set the default version of a model.

        Raises:
            ModelNotFound: The model or version does not exist.
        """
        model = self._registry.model(name)
        model.version(version)
        model.default = version
        self.save()

    def split(self, name: str, traffic: Traffic) -> None:
        """Change how a model's traffic is split between its versions.

        Raises:
            ModelNotFound, InvalidRequest: A version does not exist, or the weights are invalid.
        """
        self._registry.model(name).split(traffic)
        self.save()

    async def scale(self, servable: Servable, size: int) -> None:
        """Change the number of workers, and wait until new ones are ready.

        Raises:
            ModelNotFound: It has been unregistered.
            MMSError: A new worker could not be started.
        """
        async with self._lock(servable.name):
            # Another one may have taken its place while this waited.
            current = self._registry.get(servable.name, servable.version)
            self._amend(current, replace(self.registration(current), size=size))
            await current.resize(size)

    async def configure(self, servable: Servable, changes: Mapping[str, Any]) -> None:
        """Change settings of a servable that need no reload.

        Raises:
            ModelNotFound: It has been unregistered.
            ConfigError: A value has the wrong type or is out of range.
        """
        async with self._lock(servable.name):
            current = self._registry.get(servable.name, servable.version)
            values = {**dataclasses.asdict(current.settings), **changes}
            settings, _ = resolve(ModelSettings, [Layer("request", values)])
            current.configure(settings)
            registration = self.registration(current)
            self._amend(current, registration.with_settings(settings, changes, "request"))

    def _amend(self, servable: Servable, registration: Registration) -> None:
        self._registrations[servable.name, servable.version] = registration
        self.save()

    async def change(self, name: str, version: str, model: ModelConfig) -> None:
        """Replace a version according to the current configuration; on failure, keep the old one.

        Raises:
            ModelNotFound: The version does not exist.
            MMSError: It does not load; the old one continues to serve.
        """
        # Locked as a whole: a concurrent reload of its files is waited for, and neither takes the
        # other's result for its own.
        async with self._lock(name):
            servable = self._registry.get(name, version)
            registration = replace(
                self.registration(servable),
                path=model.path,
                settings=model.settings,
                origins=model.origins,
            )
            await self._swap(servable, registration)

    def path_of(self, servable: Servable) -> str | None:
        """Return the location of a servable's archive; None if it is no longer registered."""
        registration = self._registrations.get((servable.name, servable.version))
        return registration.path if registration else None

    def save(self) -> None:
        """Write the state file."""
        self.saved.save(self._registrations.values(), self._registry.models())

    def _lock(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock
