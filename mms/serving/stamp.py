"""Detect changes of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mms.archive.artefacts.recognise import files_of


def file_stamp(path: str) -> Any:
    """Return a value that changes with a file, or any file in a folder; None if it is missing.

    A file of a checkpoint stands for all of that checkpoint, and so does ``PREFIX@EPOCH``.
    """
    root = Path(path).expanduser()
    try:
        if not root.is_dir():
            return tuple(map(_of_file, files_of(root)))
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


def _of_file(file: Path) -> tuple[str, int, int, int]:
    status = file.stat()
    return (file.name, status.st_mtime_ns, status.st_size, status.st_ino)
