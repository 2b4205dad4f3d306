"""Write files atomically: a reader sees either the old content or the new."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

#: Owner only, the mode that mkstemp uses.
PRIVATE = 0o600


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Replace a file; after a crash the disk holds either the old one or the new one.

    The staging file has an unpredictable name and is opened exclusively: a link or a file put in
    its place beforehand is never written to.

    Raises:
        OSError: The file cannot be written. The old one stays, and no staging file is left.
    """
    descriptor, staging = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            if mode != PRIVATE:
                os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        os.replace(staging, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(staging)
        raise
