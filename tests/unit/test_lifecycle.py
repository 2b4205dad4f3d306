"""Which state of a servable, and of the server, may follow which."""

from __future__ import annotations

import itertools

import pytest

from mms.serving.budget import Budget
from mms.serving.dataplane import DataPlane, ServerState
from mms.serving.lifecycle import IllegalMove, ServableState, move_servable
from mms.serving.registry import Registry
from mms.serving.shadow import Shadows
from mms.telemetry.counters import ServerMetrics

S = ServableState
SERVABLE_MOVES = {
    (S.LOADING, S.READY),
    (S.LOADING, S.FAILED),
    (S.LOADING, S.DRAINING),
    (S.READY, S.DRAINING),
    (S.READY, S.FAILED),
    (S.READY, S.UNLOADED),
    (S.UNLOADED, S.LOADING),
    (S.UNLOADED, S.DRAINING),
    (S.FAILED, S.LOADING),
    (S.FAILED, S.DRAINING),
    (S.DRAINING, S.UNLOADED),
}


def test_a_servable_makes_only_the_drawn_moves() -> None:
    for current, following in itertools.product(S, S):
        if (current, following) in SERVABLE_MOVES:
            assert move_servable(current, following) is following
        else:
            with pytest.raises(IllegalMove, match=f"{current.name} to {following.name}"):
                move_servable(current, following)


def test_an_unloaded_servable_never_serves_without_loading() -> None:
    assert (S.UNLOADED, S.READY) not in SERVABLE_MOVES


SERVER_MOVES = {
    (ServerState.STARTING, ServerState.SERVING),
    (ServerState.STARTING, ServerState.DRAINING),
    (ServerState.SERVING, ServerState.STOPPING),
    (ServerState.STOPPING, ServerState.DRAINING),
    (ServerState.DRAINING, ServerState.DRAINING),
}


def test_a_server_makes_only_the_drawn_moves() -> None:
    metrics = ServerMetrics()
    dataplane = DataPlane(
        Registry(), metrics, Shadows(metrics.shadows, Budget(0)), logs_access=False
    )
    for current, following in itertools.product(ServerState, ServerState):
        dataplane.state = current
        if (current, following) in SERVER_MOVES:
            dataplane.enter(following)
            assert dataplane.state is following
        else:
            with pytest.raises(IllegalMove, match=f"{current.name} to {following.name}"):
                dataplane.enter(following)
