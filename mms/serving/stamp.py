"""Detect changes of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def file_stamp(path: str) -> Any:
    """Return a value that changes with a file, or any file in a folder; None if it is missing."""
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
