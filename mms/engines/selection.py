"""What the operator wants networks of this process to run on."""

from __future__ import annotations

from mms.wire.messages import EngineWish

_wish = EngineWish()


def configure(wish: EngineWish) -> None:
    """Set the wish, before a service is created."""
    global _wish
    _wish = wish


def wish() -> EngineWish:
    """Return the wish; all of it ``auto`` outside a worker."""
    return _wish
