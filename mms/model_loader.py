"""PUBLIC: 0.4's and 1.x's loaders of models, for scripts that look into archives."""

from __future__ import annotations

import inspect
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from mms.archive.manifest import MANIFEST_NAME, MAR_MANIFEST_NAME
from mms.archive.reader import open_archive
from mms.fetch.download import FetchOptions, fetch
from mms.lazy import retired

MANIFEST_FILENAME = MANIFEST_NAME
URL_PREFIX = ("http://", "https://", "s3://")
_INSTEAD = "call a handler through mms.service.Service, or start mxnet-model-server"

LegacyModelLoader = retired("mms.model_loader.LegacyModelLoader", _INSTEAD)
MmsModelLoader = retired("mms.model_loader.MmsModelLoader", _INSTEAD)
ModelLoaderFactory = retired("mms.model_loader.ModelLoaderFactory", _INSTEAD)

#: Folders of unpacked archives, which are removed when the process ends.
_folders: list[tempfile.TemporaryDirectory[str]] = []


class ModelLoader:
    """Opens archives."""

    @staticmethod
    def load(models: Mapping[str, str]) -> list[tuple[str, str, str, dict[str, Any]]]:
        """Fetch, unpack and check models.

        Args:
            models: Location of each by name: a file, a folder, or an http(s):// or s3:// URL.

        Returns:
            For each the name given, the name in its manifest, the folder of its files, which lasts
            as long as the process, and its manifest.

        Raises:
            ArchiveError: A model cannot be fetched, or is not an archive; the message says why.
        """
        found = []
        for name, location in models.items():
            folder = tempfile.TemporaryDirectory(prefix="mms-")
            _folders.append(folder)
            cache = Path(folder.name, "fetched")
            cache.mkdir()
            path = fetch(location, FetchOptions(cache))
            archive = open_archive(path, Path(folder.name))
            document = _manifest(archive.folder)
            found.append((name, archive.manifest.model_name, str(archive.folder), document))
        return found

    @staticmethod
    def list_model_services(
        module: ModuleType, parent_class: type[Any] | None = None
    ) -> list[type[Any]]:
        """Return the classes that a module defines itself, or those of them with this parent."""
        return [
            cls
            for _, cls in inspect.getmembers(module, inspect.isclass)
            if cls.__module__ == module.__name__ and issubclass(cls, parent_class or object)
        ]


def _manifest(folder: Path) -> dict[str, Any]:
    path = next(
        path for name in (MAR_MANIFEST_NAME, MANIFEST_NAME) if (path := folder / name).is_file()
    )
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8-sig"))
    return document
