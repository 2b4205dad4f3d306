"""Print a configuration as YAML for ``--config``, each value with its origin.

Defaults are commented out, so that they stay defaults, which archives may override.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import yaml

from mms.config.build import Config, ModelConfig
from mms.config.layers import DEFAULT, resolve
from mms.config.settings import ModelSettings
from mms.fetch.location import shown

_ARCHIVE = "archive"


def to_yaml(config: Config, with_archive: Callable[[ModelConfig], ModelSettings]) -> str:
    """Return a configuration as a YAML document.

    Args:
        config: The configuration.
        with_archive: Returns a model's settings with its archive's defaults.
    """
    shared, origins = resolve(ModelSettings, config.layers)
    lines = ["# The server", *_lines(config.server, config.origins)]
    lines += ["", "# Every model that does not say otherwise", *_lines(shared, origins)]
    if config.models:
        lines += ["", "models:"]
    for model in config.models:
        lines += [f"  {_scalar(model.name)}:", f"    path: {_path(model.path)}"]
        settings = with_archive(model)
        changed = {
            f.name: _ARCHIVE
            for f in dataclasses.fields(settings)
            if getattr(settings, f.name) != getattr(model.settings, f.name)
        }
        lines += (f"    {line}" for line in _lines(settings, {**model.origins, **changed}))
    return "\n".join(lines) + "\n"


def _lines(settings: Any, origins: Mapping[str, str]) -> Iterator[str]:
    for f in dataclasses.fields(settings):
        origin = origins.get(f.name, DEFAULT)
        mark = "#" if origin in (DEFAULT, _ARCHIVE) else ""
        yield f"{mark}{f.name}: {_scalar(getattr(settings, f.name))}  # {_one_line(origin)}"


def _path(path: str) -> str:
    """Return a location without its secrets, which must not reach a terminal or a log."""
    public = shown(path)
    hint = "" if public == path else "  # password and query removed; add them again"
    return f"{_scalar(public)}{hint}"


def _scalar(value: Any) -> str:
    """Return a value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    # As a list item: at the top of a document it would get an end marker, and might be wrapped.
    text: str = yaml.safe_dump([plain], default_flow_style=True, width=float("inf"))
    return text.strip()[1:-1]


def _one_line(origin: str) -> str:
    """Return an origin on one line for a comment: file names may contain anything."""
    return origin.encode("unicode_escape").decode()
