"""Register the models of the configuration and of the state file."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from mms.config.build import Config, ModelConfig
from mms.errors import ConfigError, MMSError
from mms.fetch.admission import check_place
from mms.serving.controlplane import ControlPlane
from mms.serving.registration import Registration, Trust
from mms.serving.registry import Registry
from mms.serving.saved import from_saved, to_traffic
from mms.serving.state import State

logger = logging.getLogger("mms.controlplane")


class Startup:
    """Registers the start-up models, and applies changes of the configuration.

    Args:
        controlplane: Registers models.
        registry: The registered models.
    """

    def __init__(self, controlplane: ControlPlane, registry: Registry) -> None:
        self._controlplane = controlplane
        self._registry = registry

    async def start(self) -> None:
        """Load the models of the configuration and of the state file.

        Raises:
            MMSError: A model of the configuration does not load, and `keep_going` is off. An
                entry of the state file that does not load is logged, stays in the file, and does
                not stop the server.
        """
        # Before any registration, which rewrites the file.
        state = self._controlplane.saved.recall()
        await _gather(self._load(model) for model in self._controlplane.config.models)
        await self._restore(state)

    async def _load(self, model: ModelConfig) -> None:
        keep_going = self._controlplane.settings.keep_going
        try:
            await self._controlplane.register(_configured(model), stays=not keep_going)
        except MMSError as error:
            if not keep_going:
                raise
            logger.warning("%s does not load and is left out: %s", model.name, error)

    async def apply(self, config: Config) -> list[str]:
        """Apply a changed configuration to the start-up models.

        Returns:
            The changes made, a line each.

        Raises:
            ConfigError: It names no models while some are registered; nothing has changed then.
        """
        if not config.models and self._controlplane.expects_models:
            # Most likely the file is just being written.
            raise ConfigError("it names no model; stop the server to serve none")
        controlplane = self._controlplane
        controlplane.config = config
        done = []
        wanted = {model.name: model for model in config.models}
        for registration in controlplane.registrations():
            if not registration.is_startup:
                continue
            name, version = registration.name, registration.version or ""
            model = wanted.pop(name, None)
            if model is None:
                removing = controlplane.unregister(name, version)
                done.append(await _said(name, "unregistered", removing))
            elif (model.path, model.settings) != (registration.path, registration.settings):
                changing = controlplane.change(name, version, model)
                done.append(await _said(name, "loaded with its new settings", changing))
        for model in wanted.values():
            registering = controlplane.register(_configured(model))
            done.append(await _said(model.name, "registered", registering))
        return done

    async def _restore(self, state: State) -> None:
        """Register the entries of the state file."""
        settings = self._controlplane.settings
        for saved in state.models:
            if self._controlplane.has(saved.name, saved.version):
                self._controlplane.saved.settle(saved.name, saved.version)
                continue
            try:
                registration = from_saved(saved)
                check_place(registration.path, settings.model_store, self._controlplane.policy)
                await self._controlplane.register(registration, make_default=False)
            except MMSError as error:
                # Kept in the file: its archive may be available at the next start.
                logger.error("%s cannot be registered again: %s", saved.name, error)
        for name, split in state.traffic.items():
            # A model that could not be registered has no traffic to split.
            with contextlib.suppress(MMSError):
                model = self._registry.model(name)
                model.default = model.version(split.default).version
                model.split(to_traffic(split))
        if state.models:
            self._controlplane.save()


def _configured(model: ModelConfig) -> Registration:
    """Return the registration of a model in the configuration."""
    return Registration(
        model.name,
        model.path,
        model.settings,
        model.origins,
        Trust.OPERATOR,
        is_startup=True,
        keep=False,
    )


async def _gather(coroutines: Iterable[Coroutine[Any, Any, Any]]) -> None:
    """Run all coroutines; at the first failure, cancel the others and raise it."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _said(name: str, done: str, work: Coroutine[Any, Any, Any]) -> str:
    """Run the work for one model and return its outcome; a failure does not stop the others."""
    try:
        await work
    except MMSError as error:
        logger.error("%s: %s", name, error)
        return f"{name}: failed"
    return f"{name}: {done}"
