"""Look up the archives in the model store by name."""

from __future__ import annotations

from pathlib import Path

from mms.archive.manifest import is_model_name
from mms.archive.reader import ARCHIVE_SUFFIXES, find_archives
from mms.errors import ModelNotFound


def names_in(store: str) -> list[str]:
    """Return the names under which the archives in the model store can be loaded."""
    names = set()
    try:
        for path in Path(store).iterdir():
            if path.suffix in ARCHIVE_SUFFIXES and path.is_file():
                names.add(path.stem)
            elif path.is_dir() and find_archives(path) == [path]:
                names.add(path.name)
    except OSError:
        # Deleted, or not readable: loaded models can still be listed.
        return []
    return sorted(name for name in names if is_model_name(name))


def find_archive(name: str, store: str) -> str:
    """Return the file or folder in the model store for a model's name.

    Raises:
        ModelNotFound: There is none.
    """
    candidates = [f"{name}{suffix}" for suffix in ARCHIVE_SUFFIXES] + [name]
    for candidate in candidates:
        if not store or (Path(store) / candidate).exists():
            return candidate
    raise ModelNotFound(
        f"Model not found in model store: {name}; looked for {', '.join(candidates)}"
    )
