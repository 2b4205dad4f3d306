"""Requests that kill workers: they fail, and nobody and nothing else does."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mms.serving.pool.restarts import MAX_FAILURES
from tests.kit.archives import make_mar
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

KILLERS = ("segfault", "exit", "kill", "abort", "bad_alloc")
DIED = (500, "worker_died")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    archive = make_mar(folder, "deadly", name="deadly")
    return await start_shared(
        single=archive,
        twins=(archive, {"workers": 2}),
        once=(archive, {"retry_on_crash": False}),
        fresh=(archive, {"preload": False}),
        impatient=(archive, {"response_timeout": 1.5}),
        cancelling=(archive, {"cancel_running": "kill"}),
    )


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def outcome(server: RunningServer, model: str, command: list[Any]) -> tuple[int, str]:
    """Ask, and return the status and the error's code, or "" if there is none."""
    status, answer = await server.ask(model, command)
    return status, answer["error"]["code"] if isinstance(answer, dict) else ""


def deaths(server: RunningServer, model: str) -> int:
    """Return how many workers of a model have been replaced."""
    return sum(server.servable(model).restarts.values())


def is_ready(server: RunningServer, model: str) -> bool:
    return server.servable(model).state == "ready"


class TestV07TheModelIsNotToBlame:
    @pytest.mark.parametrize("model", ["single", "twins", "fresh"])
    async def test_v07_three_requests_that_kill_fail_alone(
        self, server: RunningServer, model: str
    ) -> None:
        for number in range(3):
            assert await outcome(server, model, ["segfault", model, number]) == DIED
            assert is_ready(server, model)
        assert await server.ask(model, ["echo", 1]) == (200, [1])

    @pytest.mark.parametrize("model", ["single", "twins"])
    async def test_v07_twenty_at_once_fail_alone(self, server: RunningServer, model: str) -> None:
        asked = (outcome(server, model, ["exit", "twenty", number]) for number in range(20))
        assert set(await asyncio.gather(*asked)) == {DIED}
        assert is_ready(server, model)
        assert await server.ask(model, ["echo", 1]) == (200, [1])

    @pytest.mark.parametrize("killer", KILLERS)
    async def test_v07_a_model_that_dies_on_every_request_stays_ready(
        self, server: RunningServer, killer: str
    ) -> None:
        for number in range(MAX_FAILURES + 1):
            assert await outcome(server, "single", [killer, "every", number]) == DIED
        assert is_ready(server, "single")
        assert (await server.get("/models/single/ready"))[0] == 200

    @pytest.mark.parametrize("model", ["single", "twins"])
    async def test_v07_no_good_request_fails_beside_sixty_that_kill(
        self, server: RunningServer, model: str
    ) -> None:
        is_over = False
        answered = [0] * 4

        async def good_client(number: int) -> None:
            while not is_over:
                token = f"{number}-{answered[number]}"
                assert await server.ask(model, ["echo", token]) == (200, [token])
                answered[number] += 1

        clients = [asyncio.create_task(good_client(number)) for number in range(4)]
        asked = (
            outcome(server, model, [KILLERS[number % len(KILLERS)], "sixty", number])
            for number in range(60)
        )
        assert set(await asyncio.gather(*asked)) == {DIED}
        is_over = True
        await asyncio.gather(*clients)
        assert min(answered) >= 1
        assert is_ready(server, model)

    async def test_v07_one_request_alone_costs_two_workers_and_without_retry_one(
        self, server: RunningServer
    ) -> None:
        for model, cost in (("single", 2), ("once", 1)):
            before = deaths(server, model)
            assert await outcome(server, model, ["exit", "cost", model]) == DIED
            await until(lambda m=model, n=before + cost: deaths(server, m) == n)  # type: ignore[misc]
            assert await server.ask(model, ["echo", 1]) == (200, [1])
            assert deaths(server, model) == before + cost

    async def test_v07_a_death_by_chance_is_retried_and_blames_nobody(
        self, server: RunningServer, notes: Path
    ) -> None:
        """An operator kills a busy worker: the request is answered, and so is the same again."""
        command = ["wait", str(notes)]
        asked = asyncio.create_task(server.ask("single", command))
        await until(lambda: len(files(notes)) == 1)
        os.kill(int(files(notes).pop()), signal.SIGKILL)
        await until(lambda: len(files(notes)) == 2)
        (notes / "go").touch()
        assert await asked == (200, ["went"])
        assert await server.ask("single", command) == (200, ["went"])

    async def test_v07_clients_that_leave_blame_nobody(
        self, server: RunningServer, notes: Path
    ) -> None:
        """With cancel_running: kill, each costs a worker; the request itself is innocent."""
        command = ["wait", str(notes)]
        for number in range(3):
            before = deaths(server, "cancelling")
            asked = asyncio.create_task(server.ask("cancelling", command))
            await until(lambda n=number: len(files(notes)) == n + 1)  # type: ignore[misc]
            asked.cancel()
            await until(lambda n=before: deaths(server, "cancelling") == n + 1)  # type: ignore[misc]
        (notes / "go").touch()
        assert await server.ask("cancelling", command) == (200, ["went"])

    async def test_v07_a_request_that_takes_too_long_blames_neither_model_nor_itself(
        self, server: RunningServer
    ) -> None:
        for _ in range(MAX_FAILURES + 1):
            answer = await outcome(server, "impatient", ["sleep", 60])
            assert answer == (504, "deadline_exceeded")
        assert is_ready(server, "impatient")


