"""Find the models to serve by how they are named on a command line or in 1.x's configuration.

A model is ``NAME=LOCATION``, or ``LOCATION`` alone for the name in the archive. As in 1.x, a
location may be relative to the model store, and ``ALL`` is all of it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from mms.archive.reader import find_models, read_manifest
from mms.config.settings import ServerSettings
from mms.errors import ConfigError, MMSError
from mms.fetch.download import Progress, fetch, opening
from mms.fetch.location import file_name, is_remote, shown
from mms.serving.archives import fetch_options
from mms.serving.model_store import SUFFIXES

logger = logging.getLogger("mms.server")

_ALL = "all"


class Finder:
    """Finds models.

    Args:
        settings: The server's.
        handler: Handler to use instead of an archive's; a folder without a manifest needs one.
        progress: Receives the progress of downloads.
    """

    def __init__(
        self, settings: ServerSettings, handler: str = "", progress: Progress | None = None
    ) -> None:
        self._settings = settings
        self._handler = handler
        self._progress = progress

    def find(self, texts: Iterable[str]) -> list[tuple[str, str]]:
        """Return the name and the location of each model.

        With `keep_going`, one whose name cannot be read is left out with a warning, and so is,
        in any case, what cannot be read of ``ALL``.

        Raises:
            ConfigError: One is not written correctly.
            MMSError: An archive cannot be fetched or read.
        """
        pairs: list[tuple[str, str]] = []
        for text in texts:
            if text.lower() == _ALL:
                known = {name for name, _ in pairs}
                for location in self._all():
                    pair = self._tolerant(location, True)
                    if pair and pair[0] in known:
                        logger.warning("%s is left out: %r is taken", location, pair[0])
                    elif pair:
                        pairs.append(pair)
                        known.add(pair[0])
            else:
                pair = self._tolerant(text, self._settings.keep_going)
                pairs += [pair] if pair else []
        return pairs

    def _tolerant(self, text: str, is_tolerant: bool) -> tuple[str, str] | None:
        try:
            return self._one(text)
        except MMSError as error:
            if not is_tolerant:
                raise
            logger.warning("a model is left out: %s", error)
            return None

    def _one(self, text: str) -> tuple[str, str]:
        name, separator, location = text.partition("=")
        # The first = of a URL is in its query, or in #sha256=.
        if separator and "/" not in name and "#" not in name:
            if not name or not location:
                raise ConfigError(
                    f"--models {name}={shown(location)}: expected NAME=PATH, such as "
                    "crepe=crepe.model"
                )
            return name, self._in_store(location)
        location = self._in_store(text)
        options = fetch_options(self._settings, self._progress)
        path = fetch(location, options)
        with opening(location, path, options):
            return read_manifest(path, self._handler, file_name(location)).model_name, location

    def _in_store(self, location: str) -> str:
        """Return a location, in the model store if it is there."""
        store = self._settings.model_store
        if store and not is_remote(location) and not os.path.isabs(os.path.expanduser(location)):
            path, mark, pin = location.partition("#")
            if (Path(store) / path).exists():
                return f"{Path(store) / path}{mark}{pin}"
        return location

    def _all(self) -> list[str]:
        """Return everything in the model store that may be a model.

        Raises:
            ConfigError: There is no model store.
        """
        store = self._settings.model_store
        if not store:
            raise ConfigError("--models ALL is all of the model store; name it with --model-store")
        try:
            entries = sorted(Path(store).iterdir())
        except OSError as error:
            raise ConfigError(f"model_store {store}: cannot be read: {error.strerror}") from None
        return [
            str(path)
            for path in entries
            if not path.name.startswith(".") and (path.suffix in SUFFIXES or path.is_dir())
        ]


def sagemaker_models(environment: Mapping[str, str], handler: str) -> list[tuple[str, str]]:
    """Return the models that SageMaker has put into the container, named by their manifests.

    Args:
        environment: Of the process.
        handler: As for `Finder`.

    Raises:
        ConfigError: There are none.
        MMSError: One cannot be read.
    """
    folder = Path(environment.get("SAGEMAKER_BASE_DIR", "/opt/ml")) / "model"
    found = find_models(folder) if folder.is_dir() else []
    if not found:
        raise ConfigError(
            f"no model to serve: {folder} holds neither a .model or .mar file nor any other model"
        )
    return [(read_manifest(path, handler).model_name, str(path)) for path in found]
