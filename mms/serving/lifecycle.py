"""States of a servable and the moves allowed between them. Pure."""

from __future__ import annotations

import enum


class ServableState(enum.Enum):
    """State of one loaded version of one model."""

    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    UNLOADED = "unloaded"
    FAILED = "failed"


#: Which states may follow each; docs/architecture.md draws it.
SERVABLE_MOVES = {
    ServableState.LOADING: {ServableState.READY, ServableState.FAILED, ServableState.DRAINING},
    # To UNLOADED at once: a model that nobody asks goes to sleep.
    ServableState.READY: {
        ServableState.DRAINING,
        ServableState.FAILED,
        ServableState.UNLOADED,
    },
    ServableState.FAILED: {ServableState.LOADING, ServableState.DRAINING},
    ServableState.DRAINING: {ServableState.UNLOADED},
    # A model that loads on its first request begins, and wakes up, here.
    ServableState.UNLOADED: {ServableState.LOADING, ServableState.DRAINING},
}


class IllegalMove(Exception):
    """A state was to follow another that it cannot follow: a bug of ours."""


def move_servable(current: ServableState, following: ServableState) -> ServableState:
    """Return `following` if it may follow `current`.

    Raises:
        IllegalMove: It may not.
    """
    if following not in SERVABLE_MOVES[current]:
        raise IllegalMove(f"a servable cannot go from {current.name} to {following.name}")
    return following
