"""Keep registrations and traffic splits in the state file across restarts.

Entries that could not be registered again stay in the file: their archives may be available at the
next start.
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
    """The state file, and its entries that are not registered yet or could not be.

    Args:
        path: The file; nothing is kept if empty.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._pending: dict[tuple[str, str], SavedModel] = {}
        self._traffic: dict[str, SavedTraffic] = {}

    def recall(self) -> State:
        """Return the contents of the file, which stay in it until they are registered again.

        Raises:
            ConfigError: The file cannot be read, is not a state file, or others could have written
                it.
        """
        state = read_state(self.path)
        self._pending = {(model.name, model.version): model for model in state.models}
        self._traffic = dict(state.traffic)
        return state

    def settle(self, name: str, version: str) -> None:
        """Record that a version is registered, whether from the file or not."""
        self._pending.pop((name, version), None)

    def save(self, registrations: Iterable[Registration], models: Iterable[Model]) -> None:
        """Write the file: registrations to be kept, and entries that are still pending."""
        saved = [to_saved(registration) for registration in registrations if registration.keep]
        traffic = {model.name: _to_saved_traffic(model) for model in models}
        for model in self._pending.values():
            saved.append(model)
            if model.name in self._traffic:
                traffic.setdefault(model.name, self._traffic[model.name])
        write_state(self.path, State(saved, traffic))


def to_saved(registration: Registration) -> SavedModel:
    """Convert a registration to its entry in the state file."""
    return SavedModel(
        registration.name,
        registration.version or "",
        _lasting(registration.path),
        registration.size,
        _set_by_somebody(registration.settings, registration.origins),
    )


def from_saved(model: SavedModel) -> Registration:
    """Convert an entry of the state file to a registration.

    Raises:
        ConfigError: A setting, or the number of workers, is invalid.
    """
    known = {key: value for key, value in model.settings.items() if key in keys(ModelSettings)}
    if known.pop("service", ""):
        # The API accepts none, so no entry written by the server has one.
        logger.warning("%s: the service file in the state file is ignored", model.name)
    if (model.size or 0) > MAX_WORKERS:
        raise ConfigError(f"state file: size must be at most {MAX_WORKERS}")
    settings, origins = resolve(ModelSettings, [Layer("state file", known)])
    return Registration(
        model.name, model.path, settings, origins, Trust.CALLER, model.version, model.size
    )


def to_traffic(saved: SavedTraffic) -> Traffic:
    """Convert an entry of the state file to a traffic split."""
    return Traffic(saved.weights, saved.sticky_header, saved.shadow)


def _to_saved_traffic(model: Model) -> SavedTraffic:
    traffic = model.traffic
    return SavedTraffic(model.default, dict(traffic.weights), traffic.sticky_header, traffic.shadow)


def _set_by_somebody(settings: ModelSettings, origins: Mapping[str, str]) -> dict[str, object]:
    defaults = dataclasses.asdict(ModelSettings())
    return {
        key: value
        for key, value in dataclasses.asdict(settings).items()
        # A setting explicitly set to its default still overrides the archive's.
        if value != defaults[key] or origins.get(key, DEFAULT) != DEFAULT
    }


def _lasting(location: str) -> str:
    """Return an absolute location, valid in whatever folder the server is started next."""
    return location if "://" in location else os.path.abspath(location)
