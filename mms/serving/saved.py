"""What outlives a restart: registrations, and how traffic is split, kept in the state file.

What the file has and could not be registered again stays in it: what it lacks today may be back at
the next start.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping

from mms.config.layers import DEFAULT, Layer, keys, resolve
from mms.config.settings import MAX_WORKERS, ModelSettings
from mms.errors import ConfigError
from mms.serving.registration import Registration, Trust
from mms.serving.registry import Model, Traffic
from mms.serving.state import SavedModel, SavedTraffic, State, read_state, write_state

logger = logging.getLogger("mms.state")


class Saved:
    """The state file, and what of it is not registered yet or could not be.

    Args:
        path: The file; nothing is kept if empty.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._pending: dict[tuple[str, str], SavedModel] = {}
        self._traffic: dict[str, SavedTraffic] = {}

    def recall(self) -> State:
        """Return what the file holds, which stays in it until it is registered again.

        Raises:
            ConfigError: The file cannot be read, is not a state file, or others may have written
                it.
        """
        state = read_state(self.path)
        self._pending = {(model.name, model.version): model for model in state.models}
        self._traffic = dict(state.traffic)
        return state

    def settle(self, name: str, version: str) -> None:
        """Record that a version is registered, whether as the file has it or otherwise."""
        self._pending.pop((name, version), None)

    def save(self, registrations: Iterable[Registration], models: Iterable[Model]) -> None:
        """Write the file: what is registered and to be kept, and what is still pending."""
        saved = [to_saved(registration) for registration in registrations if registration.keep]
        traffic = {model.name: _to_saved_traffic(model) for model in models}
        for model in self._pending.values():
            saved.append(model)
            if model.name in self._traffic:
                traffic.setdefault(model.name, self._traffic[model.name])
        write_state(self.path, State(saved, traffic))


def to_saved(registration: Registration) -> SavedModel:
    """Return a registration as the state file keeps it."""
    return SavedModel(
        registration.name,
        registration.version or "",
        _lasting(registration.path),
        registration.size,
        _set_by_somebody(registration.settings, registration.origins),
    )


def from_saved(model: SavedModel) -> Registration:
    """Return the registration that the state file has kept.

    Raises:
        ConfigError: A setting, or the number of workers, is not what it may be.
    """
    known = {key: value for key, value in model.settings.items() if key in keys(ModelSettings)}
    if known.pop("service", ""):
        # The API takes none, so no entry of ours has one.
        logger.warning("%s: the service file in the state file is ignored", model.name)
    if (model.size or 0) > MAX_WORKERS:
        raise ConfigError(f"state file: size must be at most {MAX_WORKERS}")
    settings, origins = resolve(ModelSettings, [Layer("state file", known)])
    return Registration(
        model.name, model.path, settings, origins, Trust.CALLER, model.version, model.size
    )


def to_traffic(saved: SavedTraffic) -> Traffic:
    """Return how traffic was split."""
    return Traffic(saved.weights, saved.sticky_header, saved.shadow)


def _to_saved_traffic(model: Model) -> SavedTraffic:
    traffic = model.traffic
    return SavedTraffic(model.default, dict(traffic.weights), traffic.sticky_header, traffic.shadow)


def _set_by_somebody(settings: ModelSettings, origins: Mapping[str, str]) -> dict[str, object]:
    defaults = dataclasses.asdict(ModelSettings())
    return {
        key: value
        for key, value in dataclasses.asdict(settings).items()
        # One set to what is the default still outweighs the archive's.
        if value != defaults[key] or origins.get(key, DEFAULT) != DEFAULT
    }


def _lasting(location: str) -> str:
    """Return a location so that it holds in whatever folder the server is started next."""
    return location if "://" in location else os.path.abspath(location)
