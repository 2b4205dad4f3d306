"""What outlives the server: its registrations, in a file."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mms.errors import ConfigError
from mms.files import write_atomically

logger = logging.getLogger("mms.state")

_MODEL = {"name": str, "version": str, "path": str, "size": (int, type(None)), "settings": dict}
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
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
        ConfigError: The file cannot be read, is none of ours, or others may have written it.
    """
    if not path or not os.path.exists(path):
        return State()
    try:
        document = json.loads(_read_own(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"state_file {path} cannot be read: {error}") from None
    if not _is_state(document):
        raise ConfigError(f"state_file {path} is none of ours; remove it to start without")
    return State(document["models"], document["traffic"])


def _read_own(path: str) -> bytes:
    """Read a file that nobody but its owner, who is us or root, may have written.

    What it says is loaded at the start, so whoever may write it may choose what runs.

    Raises:
        ConfigError: Somebody else may have written it.
        OSError: It cannot be read.
    """
    # Not blocking: a named pipe in its place would hold the start up for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"state_file {path} is not a file")
        # Of a link, both: who owns it has chosen the file.
        owners = {status.st_uid, os.lstat(path).st_uid}
        if owners - {0, os.geteuid()} or status.st_mode & _OTHERS_MAY_WRITE:
            raise ConfigError(
                f"state_file {path} may have been written by other users; check what it says, then "
                "chown it to the server's user and chmod go-w it"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


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
    document = json.dumps(asdict(state), indent=2)
    try:
        # For the owner only: a URL may carry a signature or a password.
        write_atomically(Path(path), document.encode(errors="surrogatepass"))
    except OSError as error:
        logger.error("state_file %s cannot be written: %s", path, error.strerror)
