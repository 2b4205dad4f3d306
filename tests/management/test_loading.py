"""Models that load, sleep, grow, are recycled, fail and recover by themselves."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.server import RunningServer, ServableView, StartServer
from tests.kit.waiting import let_go, until, waiting
from tests.management.stores import FAILS_WITH, WAITS_FOR, make_store, register, says

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    store = make_store(folder)
    return await start_shared({"management_port": 0, "model_store": str(store)})


async def gone(pid: int) -> None:
    await until(lambda: not os.path.exists(f"/proc/{pid}"))


async def queued(servable: ServableView, depth: int) -> None:
    await until(lambda: servable.queue_depth == depth)


class TestLazyLoad:
    async def test_the_first_requests_load_the_model_and_all_are_answered(
        self, server: RunningServer
    ) -> None:
        await register(server, "m", "v1", load="lazy")
        servable = server.servable("m")
        assert servable.processes == []
        assert (await server.get("/models/m/ready"))[0] == 200
        asking = (server.ask("m", []) for _ in range(8))
        assert set(await asyncio.gather(*asking)) == {(200, "v1")}
        assert len(servable.pids) == 1
        assert servable.restarts == {}

    async def test_without_initial_workers_it_loads_as_many_as_the_settings_say(
        self, server: RunningServer
    ) -> None:
        parameters = {"url": "v1", "model_name": "m", "load": "lazy", "workers": 1}
        assert (await server.manage("POST", "/models", parameters))[0] == 200
        assert server.servable("m").processes == []
        assert await server.ask("m", []) == (200, "v1")
        assert len(server.servable("m").pids) == 1

    async def test_workers_asked_for_before_it_is_loaded_are_there_once_it_is(
        self, server: RunningServer
    ) -> None:
        await register(server, "m", "v1", load="lazy")
        await server.manage("PUT", "/models/m?min_worker=2&synchronous=true")
        assert await server.ask("m", []) == (200, "v1")
        await until(lambda: len(server.servable("m").pids) == 2)

    async def test_a_load_that_fails_answers_all_who_wait_503_with_the_reason(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        load = WAITS_FOR.format(path=str(tmp_path / "go")) + "\nraise ValueError('no weights')"
        says(store / "late-failure", "", load)
        await register(server, "m", "late-failure", load="lazy")
        servable = server.servable("m")
        asking = [asyncio.create_task(server.ask("m", [])) for _ in range(3)]
        await until(lambda: servable.queue_depth == 3)
        (tmp_path / "go").touch()
        for status, answer in await asyncio.gather(*asking):
            assert (status, answer["error"]["code"]) == (503, "model_not_ready")
            assert "no weights" in answer["message"]
        assert servable.processes == []
        # And who comes later, too, at once.
        status, answer = await server.ask("m", [])
        assert status == 503
        assert "no weights" in answer["message"]
        status, answer = await server.get("/models/m/ready")
        assert (status, answer["state"]) == (503, "failed")
        # It is no model that the server waits for.
        assert (await server.get("/health/ready"))[0] == 200

    async def test_who_comes_while_a_failed_model_loads_again_is_answered_if_that_fails_too(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        load = WAITS_FOR.format(path=str(tmp_path / "go")) + "\nraise ValueError('no weights')"
        says(store / "again", "", load)
        (tmp_path / "go").touch()
        await register(server, "m", "again", load="lazy")
        servable = server.servable("m")
        assert (await server.ask("m", []))[0] == 503
        (tmp_path / "go").unlink()
        await server.manage("PUT", "/models/m?min_worker=1")
        await until(lambda: servable.state == "loading")
        waiting = asyncio.create_task(server.ask("m", []))
        await until(lambda: servable.queue_depth == 1)
        (tmp_path / "go").touch()
        assert (await waiting)[0] == 503

    async def test_unregistering_while_it_loads_ends_the_load(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        says(store / "endless", "", WAITS_FOR.format(path=str(tmp_path / "never")))
        await register(server, "m", "endless", load="lazy")
        servable = server.servable("m")
        asking = asyncio.create_task(server.ask("m", []))
        await until(lambda: servable.state == "loading")
        assert (await server.manage("DELETE", "/models/m?"))[0] == 200
        # What was accepted would get a minute; its client is more impatient.
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: servable.state == "unloaded")


class TestSleep:
    async def test_an_idle_model_goes_to_sleep_and_the_next_request_wakes_it(
        self, server: RunningServer
    ) -> None:
        await register(server, "m", "v1", idle_timeout=0.5)
        servable = server.servable("m")
        before = servable.processes
        await until(lambda: servable.state == "unloaded")
        await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before))
        assert servable.processes == []
        assert (await server.get("/models/m/ready"))[0] == 200
        asking = (server.ask("m", []) for _ in range(4))
        assert set(await asyncio.gather(*asking)) == {(200, "v1")}
        assert servable.restarts == {}

    async def test_a_busy_model_stays_awake(self, server: RunningServer, notes: Path) -> None:
        await register(server, "m", "v1", idle_timeout=0.1)
        await register(server, "other", "v2", idle_timeout=0.1)
        asking = asyncio.create_task(server.ask("m", ["wait", str(notes)]))
        await waiting(notes)
        # The other one shows that the time has come.
        await until(lambda: server.servable("other").state == "unloaded")
        assert server.servable("m").state == "ready"
        let_go(notes)
        assert await asking == (200, "v1")

    async def test_a_worker_that_is_slow_to_stop_does_not_harm_the_ones_that_follow(
        self, server: RunningServer
    ) -> None:
        await register(server, "m", "v1")
        servable = server.servable("m")
        frozen = servable.pid
        os.kill(frozen, signal.SIGSTOP)
        sleeping = asyncio.create_task(servable.sleep())
        await until(lambda: servable.state == "unloaded")
        assert await server.ask("m", []) == (200, "v1")
        await sleeping
        await gone(frozen)
        for _ in range(3):
            assert await server.ask("m", []) == (200, "v1")

    async def test_unregistering_while_a_worker_is_slow_to_stop_leaves_no_process(
        self, server: RunningServer
    ) -> None:
        await register(server, "m", "v1", idle_timeout=0.1)
        servable = server.servable("m")
        frozen = servable.pid
        os.kill(frozen, signal.SIGSTOP)
        await until(lambda: servable.state == "unloaded")
        await server.manage("DELETE", "/models/m")
        await gone(frozen)


class TestMemoryBudget:
    async def test_the_least_recently_used_goes_and_never_one_that_is_pinned_or_busy(
        self, start_server: StartServer, store: Path, notes: Path
    ) -> None:
        # Small enough that none may stay that need not.
        server = await start_server(
            {"memory_budget": 1},
            pinned=(store / "v1", {"pinned": True}),
            busy=(store / "v2", {"idle_timeout": 3600}),
            idle=store / "v3",
        )
        asking = asyncio.create_task(server.ask("busy", ["wait", str(notes)]))
        await waiting(notes)
        await until(lambda: server.servable("idle").state == "unloaded")
        await until(lambda: not server.servable("idle").processes)
        assert await server.ask("idle", []) == (200, "v3")
        await until(lambda: server.servable("idle").state == "unloaded")
        assert server.servable("pinned").state == "ready"
        assert server.servable("busy").state == "ready"
        # Asleep is ready: a request would be served.
        assert (await server.get("/ping"))[0] == 200
        let_go(notes)
        assert await asking == (200, "v2")

    async def test_no_more_go_than_must(self, start_server: StartServer, store: Path) -> None:
        models = {"a": store / "v1", "b": store / "v2", "c": store / "v3"}
        first = await start_server(**models)
        used = [first.servable(name).memory_bytes() for name in models]
        await first.stop()
        # Room for two: what models share with each other counts once, however many there are.
        budget = sum(used) - min(used) // 2
        server = await start_server({"memory_budget": budget}, **models)
        a, b, c = (server.servable(name) for name in models)
        await until(lambda: any(s.state == "unloaded" for s in (a, b, c)))
        asleep = next(s for s in (a, b, c) if s.state == "unloaded")
        older, newer = (s for s in (a, b, c) if s is not asleep)
        for servable in (older, newer, asleep):
            assert (await server.ask(servable.name, []))[0] == 200
        await until(lambda: older.state == "unloaded")
        assert newer.state == "ready"
        assert asleep.state == "ready"


async def keep_asking(
    server: RunningServer, name: str, until_: asyncio.Event, answers: list[Any]
) -> None:
    while not until_.is_set():
        answers.append(await server.ask(name, []))


class TestRecycling:
    @pytest.mark.parametrize(
        ("setting", "reason"),
        [
            ({"max_requests": 20}, "max_requests"),
            ({"max_worker_age": 0.2}, "max_age"),
            ({"max_worker_memory": 1}, "max_memory"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    async def test_workers_are_replaced_and_no_request_fails(
        self, server: RunningServer, setting: dict[str, Any], reason: str
    ) -> None:
        await register(server, "m", "v1", workers=2, **setting)
        servable = server.servable("m")
        before = set(servable.pids)
        answers: list[Any] = []
        stopping = asyncio.Event()
        clients = [
            asyncio.create_task(keep_asking(server, "m", stopping, answers)) for _ in range(8)
        ]
        await until(lambda: servable.restarts[reason] >= 4)
        await until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before))
        stopping.set()
        await asyncio.gather(*clients)
        assert set(answers) == {(200, "v1")}
        assert set(servable.restarts) == {reason}
        labels = {"model": "m", "reason": reason}
        assert await server.metric("mms_worker_restarts_total", **labels) >= 4

    async def test_scaling_to_nothing_while_a_worker_is_replaced_leaves_none(
        self, server: RunningServer
    ) -> None:
        await register(server, "m", "v1", max_requests=1)
        servable = server.servable("m")
        for _ in range(5):
            assert await server.ask("m", []) == (200, "v1")
            await server.manage("PUT", "/models/m?min_worker=0&synchronous=true")
            await until(lambda: not servable.pids and not servable.is_starting_workers)
            await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
            await until(lambda: len(servable.pids) == 1)


class TestAutoscale:
    async def test_it_grows_while_requests_wait_and_shrinks_after_a_quiet_time(
        self, server: RunningServer, notes: Path
    ) -> None:
        await register(server, "m", "v1", max_workers=3, scale_up_wait=1, scale_down_after=1)
        servable = server.servable("m")
        asking = [asyncio.create_task(server.ask("m", ["wait", str(notes)])) for _ in range(4)]
        await waiting(notes, 3)
        assert len(servable.pids) == 3
        assert servable.queue_depth == 1
        _, document = await server.manage("GET", "/models/m")
        assert (document["minWorkers"], document["maxWorkers"]) == (1, 3)
        let_go(notes)
        assert await asyncio.gather(*asking) == [(200, "v1")] * 4
        await until(lambda: len(servable.pids) == 1)
        assert await server.ask("m", []) == (200, "v1")


class TestFailure:
    async def test_workers_that_die_at_once_make_it_failed_and_scaling_brings_it_back(
        self, server: RunningServer, store: Path
    ) -> None:
        await register(server, "m", "faulty.model")
        servable = server.servable("m")
        # Five deaths in a row without a batch finished between them.
        for _ in range(5):
            if servable.state == "failed":
                break
            await until(lambda: servable.pids or servable.state == "failed")
            for pid in servable.pids:
                os.kill(pid, signal.SIGKILL)
            await until(lambda: not servable.pids)
        await until(lambda: servable.state == "failed")
        status, answer = await server.ask("m", ["pid"])
        assert (status, answer["error"]["code"]) == (503, "model_not_ready")
        _, document = await server.manage("GET", "/models/m")
        assert document["lastError"]["code"] == "worker_died"
        assert document["restarts"] == {"killed": 5}
        # A model that came later is nothing the server waits for.
        assert (await server.get("/health/ready"))[0] == 200
        answer = await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
        assert answer == (200, {"status": "Workers scaled"})
        assert (await server.ask("m", ["echo", 1])) == (200, 1)

    async def test_scaling_a_model_that_still_does_not_load_says_why(
        self, server: RunningServer, store: Path, tmp_path: Path
    ) -> None:
        switch = tmp_path / "broken"
        says(store / "switched-off", "fine", FAILS_WITH.format(path=str(switch)))
        switch.touch()
        await register(server, "m", "switched-off", load="lazy")
        assert (await server.ask("m", []))[0] == 503
        status, answer = await server.manage("PUT", "/models/m?min_worker=1&synchronous=true")
        assert (status, answer["error"]["code"]) == (500, "load_failed")
        assert server.servable("m").state == "failed"


class TestCancelling:
    async def test_a_batch_that_nobody_waits_for_is_killed_and_its_worker_replaced(
        self, server: RunningServer, notes: Path
    ) -> None:
        await register(server, "m", "v1", cancel_running="kill")
        servable = server.servable("m")
        # More often than a model may lose workers by its own fault.
        for number in range(1, 8):
            folder = notes / str(number)
            folder.mkdir()
            asking = asyncio.create_task(server.ask("m", ["wait", str(folder)]))
            (pid,) = await waiting(folder)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            await gone(pid)
            await until(lambda: len(servable.pids) == 1)
        assert servable.restarts == {"cancelled": 7}
        assert await server.ask("m", []) == (200, "v1")
        labels = {"model": "m", "reason": "cancelled"}
        assert await server.metric("mms_worker_restarts_total", **labels) == 7

    async def test_a_batch_with_one_client_left_goes_on(
        self, server: RunningServer, notes: Path
    ) -> None:
        await register(server, "m", "v1", cancel_running="kill", batch_size=2)
        servable = server.servable("m")
        first, second = notes / "1", notes / "2"
        first.mkdir()
        second.mkdir()
        blocker = asyncio.create_task(server.ask("m", ["wait", str(first)]))
        (pid,) = await waiting(first)
        pair = [asyncio.create_task(server.ask("m", ["wait", str(second)])) for _ in range(2)]
        await until(lambda: servable.queue_depth == 2)
        let_go(first)
        await blocker
        await waiting(second)
        assert servable.in_flight == 2
        pair[0].cancel()
        await asyncio.gather(pair[0], return_exceptions=True)
        await until(lambda: servable.rejected["client_left"] == 1)
        let_go(second)
        assert await pair[1] == (200, "v1")
        assert await server.ask("m", ["pid"]) == (200, pid)

    async def test_by_default_a_running_batch_is_finished(
        self, server: RunningServer, notes: Path
    ) -> None:
        await register(server, "m", "v1")
        asking = asyncio.create_task(server.ask("m", ["wait", str(notes)]))
        (pid,) = await waiting(notes)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: server.servable("m").rejected["client_left"] == 1)
        let_go(notes)
        assert await server.ask("m", ["pid"]) == (200, pid)


class TestPriority:
    async def test_high_goes_before_what_waits_already(
        self, server: RunningServer, notes: Path
    ) -> None:
        await register(server, "m", "v1")
        servable = server.servable("m")
        blocker = asyncio.create_task(server.ask("m", ["wait", str(notes)]))
        await waiting(notes)
        order: list[str] = []

        async def ask(name: str, priority: str | None) -> None:
            headers = {"X-Request-Priority": priority} if priority else None
            assert (await server.ask("m", [], headers))[0] == 200
            order.append(name)

        asking = []
        sent = [("first", None), ("second", "low"), ("third", "HIGH"), ("fourth", "high")]
        for depth, (name, priority) in enumerate(sent, 1):
            asking.append(asyncio.create_task(ask(name, priority)))
            await queued(servable, depth)
        let_go(notes)
        await asyncio.gather(blocker, *asking)
        assert order == ["third", "fourth", "first", "second"]
