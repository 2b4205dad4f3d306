"""The control plane: registrations in, a registry of servables out.

Whatever changes which models there are goes through here, be it asked for at start, by an API, by
a changed file, or by the state kept from before a restart. A new version loads and warms up beside
the old one, becomes the default in one step, and the old one drains: no request meets a gap.
"""

from __future__ import annotations

import asyncio
import dataclasses
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mms.archive.manifest import is_model_name
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

#: What the requests of a version that is being replaced or removed get to finish, seconds.
_DRAIN_S = 60.0


class ControlPlane:
    """All that changes which models there are.

    Args:
        config: The server's.
        registry: Where servables become known to the routes.
        make_environment: Gives the environment of a worker with so many compute threads.
        progress: Who is told how downloads go on.

    Attributes:
        config: The configuration, as it was read last.
        saved: What the state file keeps.
        unloaded: What was unloaded by name and may be loaded again.
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
        # One of a name is there as long as somebody holds it or waits for it: a client may ask for
        # any number of names, known or not.
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()
        self._tasks = Tasks()
        self.saved = Saved(config.server.state_file)
        self.unloaded = Unloaded()

    @property
    def policy(self) -> Policy:
        """What callers may have fetched."""
        return self._fetching.policy

    @property
    def settings(self) -> ServerSettings:
        """The server's settings, as they were read last."""
        return self.config.server

    @property
    def expects_models(self) -> bool:
        """Whether the configuration names models, so that a server without any is not ready."""
        return bool(self.config.models)

    def registration(self, servable: Servable) -> Registration:
        """Return what a servable was registered with."""
        return self._registrations[servable.name, servable.version]

    def registrations(self) -> list[Registration]:
        """Return all registrations."""
        return list(self._registrations.values())

    def has(self, name: str, version: str) -> bool:
        """Whether a version is registered."""
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
        """Take registrations from now on.

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
        """Return the registration that a caller asks for, checked without looking at its archive.

        Args:
            url: Where the archive is; None is what the model store has under the name.
            values: Settings of the model, as they were sent.
            name: Name clients use; None is the one that the archive has.
            version: Its version.
            size: Workers to start, 0 included; by default what the settings say.

        Raises:
            Forbidden: The archive may not be registered by callers.
            ModelNotFound: The model store has no such archive.
            ConfigError: A value is of the wrong type or range.
            InvalidRequest, Conflict: As `check`.
        """
        if name is not None:
            self.check(name, version)
        store = self.settings.model_store
        place = find_archive(name or "", store) if url is None else url
        location = admit(place, store, self.policy)
        if "service" in values:
            # It would run as the server.
            raise Forbidden("service files outside archives cannot be named here")
        for key in values:
            if key not in keys(ModelSettings):
                raise InvalidRequest(f"unknown parameter {str(key)[:100]!r}")
        settings, origins = resolve(ModelSettings, [Layer("request", values), *self.config.layers])
        return Registration(name or "", location, settings, origins, Trust.CALLER, version, size)

    async def identify(self, registration: Registration) -> tuple[Registration, Path]:
        """Fetch a registration's archive, and read its manifest.

        Returns:
            The registration with its name, and what is at its path.

        Raises:
            ArchiveError: It is not valid, or cannot be fetched.
            InvalidRequest, Conflict: As `check`, for the name that the archive has.
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

    async def register(
        self,
        registration: Registration,
        fetched: Path | None = None,
        make_default: bool = True,
        stays: bool = False,
    ) -> Servable:
        """Load a model and make it known; once it serves, readiness waits for it if it is to.

        Args:
            registration: What to serve and how.
            fetched: What is at its path, if it has been fetched just now.
            make_default: Whether it answers requests that name no version once it is loaded.
            stays: Whether it is known, and readiness waits for it, even if it does not load.

        Raises:
            Conflict: The name, or the version of it, is taken.
            MMSError: The archive is not valid or the model does not load. Unless it stays, nothing
                is registered then, and nothing is left on disk.
        """
        name, builder = registration.name, self._builder
        async with self._lock(name):
            self.check(name, registration.version)
            version = registration.version or DEFAULT_VERSION
            registration, key = replace(registration, version=version), (name, version)
            servable = await builder.open(registration, version, self.settings, fetched)
            # Known while it loads, so that asking for it gives 503 and not 404. A version beside
            # others is only known once it can answer.
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
        """Load a version again from its files, beside the old one, and swap them.

        Raises:
            ModelNotFound: It has been unregistered.
            MMSError: The new one does not load; the old one goes on serving.
        """
        async with self._lock(servable.name):
            current = self._registry.get(servable.name, servable.version)
            # Another one may have taken its place while this waited.
            if current is not servable:
                return current
            return await self._swap(servable, self.registration(servable))

    async def _swap(self, servable: Servable, registration: Registration) -> Servable:
        """Load a version as a registration says, and swap them; its name is locked."""
        key, builder = (servable.name, servable.version), self._builder
        fresh = await builder.open(
            registration, servable.version, self.settings, metrics=servable.metrics
        )
        try:
            # One that sleeps is not woken up by this.
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
                self._tasks.start(self._builder.unload(servable, _DRAIN_S))
            self.save()

    async def reload(self, name: str) -> None:
        """Load all versions of a model again from their files, without a gap.

        Raises:
            ModelNotFound: There is no such model.
            MMSError: One of them does not load; it goes on serving as it was.
        """
        for servable in list(self._registry.model(name).versions.values()):
            await self.replace(servable)

    async def unload(self, name: str) -> None:
        """Unregister a model, and remember it, so that `load_again` brings it back.

        Raises:
            ModelNotFound: There is no such model.
        """
        model = self._registry.model(name)
        versions = sorted(model.versions.values(), key=lambda s: s.version != model.default)
        registrations = [self.registration(servable) for servable in versions]
        await self.unregister(name)
        self.unloaded.registrations[name] = registrations

    async def load_again(self, name: str) -> None:
        """Load what `unload` has unloaded, as it was: all its versions or none.

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
        """Have a version answer requests that name none.

        Raises:
            ModelNotFound: There is no such model or version.
        """
        model = self._registry.model(name)
        model.version(version)
        model.default = version
        self.save()

    def split(self, name: str, traffic: Traffic) -> None:
        """Change how a model's traffic is split over its versions.

        Raises:
            ModelNotFound, InvalidRequest: It cannot be split so.
        """
        self._registry.model(name).split(traffic)
        self.save()

    async def scale(self, servable: Servable, size: int) -> None:
        """Change the number of workers, and wait for new ones.

        Raises:
            ModelNotFound: It has been unregistered.
            MMSError: A new one could not be started.
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
            ConfigError: A value is of the wrong type or range.
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
        """Load a version as the configuration has it now; if that fails, it stays as it is.

        Raises:
            ModelNotFound: There is no such version.
            MMSError: It does not load so; the old one goes on serving.
        """
        # Locked as a whole: a reload of its files, under way at the same moment, is waited for, and
        # neither takes the other's work for its own.
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
        """Return where a servable's archive is; None if it is not registered any more."""
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
