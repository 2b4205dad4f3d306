"""Whatever a service does, the client gets an answer and the next request is served."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mms.wire.codec import encode_result
from mms.wire.messages import Result
from tests.kit.archives import SERVICES, make_archive, make_folder
from tests.kit.server import RunningServer, StartServer, running_servers
from tests.kit.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_RESPONSE_BYTES = 1 << 20


def line_of(text: str) -> int:
    """Return the number of the line of faulty.py that holds a text."""
    lines = (SERVICES / "faulty.py").read_text().splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


def only_worker(server: RunningServer, name: str = "faulty") -> int:
    """Return the pid of a model's only worker."""
    return server.servable(name).pid


async def kill_workers(server: RunningServer, name: str = "faulty") -> None:
    """Kill every worker of a model, and wait until the server has noticed."""
    await until(lambda: server.servable(name).pids)
    killed = server.servable(name).pids
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not set(killed) & set(server.servable(name).pids))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    """One server with the same service under several names and settings."""
    archive = make_archive(folder, "faulty")
    return await start_shared(
        {"max_response_bytes": MAX_RESPONSE_BYTES},
        faulty=archive,
        impatient=(archive, {"response_timeout": 2}),
        once=(archive, {"retry_on_crash": False}),
        twins=(archive, {"workers": 2}),
        doomed=archive,
    )


def has_files(folder: Path, count: int) -> bool:
    return len(list(folder.iterdir())) == count


def has_grown(now: list[int], before: list[int], tasks: list[asyncio.Task[None]]) -> bool:
    """Whether every number has; true, too, if a task has ended before its time."""
    return all(map(int.__gt__, now, before)) or any(task.done() for task in tasks)


