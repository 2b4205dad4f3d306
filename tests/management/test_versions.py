"""Several versions of a model: default, split traffic, shadow traffic, updates under load."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import let_go, until, waiting
from tests.management.stores import make_store, register, says

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    """A server with three versions of `m`, each of which answers its name."""
    store = make_store(folder)
    server = await start_shared({"management_port": 0, "model_store": str(store)}, m=store / "v1")
    for number in (2, 3):
        await register(server, "m", f"v{number}", version=str(number), make_default=False)
    return server


@pytest_asyncio.fixture(loop_scope="module")
async def server(server: RunningServer) -> AsyncIterator[RunningServer]:
    yield server
    await server.manage("PUT", "/models/m/1/set-default")
    await split(server)


async def split(server: RunningServer, **traffic: Any) -> None:
    answer = await server.manage("PUT", "/models/m/traffic", traffic)
    assert answer == (200, {"status": 'Traffic of model "m" changed'})


async def more(answers: Counter[Any]) -> None:
    """Wait until so many more answers have come that each client has had its own."""
    enough = answers.total() + 32
    await until(lambda: answers.total() > enough)


async def outcomes(server: RunningServer) -> Counter[str]:
    """Return how the copies for version 2 have ended so far."""
    found = server.shadows
    return Counter({outcome: n for (name, _, outcome), n in found.items() if name == "m"})


class TestVersions:
    async def test_each_version_has_a_path_and_the_default_has_the_bare_name(
        self, server: RunningServer
    ) -> None:
        assert await server.ask("m", []) == (200, "v1")
        for number in (1, 2, 3):
            assert await server.ask(f"m/{number}", []) == (200, f"v{number}")
        status, answer = await server.ask("m/9", [])
        assert (status, answer["error"]["code"]) == (404, "version_not_found")

    async def test_set_default_moves_the_bare_name(self, server: RunningServer) -> None:
        status, answer = await server.manage("PUT", "/models/m/3/set-default")
        assert (status, answer) == (200, {"status": 'Default version of model "m" is now "3"'})
        assert await server.ask("m", []) == (200, "v3")
        _, document = await server.manage("GET", "/models/m")
        assert (document["defaultVersion"], document["version"]) == ("3", "3")
        assert document["versions"] == ["1", "2", "3"]

    async def test_a_new_version_becomes_the_default_unless_told_otherwise(
        self, server: RunningServer
    ) -> None:
        await register(server, "n", "v1")
        await register(server, "n", "v2", version="2", make_default=False)
        assert await server.ask("n", []) == (200, "v1")
        await register(server, "n", "v3", version="3")
        assert await server.ask("n", []) == (200, "v3")

    async def test_a_new_version_without_workers_does_not_take_over_by_itself(
        self, server: RunningServer
    ) -> None:
        await register(server, "n", "v1")
        await register(server, "n", "v2", workers=0, version="2")
        assert await server.ask("n", []) == (200, "v1")

    async def test_the_default_cannot_be_unregistered_while_others_are_left(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.manage("DELETE", "/models/m/1")
        assert (status, answer["error"]["code"]) == (409, "conflict")
        assert await server.ask("m", []) == (200, "v1")

    async def test_a_version_goes_alone_and_the_last_one_takes_the_model_along(
        self, server: RunningServer
    ) -> None:
        await register(server, "n", "v1")
        await register(server, "n", "v2", version="2")
        assert (await server.manage("DELETE", "/models/n/1"))[0] == 200
        assert await server.ask("n", []) == (200, "v2")
        assert (await server.ask("n/1", []))[0] == 404
        assert (await server.manage("DELETE", "/models/n/2"))[0] == 200
        assert (await server.manage("GET", "/models/n"))[0] == 404

    async def test_a_version_that_does_not_load_leaves_the_others_alone(
        self, server: RunningServer
    ) -> None:
        parameters = {
            "url": "broken",
            "model_name": "m",
            "version": "4",
            "initial_workers": 1,
        }
        assert (await server.manage("POST", "/models", parameters))[0] == 500
        _, document = await server.manage("GET", "/models/m")
        assert (document["versions"], document["defaultVersion"]) == (["1", "2", "3"], "1")


class TestUpdates:
    async def test_no_request_of_sixteen_clients_fails_while_versions_come_and_go(
        self, server: RunningServer
    ) -> None:
        await register(server, "n", "v1")
        stopping = asyncio.Event()
        answers: Counter[tuple[int, Any]] = Counter()

        async def keep_asking() -> None:
            while not stopping.is_set():
                status, answer = await server.ask("n", [])
                answers[status, str(answer)] += 1

        clients = [asyncio.create_task(keep_asking()) for _ in range(16)]
        for number in (2, 3, 4, 5):
            version = str(number)
            await register(server, "n", f"v{2 + number % 2}", version=version)
            assert (await server.manage("DELETE", f"/models/n/{number - 1}"))[0] == 200
            await more(answers)
        stopping.set()
        await asyncio.gather(*clients)
        assert {status for status, _ in answers} == {200}, answers
        assert set(answers) == {(200, "v1"), (200, "v2"), (200, "v3")}

    async def test_a_request_whose_body_is_still_coming_meets_the_new_version(
        self, server: RunningServer
    ) -> None:
        await register(server, "n", "v1")
        port = server.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = (
            b"POST /predictions/n HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        writer.write(head + b"Content-Length: 2\r\nConnection: close\r\n\r\n[")
        # The next request is answered after this one has found its way to its handler.
        assert await server.ask("n", []) == (200, "v1")
        await register(server, "n", "v2", version="2")
        assert (await server.manage("DELETE", "/models/n/1"))[0] == 200
        writer.write(b"]")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 200"), answer
        assert answer.endswith(b'"v2"'), answer


class TestSplit:
    async def test_versions_are_met_by_their_weights(self, server: RunningServer) -> None:
        await split(server, weights={"1": 90, "2": 10})
        answers: Counter[str] = Counter()
        for _ in range(20):
            for status, answer in await asyncio.gather(*(server.ask("m", []) for _ in range(50))):
                assert status == 200
                answers[answer] += 1
        # Mean 100, standard deviation 9.5: beyond these bounds lie less than 1e-9 (Chernoff).
        assert 35 < answers["v2"] < 185
        assert answers["v1"] + answers["v2"] == 1000

    async def test_a_version_of_weight_0_is_never_met(self, server: RunningServer) -> None:
        await split(server, weights={"1": 0, "2": 1, "3": 0})
        answers = await asyncio.gather(*(server.ask("m", []) for _ in range(50)))
        assert set(answers) == {(200, "v2")}

    async def test_a_named_version_is_met_whatever_the_weights(self, server: RunningServer) -> None:
        await split(server, weights={"2": 1})
        assert await server.ask("m/1", []) == (200, "v1")

    async def test_a_value_of_the_sticky_header_always_meets_the_same_version(
        self, server: RunningServer
    ) -> None:
        await split(server, weights={"1": 50, "2": 50}, sticky_header="X-User")
        met = set()
        for user in range(40):
            headers = {"x-user": f"user-{user}"}
            asking = (server.ask("m", [], headers) for _ in range(4))
            (answer,) = set(await asyncio.gather(*asking))
            met.add(answer)
        # That 40 users all fall to one side has a chance of 2^-39.
        assert met == {(200, "v1"), (200, "v2")}

    async def test_a_sticky_header_may_hold_any_bytes(self, server: RunningServer) -> None:
        await split(server, weights={"1": 1}, sticky_header="X-User")
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        head = (
            b"POST /predictions/m HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        )
        writer.write(head + b"X-User: \xff\xfe\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 200"), answer

    async def test_without_weights_the_default_answers_again(self, server: RunningServer) -> None:
        await split(server, weights={"2": 1})
        await split(server)
        assert await server.ask("m", []) == (200, "v1")

    @pytest.mark.parametrize(
        ("traffic", "expected"),
        [
            ({"weights": {"9": 1}}, 404),
            ({"weights": {"1": 1}, "shadow": "9"}, 404),
            ({"weights": {"1": -1, "2": 2}}, 400),
            ({"weights": {"1": 0, "2": 0}}, 400),
            ({"weights": {"1": 0.5}}, 400),
            ({"weights": {"1": True}}, 400),
            ({"weights": [1]}, 400),
            ({"weights": "1"}, 400),
            ({"sticky_header": 1}, 400),
            ({"shadow": 2}, 400),
            ({"wheights": {}}, 400),
        ],
        ids=str,
    )
    async def test_an_impossible_split_changes_nothing(
        self, server: RunningServer, traffic: dict[str, Any], expected: int
    ) -> None:
        before = server.traffic("m")
        assert (await server.manage("PUT", "/models/m/traffic", traffic))[0] == expected
        assert server.traffic("m") == before

    async def test_the_split_is_described_and_a_version_that_goes_leaves_it(
        self, server: RunningServer
    ) -> None:
        await register(server, "n", "v1")
        await register(server, "n", "v2", version="2", make_default=False)
        traffic = {"weights": {"1": 1, "2": 3}, "sticky_header": "X-User", "shadow": "2"}
        assert (await server.manage("PUT", "/models/n/traffic", traffic))[0] == 200
        _, document = await server.manage("GET", "/models/n")
        assert document["traffic"] == {
            "weights": {"1": 1, "2": 3},
            "stickyHeader": "X-User",
            "shadow": "2",
        }
        assert (await server.manage("DELETE", "/models/n/2"))[0] == 200
        _, document = await server.manage("GET", "/models/n")
        assert document["traffic"] == {
            "weights": {"1": 1},
            "stickyHeader": "X-User",
            "shadow": "",
        }
        assert await server.ask("n", []) == (200, "v1")


class TestShadow:
    async def test_copies_are_counted_by_how_their_answers_compare(
        self, server: RunningServer
    ) -> None:
        store = Path(server.settings.model_store)
        says(store / "twin", "v1")
        await register(server, "m", "twin", version="twin", make_default=False)
        before = await outcomes(server)
        await split(server, shadow="twin")
        for _ in range(3):
            assert await server.ask("m", []) == (200, "v1")
        await until(lambda: server.shadows["m", "twin", "same"] == 3)
        await split(server, shadow="2")
        for _ in range(2):
            assert await server.ask("m", []) == (200, "v1")
        await until(lambda: server.shadows["m", "2", "different"] == 2)
        labels = {"model": "m", "version": "2", "outcome": "different"}
        assert await server.metric("mms_shadow_requests_total", **labels) == 2
        assert (await outcomes(server)) - before == {"same": 3, "different": 2}
        assert (await server.manage("DELETE", "/models/m/twin"))[0] == 200

    async def test_a_slow_shadow_delays_nobody(self, server: RunningServer, notes: Path) -> None:
        await split(server, shadow="2")
        occupied = asyncio.create_task(server.ask("m/2", ["wait", str(notes)]))
        await waiting(notes)
        before = await outcomes(server)
        for _ in range(110):
            assert await server.ask("m", []) == (200, "v1")
        # No more than a hundred copies wait; the rest are skipped.
        assert (await outcomes(server)) - before == {"skipped": 10}
        let_go(notes)
        assert await occupied == (200, "v2")
        different = before["different"] + 100
        await until(lambda: server.shadows["m", "2", "different"] == different)

    async def test_a_dead_shadow_costs_nobody_an_answer(self, server: RunningServer) -> None:
        shadow = server.servable("m", "2")
        await server.manage("PUT", "/models/m/2?min_worker=0&synchronous=true")
        await split(server, shadow="2")
        before = await outcomes(server)
        for _ in range(3):
            assert await server.ask("m", []) == (200, "v1")
        await until(lambda: server.shadows["m", "2", "failed"] == 3)
        assert (await outcomes(server)) - before == {"failed": 3}
        await server.manage("PUT", "/models/m/2?min_worker=1&synchronous=true")
        killed = shadow.pid
        os.kill(killed, signal.SIGKILL)
        assert await server.ask("m", []) == (200, "v1")
        await until(lambda: shadow.pids and shadow.pids != [killed])

    async def test_a_named_version_is_not_copied(self, server: RunningServer) -> None:
        await split(server, shadow="2")
        before = await outcomes(server)
        assert await server.ask("m/1", []) == (200, "v1")
        assert await server.ask("m", []) == (200, "v1")
        await until(lambda: server.shadows.total() > before.total())
        assert ((await outcomes(server)) - before).total() == 1

    async def test_the_version_that_answers_is_not_copied_to_itself(
        self, server: RunningServer
    ) -> None:
        await split(server, shadow="1")
        before = await outcomes(server)
        assert await server.ask("m", []) == (200, "v1")
        assert await outcomes(server) == before
