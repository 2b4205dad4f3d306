"""Resolve settings from several origins: the first that has a value wins.

The order is flag > ``MMS_*`` environment > YAML file > 1.x's ``config.properties`` > the
archive's ``Serving`` > default. An unknown key of a YAML file is an error that suggests the nearest
known one.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from mms.archive.manifest import ServingDefaults
from mms.config.declaration import rules_of
from mms.config.hints import nearest
from mms.config.settings import ALIASES, ModelSettings
from mms.config.values import convert
from mms.errors import ConfigError

#: The origin of a value that is not set anywhere.
DEFAULT = "default"

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Layer:
    """Values from one origin, as strings or as parsed from YAML."""

    origin: str
    values: Mapping[str, Any]


def resolve(cls: type[T], layers: Sequence[Layer]) -> tuple[T, dict[str, str]]:
    """Resolve settings from layers; the first layer that has a value wins.

    Args:
        cls: ModelSettings or ServerSettings.
        layers: In order of precedence, highest first.

    Returns:
        The settings, and the origin of each value by key.

    Raises:
        ConfigError: A value has the wrong type or is out of range; names the origin and the key.
    """
    hints = typing.get_type_hints(cls)
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for f in dataclasses.fields(cls):  # type: ignore[arg-type]
        origins[f.name] = DEFAULT
        for layer in layers:
            value = layer.values.get(f.name)
            if value is None and f.name in ALIASES:
                value = layer.values.get(ALIASES[f.name])
            if value is not None:
                where = f"{layer.origin}: {f.name}"
                values[f.name] = convert(value, hints[f.name], rules_of(f), where)
                origins[f.name] = layer.origin
                break
    return cls(**values), origins


def check_keys(values: Mapping[str, Any], known: Sequence[str], origin: str) -> None:
    """Refuse unknown keys.

    Raises:
        ConfigError: A key is unknown; names it and the nearest known one.
    """
    for key in values:
        if key not in known:
            hint = nearest(str(key), known) or f"; known: {', '.join(known)}"
            raise ConfigError(f"{origin}: unknown key {key!r}{hint}")


def keys(cls: type[Any]) -> list[str]:
    """Return the names, aliases included, of a settings class's fields."""
    names = [f.name for f in dataclasses.fields(cls)]
    return names + [alias for name, alias in ALIASES.items() if name in names]


def with_archive_defaults(
    settings: ModelSettings, serving: ServingDefaults, origins: Mapping[str, str]
) -> ModelSettings:
    """Apply the archive's ``Serving`` to the settings that no layer has set.

    Args:
        settings: As resolved from the layers.
        serving: The archive's ``Serving``.
        origins: Origin of each setting, by key.

    Raises:
        ConfigError: The archive sets an invalid value.
    """
    offered = {
        "workers": serving.workers,
        "batch_size": serving.batch_size,
        "max_batch_delay": serving.max_batch_delay,
        "response_timeout": serving.response_timeout,
        "gpu": _gpu_of_device(serving.device),
    }
    fields = {f.name: f for f in dataclasses.fields(ModelSettings)}
    hints = typing.get_type_hints(ModelSettings)
    changes: dict[str, Any] = {
        key: convert(value, hints[key], rules_of(fields[key]), f"the archive's Serving: {key}")
        for key, value in offered.items()
        if value is not None and origins.get(key, DEFAULT) == DEFAULT
    }
    return dataclasses.replace(settings, **changes)


def _gpu_of_device(device: str | None) -> str | None:
    """Return the ``gpu`` setting for an archive's ``device``: cpu, gpu, or gpu:1."""
    if device is None or device == "cpu":
        return None
    kind, _, number = device.partition(":")
    if kind != "gpu" or not (number or "0").isdecimal():
        raise ConfigError(f"the archive's Serving.device must be cpu, gpu or gpu:N, got {device!r}")
    return number or "0"
