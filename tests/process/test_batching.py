"""Joined forward passes: each client gets its own rows, and only its own failures."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.archives import make_archive, make_folder, signature
from tests.kit.server import RunningServer, StartServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    rows = make_archive(folder, "rows", signature([0, 3]))
    # The delay makes requests sent together meet in one batch however slow this machine is.
    together = {"batch_size": 8, "max_batch_delay": 500.0}
    models: dict[str, Any] = {
        "rows": (rows, {"batch_size": 8}),
        "joined": (rows, together),
    }
    for name in ("pairs", "numpy_arrays", "whole", "summing", "remembering"):
        names = ("left", "right") if name == "pairs" else ("data",)
        archive = make_folder(folder / name, name, signature(names=names))
        models[name] = (archive, together)
    return await start_shared(**models)


async def ask_all(server: RunningServer, model: str, values: list[Any]) -> list[tuple[int, Any]]:
    """Ask for all values at the same time."""
    return list(await asyncio.gather(*(server.ask(model, value) for value in values)))


def doubled(value: Sequence[Sequence[float]]) -> list[list[float]]:
    return [[2 * number + 1 for number in row] for row in value]


async def test_each_client_gets_its_own_rows_and_what_it_stored_on_self(
    server: RunningServer,
) -> None:
    values = [[[float(n), 0.5, -n]] * (1 + n % 3) for n in range(100)]
    answers = await ask_all(server, "rows", values)
    for value, (status, answer) in zip(values, answers, strict=True):
        assert status == 200, answer
        assert answer["rows"] == doubled(value)
        assert answer["marker"] == value[0][0]


async def test_concurrent_requests_share_forward_passes(server: RunningServer) -> None:
    before = len(server.forwards("rows"))
    await ask_all(server, "rows", [[[n, 0, 0]] for n in range(64)])
    # The first may run alone; the rest gather behind it.
    assert len(server.forwards("rows")) - before < 40


async def test_max_batch_delay_lets_requests_meet(server: RunningServer) -> None:
    full = await server.metric("mms_batch_release_total", model="joined", reason="full")
    answers = await ask_all(server, "joined", [[[n, 0, 0]] for n in range(8)])
    assert [answer["marker"] for _, answer in answers] == list(range(8))
    assert 8 in server.forwards("joined")
    assert await server.metric("mms_batch_release_total", model="joined", reason="full") == full + 1


async def test_a_lone_request_leaves_after_max_batch_delay(server: RunningServer) -> None:
    late = await server.metric("mms_batch_release_total", model="joined", reason="delay")
    assert (await server.ask("joined", [[1, 2, 3]]))[1]["rows"] == [[3, 5, 7]]
    assert (
        await server.metric("mms_batch_release_total", model="joined", reason="delay") == late + 1
    )


async def test_a_batch_holds_several_rows_of_each_request(server: RunningServer) -> None:
    values = [[[float(n), 1, 2]] * (n + 1) for n in range(8)]
    answers = await ask_all(server, "joined", values)
    assert [answer["rows"] for _, answer in answers] == [doubled(value) for value in values]
    assert server.forwards("joined")[-1] == sum(range(1, 9))


async def test_requests_of_different_shapes_run_apart(server: RunningServer) -> None:
    wide = [[[float(n)] * 5] for n in range(4)]
    narrow = [[[float(n)] * 3] for n in range(4)]
    for _ in range(2):
        # The first batch of new shapes is compared with single requests.
        answers = await ask_all(server, "joined", [*wide, *narrow])
        assert [a["rows"] for _, a in answers] == [doubled(v) for v in [*wide, *narrow]]
    assert server.forwards("joined")[-2:] == [4, 4]


@pytest.mark.parametrize("bad", [[[2e6, 0, 0]], [["text"]], "no list", [[1], [1, 2]]], ids=str)
async def test_a_bad_request_fails_alone_in_its_batch(server: RunningServer, bad: Any) -> None:
    values = [[[n, 0, 0]] for n in range(7)]
    bad_answer, *answers = await ask_all(server, "joined", [bad, *values])
    assert bad_answer[0] in (400, 500)
    assert [answer["rows"] for _, answer in answers] == [doubled(value) for value in values]


async def test_bad_requests_do_not_end_batching(server: RunningServer) -> None:
    for _ in range(4):
        await ask_all(server, "joined", [[[2e6, 0, 0]], *([[n, 0, 0]] for n in range(7))])
    await ask_all(server, "joined", [[[n, 0, 0]] for n in range(8)])
    assert server.forwards("joined")[-1] == 8


async def test_several_inputs_from_an_iterator_and_several_outputs_are_joined_each_along_axis_0(
    server: RunningServer,
) -> None:
    values = [{"left": [[n, 1]], "right": [[10, n]]} for n in range(8)]
    answers = await ask_all(server, "pairs", values)
    for n, answer in enumerate(answers):
        assert answer == (200, [[[n + 10, n + 1]], [[10 * n, n]], [[1, 1]]])
    assert 8 in server.forwards("pairs")


async def test_numpy_arrays_are_batched(server: RunningServer) -> None:
    answers = await ask_all(server, "numpy_arrays", [[n] for n in range(8)])
    assert answers == [(200, [[2 * n, 3 * n]]) for n in range(8)]
    assert 8 in server.forwards("numpy_arrays")


async def test_a_service_that_overrides_inference_is_not_batched(server: RunningServer) -> None:
    answers = await ask_all(server, "whole", [[[n]] for n in range(8)])
    assert answers == [(200, [[[n]], 1]) for n in range(8)]


async def test_a_service_with_the_wrong_number_of_rows_runs_one_by_one(
    server: RunningServer,
) -> None:
    for _ in range(4):
        answers = await ask_all(server, "summing", [[[n, 1]] for n in range(8)])
        assert [(status, answer[0]) for status, answer in answers] == [
            (200, [[n, 1]]) for n in range(8)
        ]
    # By now the service is known for one that cannot be joined, and nothing is tried in vain.
    (_, (_, before)) = await server.ask("summing", [[0, 0]])
    answers = await ask_all(server, "summing", [[[n, 1]] for n in range(8)])
    assert max(answer[1] for _, answer in answers) == before + 8


async def test_sys_exit_in_a_joint_forward_fails_one_request_and_keeps_the_worker(
    server: RunningServer,
) -> None:
    bad, *answers = await ask_all(server, "numpy_arrays", [[-11], *([n] for n in range(7))])
    assert (bad[0], bad[1]["error"]["code"]) == (500, "inference_failed")
    assert answers == [(200, [[2 * n, 3 * n]]) for n in range(7)]
    assert await server.metric("mms_worker_restarts_total", model="numpy_arrays") == 0


async def test_what_a_forward_pass_stores_on_self_is_never_another_requests(
    server: RunningServer,
) -> None:
    answers = await ask_all(server, "remembering", [[[n]] for n in range(8)])
    assert answers == [(200, [[n]]) for n in range(8)]


async def test_metrics_count_batches_by_size(server: RunningServer) -> None:
    batches = await server.metric("mms_batch_size_count", model="numpy_arrays")
    requests = await server.metric("mms_batch_size_sum", model="numpy_arrays")
    await ask_all(server, "numpy_arrays", [[n] for n in range(8)])
    assert await server.metric("mms_batch_size_count", model="numpy_arrays") == batches + 1
    assert await server.metric("mms_batch_size_sum", model="numpy_arrays") == requests + 8
