"""Models by name, their versions, and which version answers when none is named.

Knows no HTTP and no processes; `ModelServer` fills it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from mms.errors import ModelNotFound, VersionNotFound
from mms.metrics import ServableSnapshot
from mms.serving.servable import Servable

DEFAULT_VERSION = "1"


class Model:
    """A name, its versions and the one that is the default."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[str, Servable] = {}
        self.default = DEFAULT_VERSION


class Registry:
    """All models of this server."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def add(self, servable: Servable) -> None:
        """Make a servable known; the first version of a model is its default."""
        model = self._models.get(servable.name)
        if model is None:
            model = self._models[servable.name] = Model(servable.name)
            model.default = servable.version
        model.versions[servable.version] = servable

    def get(self, name: str, version: str | None = None) -> Servable:
        """Give the version asked for, or the default one.

        Raises:
            ModelNotFound: No model has this name.
            VersionNotFound: The model has no such version.
        """
        model = self._models.get(name)
        if model is None:
            known = ", ".join(sorted(self._models)) or "none"
            raise ModelNotFound(f"model {_shown(name)} is not known; loaded are: {known}")
        if version is None:
            return model.versions[model.default]
        servable = model.versions.get(version)
        if servable is None:
            known = ", ".join(sorted(model.versions))
            raise VersionNotFound(
                f"model {name!r} has no version {_shown(version)}; there are: {known}"
            )
        return servable

    def models(self) -> Iterator[Model]:
        """Give the models in the order they were added."""
        return iter(self._models.values())

    def servables(self) -> list[Servable]:
        """Give every version of every model."""
        return [servable for model in self.models() for servable in model.versions.values()]

    def snapshots(self) -> Iterable[ServableSnapshot]:
        """metrics.Source: give the state of each servable."""
        return [servable.snapshot() for servable in self.servables()]


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
