"""Models by name, their versions, and the choice of version for a request.

Independent of HTTP and of processes; filled by `ControlPlane`.
"""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mms.errors import InvalidRequest, ModelNotFound, ModelNotReady, VersionNotFound
from mms.serving.memory import read_memory
from mms.serving.servable import Servable
from mms.telemetry.prometheus import ServableSnapshot

DEFAULT_VERSION = "1"
#: Maximum number of names in an error message; with 500 models the full list would add 6 kB to
#: every 404.
_MOST_LISTED = 8


@dataclass(frozen=True, slots=True)
class Traffic:
    """The split of requests without a version between a model's versions.

    Attributes:
        weights: Weight of each version, integers; if empty, all requests go to the default.
        sticky_header: Header whose value determines the version, or "".
        shadow: Version that gets a copy of every request, its responses discarded, or "".
    """

    weights: Mapping[str, int] = field(default_factory=dict)
    sticky_header: str = ""
    shadow: str = ""


class Model:
    """A model's name, its versions, its default version, and its traffic split."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.versions: dict[str, Servable] = {}
        self.default = DEFAULT_VERSION
        self.traffic = Traffic()

    def choose(self, sticky: str | None) -> Servable:
        """Return the version for a request that does not name one.

        Args:
            sticky: Value of the sticky header, if the request has one.
        """
        weights = self.traffic.weights
        if not weights:
            return self.versions[self.default]
        total = sum(weights.values())
        if sticky is None:
            point = random.randrange(total)
        else:
            # CRC-32 is uniform and the same in every process, which is enough. Header bytes that
            # are not UTF-8 arrive as lone surrogates.
            point = zlib.crc32(sticky.encode(errors="surrogateescape")) % total
        for version, weight in weights.items():
            point -= weight
            if point < 0:
                return self.versions[version]
        return self.versions[self.default]

    def split(self, traffic: Traffic) -> None:
        """Change the traffic split.

        Raises:
            InvalidRequest: A weight is negative, or all are 0.
            VersionNotFound: A version does not exist.
        """
        for version in [*traffic.weights, *([traffic.shadow] if traffic.shadow else [])]:
            self.version(version)
        if traffic.weights and (
            min(traffic.weights.values()) < 0 or sum(traffic.weights.values()) == 0
        ):
            raise InvalidRequest("weights must be >= 0 and not all 0")
        self.traffic = traffic

    def version(self, version: str) -> Servable:
        """Return a version.

        Raises:
            VersionNotFound: The version does not exist.
        """
        servable = self.versions.get(version)
        if servable is None:
            known = listed(sorted(self.versions))
            raise VersionNotFound(
                f"model {self.name!r} has no version {_shown(version)}; its versions: {known}"
            )
        return servable


class Registry:
    """The models of this server, by name."""

    def __init__(self) -> None:
        self._models: dict[str, Model] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._models

    @property
    def is_empty(self) -> bool:
        """Whether there are no models."""
        return not self._models

    def add(self, servable: Servable, make_default: bool = False) -> None:
        """Add a servable, replacing one of the same version.

        The first version of a model becomes its default.
        """
        model = self._models.get(servable.name)
        if model is None:
            model = self._models[servable.name] = Model(servable.name)
            make_default = True
        model.versions[servable.version] = servable
        if make_default:
            model.default = servable.version

    def remove(self, servable: Servable) -> None:
        """Remove a servable, and its model with the last version."""
        model = self.model(servable.name)
        if model.versions.get(servable.version) is not servable:
            return
        del model.versions[servable.version]
        if not model.versions:
            del self._models[servable.name]
            return
        weights = {v: w for v, w in model.traffic.weights.items() if v != servable.version}
        shadow = model.traffic.shadow if model.traffic.shadow != servable.version else ""
        model.traffic = Traffic(
            weights if sum(weights.values()) else {}, model.traffic.sticky_header, shadow
        )
        if model.default == servable.version:
            model.default = list(model.versions)[-1]

    def model(self, name: str) -> Model:
        """Return a model.

        Raises:
            ModelNotFound: No model has this name.
        """
        model = self._models.get(name)
        if model is None:
            known = listed(sorted(self._models))
            raise ModelNotFound(f"Model not found: {_shown(name)}; loaded models: {known}")
        return model

    def find(self, name: str, is_started: bool) -> Model:
        """Return a model for a request.

        Args:
            name: Name in the request.
            is_started: Whether the server has read all its archives.

        Raises:
            ModelNotFound: No model has this name.
            ModelNotReady: It may be in an archive that has not been read yet.
        """
        if not is_started and name not in self._models:
            # The port opens before the archives are read: the name may still become known.
            raise ModelNotReady("the server is starting", retry_after_s=1.0)
        return self.model(name)

    def get(self, name: str, version: str | None = None) -> Servable:
        """Return the requested version, or the default.

        Raises:
            ModelNotFound: No model has this name.
            VersionNotFound: The model has no such version.
        """
        model = self.model(name)
        return model.versions[model.default] if version is None else model.version(version)

    def models(self) -> Iterator[Model]:
        """Return the models, sorted by name."""
        return iter([self._models[name] for name in sorted(self._models)])

    def servables(self) -> list[Servable]:
        """Return every version of every model."""
        return [servable for model in self.models() for servable in model.versions.values()]

    async def read_memory(self) -> None:
        """Read the memory of all workers, for the next `snapshots`."""
        workers = [(s, [worker.child.pid for worker in s.pool.workers]) for s in self.servables()]
        memory = await asyncio.to_thread(read_memory, [pid for _, pids in workers for pid in pids])
        for servable, pids in workers:
            servable.worker_memory = [memory[pid].resident for pid in pids]

    def snapshots(self) -> Iterable[ServableSnapshot]:
        """Return the state of each servable (`telemetry.prometheus.Source`)."""
        return [servable.snapshot() for servable in self.servables()]


def listed(names: Sequence[str]) -> str:
    """Return names for a message: the first few, and the number of others."""
    more = len(names) - _MOST_LISTED
    text = ", ".join(names[:_MOST_LISTED]) or "none"
    return f"{text} and {more} more" if more > 0 else text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
