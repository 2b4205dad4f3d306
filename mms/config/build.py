"""Build a server's configuration from its command line, environment and file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mms.archive.names import NAME_RULE, is_model_name
from mms.config.address import is_loopback
from mms.config.environment import environment_settings, sagemaker_layer
from mms.config.layers import Layer, check_keys, keys, resolve
from mms.config.legacy import Legacy, read_properties
from mms.config.settings import (
    SAGEMAKER_MODELS,
    TOKEN_VARIABLE,
    ModelSettings,
    ServerSettings,
)
from mms.errors import ConfigError
from mms.fetch.location import shown


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """One model to serve.

    Attributes:
        name: Name clients use.
        path: Path or URL of its archive.
        settings: Its settings, without the archive's defaults.
        origins: Origin of each of these settings, by key.
    """

    name: str
    path: str
    settings: ModelSettings
    origins: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Config:
    """The complete configuration at start-up.

    Attributes:
        server: Settings of the server.
        models: The start-up models.
        origins: Origin of each of the server's settings, by key.
        layers: Settings that apply to every model, including those registered later.
        load_models: Models that 1.x's configuration names, as ``NAME=LOCATION``, ``LOCATION`` or
            ``ALL``; the command line's stand in for them.
        notes: What was ignored, or is not as it was set, a line each.
    """

    server: ServerSettings
    models: tuple[ModelConfig, ...]
    origins: Mapping[str, str]
    layers: tuple[Layer, ...] = ()
    load_models: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def build_config(
    models: Sequence[tuple[str, str]],
    flags: Mapping[str, Any],
    environment: Mapping[str, str] = os.environ,
    file: Path | None = None,
    properties: str = "",
    preset: Layer | None = None,
) -> Config:
    """Return the configuration of a server.

    Args:
        models: (name, path) pairs from the command line.
        flags: Values of flags by setting name; None means not given.
        environment: Environment in which ``MMS_*`` variables are looked up.
        file: YAML file with server settings, model settings for all models, and ``models``, a
            mapping of names to a path or to a mapping with ``path`` and model settings.
        properties: ``config.properties`` of 1.x, weaker than `file`; none if empty.
        preset: What the way of starting the server sets, weaker than flags only.

    Raises:
        ConfigError: A key is unknown, or a value is invalid.
    """
    document = read_file(file) if file else {}
    origin = str(file) if file else "file"
    known = [*keys(ServerSettings), *keys(ModelSettings), "models"]
    check_keys(document, known, origin)
    file_models = _file_models(document.pop("models", {}), origin)
    variables = environment_settings(environment)
    legacy = read_properties(properties, environment) if properties else Legacy()
    stronger = [Layer("flag", flags), *([preset] if preset else [])]
    if legacy.environment_first:
        stronger = [*variables.layers, *stronger]
    else:
        stronger += variables.layers
    shared = [*stronger, Layer(origin, document), *legacy.layers]
    server, origins = resolve(ServerSettings, [*shared, sagemaker_layer(environment)])
    if server.multi_model and not server.model_store:
        server = dataclasses.replace(server, model_store=SAGEMAKER_MODELS)
    notes = [*variables.notes, *legacy.notes]
    old = {layer.origin for layer in (*variables.layers[1:], *legacy.layers)}
    if origins["management_host"] in old and TOKEN_VARIABLE not in environment:
        server, closed = _without_open_management(server, origins["management_host"])
        notes += closed
    named: dict[str, str] = {}
    for name, path in models:
        if name in named:
            raise ConfigError(
                f"--models names {name!r} twice ({shown(named[name])} and {shown(path)}); "
                "give each its own name"
            )
        named[name] = path
    configs = []
    for name, path in {**{n: p for n, (p, _) in file_models.items()}, **named}.items():
        _check_model_name(name)
        own = Layer(f"{origin}: models.{name}", file_models.get(name, ("", {}))[1])
        layers = [*stronger, own, *shared[len(stronger) :]]
        configs.append(ModelConfig(name, path, *resolve(ModelSettings, layers)))
    load_models = variables.models or legacy.models
    return Config(server, tuple(configs), origins, tuple(shared), load_models, tuple(notes))


def _without_open_management(
    server: ServerSettings, origin: str
) -> tuple[ServerSettings, list[str]]:
    """Keep the management API of a 1.x configuration from other machines.

    Configurations of 1.x, SageMaker's among them, open it to all without a token. That would let
    anyone run code here, and refusing to start would stop those who never use it.
    """
    if is_loopback(server.management_host) or server.management_port < 0:
        return server, []
    until = f"until {TOKEN_VARIABLE} holds a token, which its callers then send"
    if (server.management_host, server.management_port) == (server.host, server.port):
        closed = dataclasses.replace(server, management_port=-1)
        return closed, [f"{origin}: the management API is off, {until}"]
    closed = dataclasses.replace(server, management_host="127.0.0.1")
    return closed, [f"{origin}: the management API listens on 127.0.0.1 only, {until}"]


def read_file(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Raises:
        ConfigError: The file cannot be read, or is not a mapping.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: not UTF-8, or an impossible date such as 2020-13-45.
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise ConfigError(f"{path}: expected a mapping, got {type(document).__name__}")
    return document


def _file_models(value: Any, origin: str) -> dict[str, tuple[str, dict[str, Any]]]:
    if not isinstance(value, dict):
        raise ConfigError(f"{origin}: models must map names to paths or settings")
    models: dict[str, tuple[str, dict[str, Any]]] = {}
    for name, entry in value.items():
        if isinstance(entry, str):
            models[str(name)] = (entry, {})
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str):
            raise ConfigError(f"{origin}: models.{name} needs a path")
        settings = {key: setting_ for key, setting_ in entry.items() if key != "path"}
        check_keys(settings, keys(ModelSettings), f"{origin}: models.{name}")
        models[str(name)] = (entry["path"], settings)
    return models


def _check_model_name(name: str) -> None:
    if not is_model_name(name):
        raise ConfigError(f"model name {name[:100]!r} cannot be used in a URL: {NAME_RULE}")
