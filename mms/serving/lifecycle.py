"""States of a servable and the allowed transitions between them. Pure."""

from __future__ import annotations

import enum


class ServableState(enum.Enum):
    """State of one loaded version of one model."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


#: Allowed transitions; docs/architecture.md draws them.
SERVABLE_MOVES = {
    ServableState.LOADING: {ServableState.READY, ServableState.FAILED, ServableState.DRAINING},
    # To UNLOADED directly: idle unload.
    ServableState.READY: {
        ServableState.DRAINING,
        ServableState.FAILED,
        ServableState.UNLOADED,
    },
    ServableState.FAILED: {ServableState.LOADING, ServableState.DRAINING},
    ServableState.DRAINING: {ServableState.UNLOADED},
    # Initial state of a model that loads on its first request, and its state after an idle unload.
    ServableState.UNLOADED: {ServableState.LOADING, ServableState.DRAINING},
}


class IllegalMove(Exception):
    """An illegal state transition: a bug in the server."""


def move_servable(current: ServableState, following: ServableState) -> ServableState:
    """Return `following` if the transition from `current` is allowed.

    Raises:
        IllegalMove: It is not.
    """
    if following not in SERVABLE_MOVES[current]:
        raise IllegalMove(f"a servable cannot go from {current.name} to {following.name}")
    return following