class TestErrorsOfAService:
    """None of these may cost the worker its life."""

    @pytest_asyncio.fixture(autouse=True, loop_scope="module")
    async def same_worker(self, server: RunningServer) -> AsyncIterator[None]:
        pid = only_worker(server)
        yield
        assert await server.ask("faulty", ["pid"]) == (200, pid)

    async def test_an_exception_is_a_500_with_stage_type_and_the_users_line(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.ask("faulty", ["raise", "oops"], {"X-Request-Id": "abc"})
        assert status == 500
        assert answer["error"] == {
            "code": "inference_failed",
            "type": "InferenceFailed",
            "message": "the service raised an exception in inference: KeyError: 'oops'",
            "request_id": "abc",
            "stage": "inference",
            "exception": "KeyError",
            "where": f"service.py:{line_of('raise KeyError(text)')}",
        }
        assert answer["code"] == 500
        assert answer["message"] == answer["error"]["message"]

    async def test_an_exception_is_logged_with_the_request_id_and_the_users_frames_only(
        self, server: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        await server.ask("faulty", ["raise", "oops"], {"X-Request-Id": "logged-1"})

        def lines() -> list[Any]:
            return [record for record in caplog.records if record.exc_text]

        await until(lines)
        (record,) = lines()
        assert vars(record)["request_id"] == "logged-1"
        assert vars(record)["model"] == "faulty"
        traceback = record.exc_text or ""
        assert traceback.startswith("Traceback (most recent call last):")
        assert "KeyError: 'oops'" in traceback
        assert "mms/worker" not in traceback

    async def test_a_prediction_exception_chooses_status_and_message(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.ask("faulty", ["reject", "no cats here", 422])
        assert status == 422
        assert answer["error"]["code"] == "rejected_by_service"
        assert answer["message"] == "no cats here"

    async def test_a_prediction_exception_has_any_status_as_in_1x(
        self, server: RunningServer
    ) -> None:
        # 1.x sends it as it is; what HTTP does not know as a final status is a 500.
        for asked, status in ((200, 200), (302, 302), (999, 999), (100, 500), (1000, 500)):
            answered, _ = await server.ask("faulty", ["reject", "fine", asked])
            assert answered == status

    async def test_sys_exit_fails_its_request_only(self, server: RunningServer) -> None:
        status, answer = await server.ask("faulty", ["exit", 3])
        assert (status, answer["error"]["exception"]) == (500, "SystemExit")

    async def test_running_out_of_memory_is_a_507(self, server: RunningServer) -> None:
        status, answer = await server.ask("faulty", ["out_of_memory"])
        assert (status, answer["error"]["code"]) == (507, "out_of_memory")

    async def test_an_answer_beyond_the_limit_is_a_500_that_names_the_option(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.ask("faulty", ["huge", MAX_RESPONSE_BYTES])
        assert (status, answer["error"]["code"]) == (500, "invalid_service_output")
        assert "max_response_bytes" in answer["message"]
        status, answer = await server.ask("faulty", ["huge", MAX_RESPONSE_BYTES - 2])
        assert (status, len(answer)) == (200, MAX_RESPONSE_BYTES - 2)

    @pytest.mark.parametrize("command", [["unserialisable"], ["nested", 5000]], ids=str)
    async def test_an_answer_that_is_no_json_is_a_500_that_says_so(
        self, server: RunningServer, command: list[Any]
    ) -> None:
        status, answer = await server.ask("faulty", command)
        assert (status, answer["error"]["code"]) == (500, "invalid_service_output")
        assert answer["error"]["stage"] == "encode"
        assert "cannot be sent as JSON" in answer["message"]

    async def test_nan_and_infinity_are_answered_as_null(self, server: RunningServer) -> None:
        assert await server.ask("faulty", ["nan"]) == (200, [None, None, 1.5])

    async def test_arrays_are_answered_as_nested_lists(self, server: RunningServer) -> None:
        assert await server.ask("faulty", ["ndarray"]) == (200, [[1, 2], [3, 4]])

    async def test_a_command_unknown_to_the_service_is_its_attribute_error(
        self, server: RunningServer
    ) -> None:
        status, answer = await server.ask("faulty", ["no_such_thing"])
        assert (status, answer["error"]["exception"]) == (500, "AttributeError")

    async def test_what_a_service_prints_is_logged_under_the_models_name(
        self, server: RunningServer, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "mms.output")
        await server.ask("faulty", ["print", "hello from user code"])
        await until(lambda: "hello from user code" in caplog.messages)


class TestFaultsThatKill:
    async def test_a_request_that_kills_its_worker_gets_a_500_and_the_worker_is_replaced(
        self, server: RunningServer
    ) -> None:
        faults = [["hard_exit", 7], ["segfault"], ["abort"], ["garbage", 255, 64]]
        before = {
            reason: await server.metric("mms_worker_restarts_total", model="faulty", reason=reason)
            for reason in ("crash", "protocol")
        }
        for command in faults:
            assert await server.ask("faulty", ["echo", "before"]) == (200, "before")
            pid = only_worker(server)
            status, answer = await server.ask("faulty", command)
            assert (status, answer["error"]["code"]) == (500, "worker_died"), command
            assert await server.ask("faulty", ["echo", "after"]) == (200, "after")
            assert only_worker(server) != pid
        # Each fault killed two workers: the request is tried again once.
        for reason, deaths in (("crash", 2 * 3), ("protocol", 2 * 1)):
            value = await server.metric("mms_worker_restarts_total", model="faulty", reason=reason)
            assert value - before[reason] == deaths

    @pytest.mark.parametrize("byte", [0, 1, 32, 255])
    async def test_stray_bytes_on_its_socket_cost_a_service_its_worker_and_nothing_else(
        self, server: RunningServer, byte: int
    ) -> None:
        status, answer = await server.ask("impatient", ["garbage", byte, 4])
        assert (status, answer["error"]["code"]) == (500, "worker_died")
        # A start may take longer than this model's requests may.
        await until(lambda: server.servable("impatient").pids)
        assert await server.ask("impatient", ["echo", byte]) == (200, byte)

    @pytest.mark.parametrize("command", ["hang_python", "hang_native"])
    async def test_a_hanging_worker_is_a_504_and_is_replaced(
        self, server: RunningServer, command: str
    ) -> None:
        timeouts = await server.metric("mms_worker_restarts_total", reason="timeout")
        pid = only_worker(server, "impatient")
        status, answer = await server.ask("impatient", [command])
        assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
        await until(lambda: server.servable("impatient").pids not in ([], [pid]))
        assert await server.ask("impatient", ["echo", 1]) == (200, 1)
        assert await server.metric("mms_worker_restarts_total", reason="timeout") == timeouts + 1

    async def test_only_the_request_that_kills_fails_and_its_neighbours_are_answered(
        self, server: RunningServer
    ) -> None:
        good = [server.ask("faulty", ["echo", number]) for number in range(30)]
        answers = await asyncio.gather(
            *good[:15], server.ask("faulty", ["hard_exit", 1]), *good[15:]
        )
        killer = answers.pop(15)
        assert killer[0] == 500
        assert answers == [(200, number) for number in range(30)]


class TestWorkersKilledFromOutside:
    async def test_the_request_of_a_killed_worker_is_run_again_and_answered(
        self, server: RunningServer, notes: Path
    ) -> None:
        retries = await server.metric("mms_batch_release_total", reason="retry")
        killed = await server.metric("mms_worker_restarts_total", reason="killed")
        pid = only_worker(server)
        asked = asyncio.create_task(server.ask("faulty", ["wait", str(notes)]))
        await until((notes / str(pid)).exists)
        os.kill(pid, signal.SIGKILL)
        await until(lambda: len(list(notes.iterdir())) == 2)
        (notes / "go").touch()
        assert await asked == (200, "went")
        assert await server.metric("mms_worker_restarts_total", reason="killed") == killed + 1
        assert await server.metric("mms_batch_release_total", reason="retry") == retries + 1

    async def test_a_request_killed_twice_is_not_tried_a_third_time(
        self, server: RunningServer, notes: Path
    ) -> None:
        assert await server.ask("faulty", ["echo", 1]) == (200, 1)
        asked = asyncio.create_task(server.ask("faulty", ["wait", str(notes)]))
        for kills in (1, 2):
            await until(partial(has_files, notes, kills))
            await kill_workers(server)
        status, answer = await asked
        assert (status, answer["error"]["code"]) == (500, "worker_died")
        assert await server.ask("faulty", ["echo", 1]) == (200, 1)
        assert has_files(notes, 2)

    async def test_without_retry_on_crash_a_request_is_run_once(
        self, server: RunningServer, notes: Path
    ) -> None:
        asked = asyncio.create_task(server.ask("once", ["wait", str(notes)]))
        await until(lambda: list(notes.iterdir()))
        await kill_workers(server, "once")
        status, answer = await asked
        assert (status, answer["error"]["code"]) == (500, "worker_died")
        assert await server.ask("once", ["echo", 1]) == (200, 1)
        assert has_files(notes, 1)

    @pytest.mark.parametrize(
        "number",
        # The last has no name of its own: Python knows real-time signals only by their ends.
        [signal.SIGUSR1, signal.SIGXCPU, signal.SIGRTMIN + 3],
    )
    async def test_a_worker_may_die_of_any_signal(self, server: RunningServer, number: int) -> None:
        assert await server.ask("faulty", ["echo", 1]) == (200, 1)
        worker = only_worker(server)
        os.kill(worker, number)
        await until(lambda: server.servable("faulty").pids not in ([], [worker]))
        assert await server.ask("faulty", ["echo", 2]) == (200, 2)

    async def test_stop_signals_to_a_worker_are_left_to_the_server(
        self, server: RunningServer
    ) -> None:
        pid = only_worker(server)
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
            assert await server.ask("faulty", ["pid"]) == (200, pid)

    async def test_readiness_holds_while_a_dead_worker_is_replaced(
        self, server: RunningServer
    ) -> None:
        servable = server.servable("faulty")
        assert await server.ask("faulty", ["echo", 1]) == (200, 1)
        killed = servable.pids
        os.kill(killed[0], signal.SIGKILL)
        was_ready = True
        # Every turn of the loop: a probe may come in any of them.
        while not servable.pids or servable.pids == killed:
            was_ready = was_ready and servable.is_ready
            await asyncio.sleep(0)
        assert was_ready

    async def test_a_killed_loader_disturbs_nobody_and_is_replaced(
        self, server: RunningServer
    ) -> None:
        servable = server.servable("faulty")
        loader = servable.loader_pid
        assert loader is not None
        pid = only_worker(server)
        os.kill(loader, signal.SIGKILL)
        await until(lambda: servable.loader_pid is not loader)
        assert await server.ask("faulty", ["pid"]) == (200, pid)
        # At once, before there is another loader.
        await kill_workers(server)
        assert await server.ask("faulty", ["echo", 1]) == (200, 1)
        assert only_worker(server) != pid
        await until(lambda: servable.loader_pid is not None)

    async def test_no_request_is_lost_or_mixed_up_while_workers_are_killed_under_load(
        self, server: RunningServer
    ) -> None:
        servable = server.servable("twins")
        restarts = await server.metric("mms_worker_restarts_total", model="twins")
        answered = [0] * 16
        is_over = False

        async def client(number: int) -> None:
            while not is_over:
                token = f"{number}-{answered[number]}"
                assert await server.ask("twins", ["echo", token]) == (200, token)
                answered[number] += 1

        def has_lost(workers: int) -> bool:
            return sum(servable.restarts.values()) == restarts + workers

        clients = [asyncio.create_task(client(number)) for number in range(16)]
        for kill in range(1, 7):
            await until(lambda: len(servable.pids) == 2 and all(servable.batches.values()))
            os.kill(servable.pids[kill % 2], signal.SIGKILL)
            # Only what was sent before the server noticed can have been lost with the worker. One
            # more answer to each client, and all of that has been run again: the next kill
            # cannot meet a request for the second time.
            await until(partial(has_lost, kill))
            seen = list(answered)
            await until(partial(has_grown, answered, seen, clients))
        await until(lambda: len(servable.pids) == 2)
        is_over = True
        await asyncio.gather(*clients)
        assert await server.metric("mms_worker_restarts_total", model="twins") == restarts + 6

    async def test_five_deaths_without_a_finished_batch_make_the_model_failed(
        self, server: RunningServer
    ) -> None:
        servable = server.servable("doomed")
        for _ in range(5):
            assert servable.state == "ready"
            await kill_workers(server, "doomed")
        await until(lambda: servable.state == "failed")
        status, document = await server.get("/health/ready")
        assert status == 503
        assert document["models"]["doomed/1"] == {"ready": False, "state": "failed"}
        assert (await server.get("/models/doomed/ready"))[0] == 503
        assert (await server.get("/models/faulty/ready"))[0] == 200
        assert (await server.get("/ping"))[0] == 503
        assert (await server.get("/health/live"))[0] == 200
        url = f"{server.url}/predictions/doomed"
        async with server.session.post(url, json=["echo", 1]) as response:
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            answer = await response.json()
        assert answer["error"]["code"] == "model_not_ready"
        assert "5 workers in a row died" in answer["message"]
        assert await server.metric("mms_model_state", model="doomed", state="failed") == 1
        assert servable.pids == []


@pytest.mark.asyncio(loop_scope="function")
async def test_without_debug_errors_the_answer_hides_what_the_service_raised(
    start_server: StartServer, tmp_path: Path
) -> None:
    archive = make_archive(tmp_path, "faulty")
    server = await start_server({"debug_errors": "off"}, faulty=archive)
    status, answer = await server.ask("faulty", ["raise", "secret"])
    assert status == 500
    assert set(answer["error"]) == {"code", "type", "message", "request_id", "stage"}
    assert "secret" not in str(answer)
    assert "KeyError" not in str(answer)


@pytest.mark.asyncio(loop_scope="function")
@pytest.mark.parametrize("turns", [0, 8])
async def test_stopping_while_a_worker_is_being_replaced_leaves_nothing_behind(
    tmp_path: Path, turns: int
) -> None:
    async with running_servers(tmp_path) as start:
        server = await start(faulty=make_archive(tmp_path, "faulty"))
        servable = server.servable("faulty")
        assert await server.ask("faulty", ["echo", 1]) == (200, 1)
        await kill_workers(server)
        for _ in range(turns):
            await asyncio.sleep(0)
    assert servable.state == "unloaded"


@pytest.mark.asyncio(loop_scope="function")
async def test_the_whole_family_killed_at_once_comes_back(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(faulty=(make_archive(tmp_path, "faulty"), {"workers": 2}))
    servable = server.servable("faulty")
    assert await server.ask("faulty", ["echo", 1]) == (200, 1)
    family = servable.processes
    assert len(family) == 3
    for pid in family:
        os.kill(pid, signal.SIGKILL)
    await until(lambda: not set(servable.pids) & set(family))
    assert await server.ask("faulty", ["echo", 2]) == (200, 2)
    await until(lambda: len(servable.processes) == 3)


@pytest.mark.asyncio(loop_scope="function")
async def test_a_worker_that_answers_too_few_requests_takes_no_next_batch_with_it(
    start_server: StartServer, tmp_path: Path
) -> None:
    no_answers = b"".join(encode_result(1, Result([], (0.0, 0.0, 0.0, 0.0, 0.0))))
    source = f"""
    import os, time
    from mms.model_service.model_service import SingleNodeService
    class Service(SingleNodeService):
        def _postprocess(self, data):
            if data[0] == ["echo"]:
                return "echo"
            while not os.path.exists({str(tmp_path / "go")!r}):
                time.sleep(0.005)
            # As its own answer, from a service with a stray file descriptor.
            for descriptor in range(3, 64):
                try:
                    os.write(descriptor, {no_answers!r})
                except OSError:
                    continue
            time.sleep(600)
    """
    server = await start_server(forging=make_folder(tmp_path / "model", source))
    servable = server.servable("forging")
    forged = asyncio.create_task(server.ask("forging", ["forge"]))
    await until(lambda: servable.in_flight)
    queued = asyncio.create_task(server.ask("forging", ["echo"]))
    await until(lambda: servable.queue_depth)
    (tmp_path / "go").touch()
    status, answer = await forged
    assert (status, answer["error"]["code"]) == (500, "invalid_service_output")
    assert await queued == (200, "echo")
    assert servable.releases["retry"] == 0
