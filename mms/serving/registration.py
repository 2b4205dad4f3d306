"""What was asked for: a model, where its archive is, how to serve it, and who asked. Pure."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mms.config.settings import ModelSettings


class Trust(enum.Enum):
    """Who named an archive, and so where it may be."""

    #: Whoever started the server: any location.
    OPERATOR = "operator"
    #: Whoever reaches the management API: the model store, and what `allowed_urls` permits.
    CALLER = "caller"


@dataclass(frozen=True, slots=True)
class Registration:
    """What was asked for, so that it can be asked for again.

    Attributes:
        name: Name clients use; "" is the name that the archive's manifest has.
        path: Where the archive is: a path or a URL.
        settings: As given, without the archive's defaults.
        origins: Where each setting came from, by its key.
        trust: Who named the path.
        version: Its version; None is the first of its model.
        size: Number of workers if it was set by the management API, 0 included.
        is_startup: Whether readiness waits for it.
        keep: Whether the state file keeps it: not what the command line names anyway.
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
        """Return it with new values of some settings.

        Args:
            settings: Has the new values.
            keys: Which settings are new.
            origin: Where their values came from.
        """
        changes: dict[str, Any] = {key: getattr(settings, key) for key in keys}
        return dataclasses.replace(
            self,
            settings=dataclasses.replace(self.settings, **changes),
            origins={**self.origins, **dict.fromkeys(keys, origin)},
        )
