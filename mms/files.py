"""Write a file in one step: whoever reads it finds the old content or the new one."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

#: For the owner only, as mkstemp has it.
PRIVATE = 0o600


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Replace a file; a crash leaves the old one or the new one, on disk too.

    The staging file has a name that nobody can foresee, and is opened by nobody else: a link or a
    file that was put in its place beforehand is never written to.

    Raises:
        OSError: The file cannot be written. The old one stays, and nothing is left beside it.
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
