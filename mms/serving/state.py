"""What outlives the server: its registrations in a file, and how to see that files have changed."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mms.errors import ConfigError

logger = logging.getLogger("mms.state")

_MODEL = {"name": str, "version": str, "path": str, "size": (int, type(None)), "settings": dict}
_SPLIT = {"default": str, "weights": dict, "sticky_header": str, "shadow": str}


@dataclass(frozen=True, slots=True)
class State:
    """What a state file holds.

    Attributes:
        models: name, version, path, size and settings of each registration.
        traffic: default, weights, sticky_header and shadow of each model by name.
    """

    models: list[dict[str, Any]] = field(default_factory=list)
    traffic: dict[str, dict[str, Any]] = field(default_factory=dict)


def read_state(path: str) -> State:
    """Read a state file; no path, or no file there, is an empty state.

    Raises:
        ConfigError: The file cannot be read or is none of ours.
    """
    if not path or not os.path.exists(path):
        return State()
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"state_file {path} cannot be read: {error}") from None
    if not _is_state(document):
        raise ConfigError(f"state_file {path} is none of ours; remove it to start without")
    return State(document["models"], document["traffic"])


def _is_state(document: Any) -> bool:
    return (
        _has(document, {"models": list, "traffic": dict})
        and all(_has(entry, _MODEL) for entry in document["models"])
        and all((entry["size"] or 0) >= 0 for entry in document["models"])
        and all(_has(split, _SPLIT) for split in document["traffic"].values())
        and all(
            type(weight) is int
            for split in document["traffic"].values()
            for weight in split["weights"].values()
        )
    )


def _has(value: Any, kinds: Mapping[str, Any]) -> bool:
    """Whether a value is a mapping with these keys and kinds of values."""
    return isinstance(value, dict) and all(
        key in value and isinstance(value[key], kind) and not isinstance(value[key], bool)
        for key, kind in kinds.items()
    )


def write_state(path: str, state: State) -> None:
    """Write a state file in one step: a crash leaves the old one or the new one.

    A failure is logged and no more: serving goes on, only a restart would miss the change.
    """
    if not path:
        return
    staging = f"{path}.new"
    try:
        # For the owner only: a URL may carry a signature or a password.
        with open(staging, "w", encoding="utf-8", opener=_open_private) as file:
            json.dump(asdict(state), file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(staging)
        logger.error("state_file %s cannot be written: %s", path, error.strerror)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def file_stamp(path: str) -> Any:
    """Give what changes when a file, or any file in a folder, changes; None if it is gone."""
    root = Path(path).expanduser()
    try:
        if root.is_file():
            status = root.stat()
            return (status.st_mtime_ns, status.st_size, status.st_ino)
        return (
            tuple(
                (str(file), file.stat().st_mtime_ns, file.stat().st_size)
                for file in sorted(root.rglob("*"))
                if file.is_file() and "__pycache__" not in file.parts
            )
            or None
        )
    except OSError:
        return None
