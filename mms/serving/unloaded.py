"""Models that were unloaded by name and may be loaded again, and reasons of failed loads."""

from __future__ import annotations

from dataclasses import dataclass, field

from mms.serving.registration import Registration

#: Maximum number of recorded failures, and of characters of each reason: callers control both.
_MOST_FAILURES = 1000
_MOST_REASON_CHARS = 2000


@dataclass
class Unloaded:
    """Models that are not loaded, and why.

    Attributes:
        registrations: The versions of each unloaded model by name, the default first.
        failures: The reason by name for which a model could not be loaded.
    """

    registrations: dict[str, list[Registration]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def note_failure(self, name: str, reason: str) -> None:
        """Record why a model could not be loaded; the oldest reasons are evicted."""
        self.failures.pop(name, None)
        self.failures[name] = reason[:_MOST_REASON_CHARS]
        while len(self.failures) > _MOST_FAILURES:
            del self.failures[next(iter(self.failures))]

    def forget(self, name: str) -> None:
        """Remove a name, because it is loaded now."""
        self.registrations.pop(name, None)
        self.failures.pop(name, None)
