"""What was unloaded by name and may be loaded again by name, and why other names could not be."""

from __future__ import annotations

from dataclasses import dataclass, field

from mms.serving.registration import Registration

#: Names that could not be loaded, and what is remembered of why: callers choose both.
_MOST_FAILURES = 1000
_MOST_REASON_CHARS = 2000


@dataclass
class Unloaded:
    """What is not loaded, and why.

    Attributes:
        registrations: The versions of what was unloaded by name, the default first.
        failures: Why a name could not be loaded.
    """

    registrations: dict[str, list[Registration]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def note_failure(self, name: str, reason: str) -> None:
        """Remember why a name could not be loaded; the oldest reasons are forgotten."""
        self.failures.pop(name, None)
        self.failures[name] = reason[:_MOST_REASON_CHARS]
        while len(self.failures) > _MOST_FAILURES:
            del self.failures[next(iter(self.failures))]

    def forget(self, name: str) -> None:
        """Forget a name, because it is loaded now."""
        self.registrations.pop(name, None)
        self.failures.pop(name, None)
