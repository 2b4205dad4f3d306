"""Look up the models in the model store by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mms.archive.artefacts.recognise import may_be_model
from mms.archive.names import is_model_name
from mms.archive.reader import ARCHIVE_SUFFIXES, find_archives
from mms.errors import ModelNotFound

#: Suffixes of files that are models, besides archives.
SUFFIXES = (*ARCHIVE_SUFFIXES, ".onnx")


def names_in(store: str) -> list[str]:
    """Return the names under which the models in the model store can be loaded."""
    try:
        return sorted({name for name in _names(Path(store)) if is_model_name(name)})
    except OSError:
        # Deleted, or not readable: loaded models can still be listed.
        return []


def _names(store: Path) -> Iterator[str]:
    for path in store.iterdir():
        if path.suffix in SUFFIXES and path.is_file():
            yield path.stem
        elif path.is_dir() and (find_archives(path) or may_be_model(path)):
            yield path.name


def find_archive(name: str, store: str) -> str:
    """Return the file or folder in the model store for a model's name.

    Raises:
        ModelNotFound: There is none.
    """
    candidates = [f"{name}{suffix}" for suffix in SUFFIXES] + [name]
    for candidate in candidates:
        if not store or (Path(store) / candidate).exists():
            return candidate
    raise ModelNotFound(
        f"Model not found in model store: {name}; looked for {', '.join(candidates)}"
    )
