"""The server's scratch folder for unpacked archives, removed when the server exits.

Each folder holds a lock file that its server keeps locked. A server killed with SIGKILL cannot
clean up after itself; the next one to start finds the lock free and removes the folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = "mxnet-model-server-"
_LOCK = "lock"


@contextlib.contextmanager
def open_workspace(parent: Path | None = None) -> Iterator[Path]:
    """Return a new empty folder that is removed afterwards, and remove orphaned ones.

    Args:
        parent: Folder to create it in; the system's temporary folder by default.

    Raises:
        OSError: The folder cannot be created.
    """
    root = parent or Path(tempfile.gettempdir())
    root.mkdir(parents=True, exist_ok=True)
    _remove_orphans(root)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    try:
        with (folder / f"{_LOCK}.new").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Renamed only once it is locked: a server that starts at the same time takes a folder
            # whose lock file it can lock for an orphan.
            os.rename(lock.name, folder / _LOCK)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_orphans(root: Path) -> None:
    for folder in root.glob(f"{_PREFIX}*"):
        # Not accessible, already removed, or not locked yet: leave it.
        with contextlib.suppress(OSError):
            descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)
