"""Read and write the state file, which keeps registrations across restarts."""

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
    """A registration in the state file; `settings` has the values that are not defaults."""

    name: str
    version: str
    path: str
    size: Size | None
    settings: dict[str, Any]


class SavedTraffic(msgspec.Struct, frozen=True):
    """The traffic split of one model in the state file."""

    default: str
    weights: dict[str, int]
    sticky_header: str
    shadow: str


class State(msgspec.Struct, frozen=True):
    """The contents of a state file.

    Attributes:
        models: The registrations.
        traffic: Traffic splits by name of model.
    """

    models: list[SavedModel]
    traffic: dict[str, SavedTraffic]


def read_state(path: str) -> State:
    """Read a state file; return an empty state if the path is empty or the file does not exist.

    Raises:
        ConfigError: The file cannot be read, is not a state file, or others could have written it.
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
    """Read a file that only its owner, this user or root, could have written.

    Its models are loaded at start-up, so a user who can write the file can choose what runs.

    Raises:
        ConfigError: Other users could have written it.
        OSError: It cannot be read.
    """
    # Non-blocking: a named pipe in its place would block the start-up for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"state_file {path} is not a file")
        # For a link, both owners: the link's owner chose the file.
        owners = {status.st_uid, os.lstat(path).st_uid}
        if owners - {0, os.geteuid()} or status.st_mode & _OTHERS_MAY_WRITE:
            raise ConfigError(
                f"state_file {path} may have been written by other users; check its contents, then "
                "chown it to the server's user and chmod go-w it"
            )
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def write_state(path: str, state: State) -> None:
    """Write a state file atomically: after a crash, the old or the new version is there.

    A failure is only logged: the server continues, but the change is lost on a restart.
    """
    if not path:
        return
    document = json.dumps(msgspec.to_builtins(state), indent=2)
    try:
        # Readable by the owner only: a URL may contain a signature or a password.
        write_atomically(Path(path), document.encode(errors="surrogatepass"))
    except OSError as error:
        logger.error("state_file %s cannot be written: %s", path, error.strerror)