@pytest.mark.asyncio(loop_scope="function")
async def test_v07_deaths_while_idle_still_make_the_model_failed(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(deadly=make_mar(tmp_path, "deadly", name="deadly"))
    servable = server.servable("deadly")
    # In between, deaths with a request: they neither count nor hide the others.
    for number in range(MAX_FAILURES):
        assert servable.state == "ready"
        assert await outcome(server, "deadly", ["exit", number]) == DIED
        await until(lambda: servable.pids)
        killed = servable.pid
        os.kill(killed, signal.SIGKILL)
        await until(partial(lambda pid: pid not in servable.pids, killed))
    await until(lambda: servable.state == "failed")


class TestV07TheSameRequestAgain:
    async def test_v07_it_is_answered_without_being_run_and_told_why(
        self, server: RunningServer, notes: Path
    ) -> None:
        command = ["die_unless", str(notes)]
        assert await outcome(server, "single", command) == DIED
        assert len(files(notes)) == 2
        # It would live now, were it run.
        (notes / "good").touch()
        # Once its replacement is there, the death is counted.
        await until(lambda: server.servable("single").pids)
        before = deaths(server, "single")
        status, answer = await server.ask("single", command)
        assert (status, answer["error"]["code"]) == DIED
        assert re.search(r"this request killed a worker \d+ s ago", answer["message"])
        assert len(files(notes)) == 3
        assert deaths(server, "single") == before

    async def test_v07_many_at_once_cost_few_workers(self, server: RunningServer) -> None:
        before = deaths(server, "single")
        asked = [outcome(server, "single", ["exit", "many"]) for _ in range(50)]
        assert set(await asyncio.gather(*asked)) == {DIED}
        assert await server.ask("single", ["echo", 1]) == (200, [1])
        # The batch they came in, perhaps a second batch, and the one run alone.
        assert deaths(server, "single") - before <= 4

    async def test_v07_another_request_is_run(self, server: RunningServer, notes: Path) -> None:
        await outcome(server, "single", ["die_unless", str(notes), "a"])
        (notes / "good").touch()
        assert await server.ask("single", ["die_unless", str(notes), "b"]) == (200, ["lived"])

    async def test_v07_the_same_body_by_another_route_is_another_request(
        self, server: RunningServer, notes: Path
    ) -> None:
        command = ["die_unless", str(notes)]
        assert await outcome(server, "single", command) == DIED
        (notes / "good").touch()
        url = f"{server.url}/predictions/single?another=one"
        async with server.session.post(url, json=command) as response:
            assert (response.status, await response.json()) == (200, ["lived"])

    async def test_v07_another_model_is_asked(self, server: RunningServer, notes: Path) -> None:
        command = ["die_unless", str(notes)]
        assert await outcome(server, "single", command) == DIED
        (notes / "good").touch()
        assert await server.ask("twins", command) == (200, ["lived"])

    async def test_v07_without_retries_it_is_known_after_two_deaths(
        self, server: RunningServer, notes: Path
    ) -> None:
        command = ["die_unless", str(notes)]
        for runs in (1, 2, 2):
            assert await outcome(server, "once", command) == DIED
            assert len(files(notes)) == runs

    async def test_v07_one_that_gives_each_sending_an_id_of_its_own_is_known_too(
        self, server: RunningServer, notes: Path
    ) -> None:
        for number in range(2):
            headers = {"X-Request-Id": f"sending-{number}"}
            await server.ask("single", ["die_unless", str(notes)], headers)
        assert len(files(notes)) == 2
