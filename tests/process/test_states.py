"""Each state that a worker, a model or a pool can be in is one that real processes bring about."""

from __future__ import annotations

import asyncio
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mms.serving.lifecycle import ServableState
from mms.serving.pool.machine import Phase
from mms.serving.pool.restarts import MAX_FAILURES
from mms.serving.pool.slot import WorkerState
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import let_go, until, waiting
from tests.management.stores import FAILS_WITH, WAITS_FOR, register, says


@pytest.fixture
async def server(start_server: StartServer, tmp_path: Path) -> RunningServer:
    """A server whose model ``m`` loads once ``go`` is there, and not while ``broken`` is."""
    load = "\n".join(
        [
            FAILS_WITH.format(path=str(tmp_path / "broken")),
            WAITS_FOR.format(path=str(tmp_path / "go")),
        ]
    )
    says(tmp_path / "store" / "m", "text", load)
    return await start_server({"management_port": 0, "model_store": str(tmp_path / "store")})


async def until_shown(server: RunningServer, state: WorkerState, count: int) -> None:
    """Wait until the metrics show so many workers in a state."""
    sample = f'mms_workers{{model="m",state="{state.value}",version="1"}} {count:.1f}'

    async def is_shown() -> bool:
        return sample in (await server.metrics()).splitlines()

    await until(is_shown, what=f"{count} workers {state}")


async def shown(server: RunningServer) -> dict[str, Any]:
    """Return what the management API shows of the model."""
    status, document = await server.manage("GET", "/models/m")
    assert status == 200
    shown: dict[str, Any] = document
    return shown


async def test_the_metrics_show_workers_in_each_state_that_there_is(
    server: RunningServer, tmp_path: Path, notes: Path
) -> None:
    seen: dict[WorkerState, int] = {}

    async def see(state: WorkerState, count: int) -> None:
        await until_shown(server, state, count)
        seen[state] = count

    await register(server, "m", "m", load="lazy", workers=2)
    first = asyncio.create_task(server.ask("m", []))
    # The first loads, the other waits for it.
    await see(WorkerState.STARTING, 2)
    (tmp_path / "go").touch()
    assert await first == (200, "text")
    await see(WorkerState.READY, 2)

    running = asyncio.create_task(server.ask("m", ["wait", str(notes)]))
    await waiting(notes)
    await see(WorkerState.BUSY, 1)
    assert sorted(w["status"] for w in (await shown(server))["workers"]) == ["BUSY", "READY"]
    let_go(notes)
    assert await running == (200, "text")

    for pid in server.servable("m").pids:
        # It cannot read that it is to stop.
        os.kill(pid, signal.SIGSTOP)
    await server.manage("PUT", "/models/m?min_worker=0")
    await see(WorkerState.STOPPING, 2)
    assert (await shown(server))["workers"] == []
    await see(WorkerState.STOPPING, 0)
    await server.manage("PUT", "/models/m?min_worker=2&synchronous=true")
    await see(WorkerState.READY, 2)

    (tmp_path / "broken").touch()
    servable = server.servable("m")
    assert servable.loader_pid is not None
    for pid in (servable.loader_pid, servable.pids[0]):
        os.kill(pid, signal.SIGKILL)
    await see(WorkerState.BACKOFF, 1)
    (tmp_path / "broken").unlink()
    await see(WorkerState.READY, 2)
    assert seen.keys() == set(WorkerState)


async def test_a_model_and_its_pool_go_through_each_state_that_there_is(
    server: RunningServer, tmp_path: Path, notes: Path
) -> None:
    seen: list[tuple[ServableState, Phase]] = []

    async def see(state: ServableState, phase: Phase) -> None:
        servable = server.servable("m")
        await until(lambda: servable.state == state.value and servable.phase is phase)
        assert (await shown(server))["state"] == state.value
        assert await server.metric("mms_model_state", model="m", state=state.value) == 1
        seen.append((state, phase))

    await register(server, "m", "m", load="lazy")
    await see(ServableState.UNLOADED, Phase.NEW)
    first = asyncio.create_task(server.ask("m", []))
    await see(ServableState.LOADING, Phase.LOADING)
    (tmp_path / "go").touch()
    assert await first == (200, "text")
    await see(ServableState.READY, Phase.RUNNING)

    servable = server.servable("m")
    await server.manage("PUT", "/models/m?min_worker=0&synchronous=true")
    await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
    # Five that never serve anybody.
    for _ in range(MAX_FAILURES):
        await until(lambda: servable.pids)
        pid = servable.pid
        os.kill(pid, signal.SIGKILL)
        await until(partial(lambda pid: pid not in servable.pids, pid))
    await see(ServableState.FAILED, Phase.FAILED)
    assert "5 workers in a row died" in (await shown(server))["lastError"]["message"]

    await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
    await see(ServableState.READY, Phase.RUNNING)

    running = asyncio.create_task(server.ask("m", ["wait", str(notes)]))
    await waiting(notes)
    ending = asyncio.create_task(server.manage("DELETE", "/models/m"))
    await until(lambda: servable.state == "draining")
    seen.append((ServableState(servable.state), servable.phase))
    let_go(notes)
    assert await running == (200, "text")
    assert (await ending)[0] == 200
    await until(lambda: servable.phase is Phase.STOPPED)
    await until(lambda: servable.state == "unloaded")
    seen.append((ServableState(servable.state), servable.phase))
    assert {state for state, _ in seen} == set(ServableState)
    assert {phase for _, phase in seen} == set(Phase)
