"""What a worker may use of the machine: memory, core dumps, privileges."""

from __future__ import annotations

import resource
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from onnx import helper

from mms.export.package import export_model
from mms.serving.memory import private_bytes, resident_bytes
from tests.kit.archives import make_folder, make_mar
from tests.kit.onnx_models import FLOAT, INT64, make_model, value, write_model
from tests.kit.server import RunningServer, StartServer, running_servers
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MB = 1 << 20
LIMIT = 400 * MB
#: Far beyond the limit and what is allowed on top of it for stacks, and far below the machine's.
HUGE = 4096 * MB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("limits")
    archive = make_mar(folder, "deadly", name="deadly")
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    # As in a container, where core dumps are usually on.
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    try:
        async with running_servers(folder) as start:
            yield await start(
                limited=(archive, {"worker_memory_limit": LIMIT}),
                fresh=(archive, {"worker_memory_limit": LIMIT, "preload": False}),
                unlimited=archive,
            )
    finally:
        resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


async def pid_of(server: RunningServer, model: str) -> int:
    status, (pid,) = await server.ask(model, ["pid"])
    assert status == 200
    return int(pid)


@pytest.mark.parametrize("model", ["limited", "fresh"])
async def test_a_request_beyond_the_memory_limit_is_a_507_that_names_it(
    server: RunningServer, model: str
) -> None:
    pid = await pid_of(server, model)
    status, answer = await server.ask(model, ["allocate", HUGE])
    assert (status, answer["error"]["code"]) == (507, "out_of_memory")
    assert f"the worker may use {LIMIT} bytes" in answer["message"]
    assert "--worker-memory-limit" in answer["message"]
    # The worker lives, and what was within the limit still is.
    assert await server.ask(model, ["allocate", LIMIT // 4]) == (200, [LIMIT // 4])
    assert await pid_of(server, model) == pid


async def test_a_request_that_ends_as_native_code_does_without_memory_fails_alone(
    server: RunningServer,
) -> None:
    for number in range(6):
        status, answer = await server.ask("limited", ["bad_alloc", number])
        assert (status, answer["error"]["code"]) == (500, "worker_died")
    assert server.servable("limited").state == "ready"


async def test_a_worker_that_leaks_beyond_the_limit_is_replaced(server: RunningServer) -> None:
    servable = server.servable("limited")
    before = servable.restarts["max_memory"]
    first = await pid_of(server, "limited")
    while private_bytes(first) < LIMIT:
        status, answer = await server.ask("limited", ["leak", 20 * MB])
        assert status == 200, answer
    await until(lambda: servable.restarts["max_memory"] > before)
    await until(lambda: servable.pids != [first])
    assert await server.ask("limited", ["echo", 1]) == (200, [1])
    await until(lambda: not psutil.pid_exists(first))


@pytest.mark.parametrize("model", ["limited", "fresh", "unlimited"])
async def test_a_worker_dumps_no_core_gets_no_privileges_and_may_start_programs(
    server: RunningServer, model: str
) -> None:
    status, (limits,) = await server.ask(model, ["limits"])
    assert status == 200
    assert (limits["core"], limits["no_new_privs"], limits["program"]) == (0, 1, "ran\n")
    soft, hard = limits["data"]
    if model == "unlimited":
        assert soft == resource.RLIM_INFINITY
    else:
        # Both: user code cannot raise it again.
        assert LIMIT < soft == hard < HUGE


@pytest.mark.asyncio(loop_scope="function")
async def test_a_model_that_alone_needs_more_than_the_limit_does_not_load_and_says_so(
    start_server: StartServer, tmp_path: Path
) -> None:
    source = """
        weights = b"x" * (300 << 20)
        def handle(data, context):
            return None if data is None else ["" for _ in data]
    """
    server = await start_server(
        {"management_port": 0, "allowed_urls": ".*"},
        small=make_mar(tmp_path, "deadly", name="small"),
    )
    archive = make_mar(tmp_path, source, name="heavy")
    parameters: dict[str, Any] = {"url": str(archive), "initial_workers": 1}
    status, answer = await server.manage(
        "POST", "/models", {**parameters, "worker_memory_limit": 200 * MB}
    )
    assert (status, answer["error"]["code"]) == (507, "out_of_memory"), answer
    assert f"worker_memory_limit ({200 * MB})" in answer["message"]


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("preload", [True, False])
async def test_a_network_runs_within_its_resident_size_and_200_mb(
    start_server: StartServer, tmp_path: Path, preload: bool
) -> None:
    folder = make_folder(tmp_path / "network", "network")
    server = await start_server(network=(folder, {"preload": preload}))
    assert await server.ask("network", [0]) == (200, [8, 4])
    worker = server.servable("network").pid
    limit = resident_bytes(worker) + 200 * MB
    settings = {"preload": preload, "worker_memory_limit": limit, "workers": 2, "batch_size": 4}
    limited = await start_server(network=(folder, settings))
    for _ in range(20):
        assert await limited.ask("network", [0]) == (200, [8, 4])
    # What is below the limit can be used: 40 MB, and a copy of them.
    assert await limited.ask("network", [10 * MB]) == (200, [1])
    pids = set(limited.servable("network").pids)
    status, answer = await limited.ask("network", [HUGE // 4])
    assert (status, answer["error"]["code"]) == (507, "out_of_memory"), answer
    assert await limited.ask("network", [0]) == (200, [8, 4])
    assert set(limited.servable("network").pids) == pids


@pytest.mark.asyncio(loop_scope="function")
async def test_an_onnx_model_runs_within_its_resident_size_and_200_mb(
    start_server: StartServer, tmp_path: Path
) -> None:
    """Its input says how many numbers the network makes."""
    nodes = [
        helper.make_node("ConstantOfShape", ["x"], ["numbers"]),
        helper.make_node("ReduceSum", ["numbers"], ["y"], keepdims=1),
    ]
    model = make_model(nodes, [value("x", INT64, [1])], [value("y", FLOAT, [1])], [])
    archive = export_model("sized", write_model(tmp_path / "sized", model), None, tmp_path).path
    server = await start_server(sized=archive)
    assert (await server.ask("sized", [100]))[0] == 200
    worker = server.servable("sized").pid
    limit = resident_bytes(worker) + 200 * MB
    limited = await start_server(sized=(archive, {"worker_memory_limit": limit}))
    for _ in range(10):
        assert (await limited.ask("sized", [100]))[0] == 200
    worker = limited.servable("sized").pid
    status, answer = await limited.ask("sized", [HUGE // 4])
    assert (status, answer["error"]["code"]) == (507, "out_of_memory"), answer
    assert (await limited.ask("sized", [100]))[0] == 200
    assert limited.servable("sized").pids == [worker]
