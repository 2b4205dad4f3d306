"""Registrations: a model, its archive's location, its settings, and who requested it. Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mms.config.settings import ModelSettings


class Trust(enum.Enum):
    """The source of an archive's location, which decides the permitted locations."""

    #: The operator, who started the server: any location.
    OPERATOR = "operator"
    #: A client of the management API: the model store, and URLs that `allowed_urls` permits.
    CALLER = "caller"


@dataclass(frozen=True, slots=True)
class Registration:
    """A registration of a model, complete enough to repeat it.

    Attributes:
        name: Name clients use; "" means the name in the archive's manifest.
        path: Location of the archive: a path or a URL.
        settings: As set, without the archive's defaults.
        origins: Origin of each setting, by key.
        trust: Who named the path.
        version: Its version; None means the first of its model.
        size: Number of workers if set by the management API, possibly 0.
        is_startup: Whether readiness waits for it.
        keep: Whether the state file keeps it; not needed for models on the command line.
    """

    name: str
    path: str
    settings: ModelSettings
    origins: Mapping[str, str]
    trust: Trust
    version: str | None = None
    size: int | None = None
    is_startup: bool = False
    keep: bool = True

    def with_settings(
        self, settings: ModelSettings, keys: Mapping[str, Any], origin: str
    ) -> Registration:
        """Return a copy with new values of some settings.

        Args:
            settings: The settings with the new values.
            keys: The names of the changed settings.
            origin: Origin of the new values.
        """
        changes: dict[str, Any] = {key: getattr(settings, key) for key in keys}
        return dataclasses.replace(
            self,
            settings=dataclasses.replace(self.settings, **changes),
            origins={**self.origins, **dict.fromkeys(keys, origin)},
        )
