"""What outlives the server: its registrations, in a file."""

from __future__ import annotations

import json
import logging
import os
import stat
from pathlib import Path
from typing import Annotated, Any

import msgspec

from mms.errors import ConfigError
from mms.files import write_atomically

logger = logging.getLogger("mms.state")

_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH

Size = Annotated[int, msgspec.Meta(ge=0)]


class SavedModel(msgspec.Struct, frozen=True):
    """A registration as the file has it; `settings` holds what is not a default."""

    name: str
    version: str
    path: str
    size: Size | None
    settings: dict[str, Any]


class SavedTraffic(msgspec.Struct, frozen=True):
    """How the traffic of one model is split over its versions."""

    default: str
    weights: dict[str, int]
    sticky_header: str
    shadow: str


class State(msgspec.Struct, frozen=True):
    """What a state file holds.

    Attributes:
        models: The registrations.
        traffic: Of each model by name.
    """

    models: list[SavedModel]
    traffic: dict[str, SavedTraffic]


def read_state(path: str) -> State:
    """Read a state file; no path, or no file there, is an empty state.

    Raises:
        ConfigError: The file cannot be read, is not a state file, or others may have written it.
    """
    if not path or not os.path.exists(path):
        return State([], {})
    try:
        document = json.loads(_read_own(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"state_file {path} cannot be read: {error}") from None
    try:
        return msgspec.convert(document, State)
    except (msgspec.ValidationError, OverflowError) as error:
        raise ConfigError(
            f"state_file {path} is not a valid state file ({error}); remove it to start without"
        ) from None


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


def write_state(path: str, state: State) -> None:
    """Write a state file in one step: a crash leaves the old one or the new one.

    A failure is logged and no more: serving goes on, only a restart would miss the change.
    """
    if not path:
        return
    document = json.dumps(msgspec.to_builtins(state), indent=2)
    try:
        # For the owner only: a URL may carry a signature or a password.
        write_atomically(Path(path), document.encode(errors="surrogatepass"))
    except OSError as error:
        logger.error("state_file %s cannot be written: %s", path, error.strerror)
