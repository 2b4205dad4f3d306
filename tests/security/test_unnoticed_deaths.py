"""A worker's death is noticed whatever it leaves behind, and its last answer is not lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.kit.archives import make_mar
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until

#: Of a request in the tests below: if a death goes unnoticed, nothing else ends it in time.
NEVER_S = 100_000


def files(folder: Path, prefix: str = "") -> set[str]:
    return {path.name for path in folder.iterdir() if path.name.startswith(prefix)}


@pytest.fixture
def notes(tmp_path: Path) -> Iterator[Path]:
    """A folder for the service; the processes that it has left behind end with it."""
    folder = tmp_path / "notes"
    folder.mkdir()
    yield folder
    for name in files(folder, "daemon-"):
        pid = int(name.removeprefix("daemon-"))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            # Ours since its worker has ended: the server makes this process a subreaper.
            os.waitpid(pid, 0)


# After the notes: it stops before they go, and the workers with it.
@pytest.fixture
async def server(notes: Path, start_server: StartServer, tmp_path: Path) -> RunningServer:
    archive = make_mar(tmp_path, "deadly", name="deadly")
    return await start_server(
        deadly=(archive, {"response_timeout": NEVER_S}),
        fresh=(archive, {"response_timeout": NEVER_S, "preload": False}),
        impatient=(archive, {"response_timeout": 1.5}),
    )


async def leave_daemon(server: RunningServer, model: str, notes: Path) -> int:
    """Have the only worker leave a child that holds its socket, and return the worker's pid."""
    status, answer = await server.ask(model, ["daemon", str(notes)])
    assert status == 200
    await until(lambda: files(notes, "daemon-"))
    (name,) = files(notes, "daemon-")
    assert "socket:" in "".join(open_files(int(name.removeprefix("daemon-"))).values())
    return int(answer[0])


def open_files(pid: int) -> dict[int, str]:
    found = {}
    for path in Path(f"/proc/{pid}/fd").iterdir():
        # The folder itself was open while it was read.
        with contextlib.suppress(FileNotFoundError):
            found[int(path.name)] = os.readlink(path)
    return found


def pipes() -> set[str]:
    """Return the pipes that the server has open."""
    return {name for name in open_files(os.getpid()).values() if name.startswith("pipe:")}


def lives(notes: Path) -> bool:
    (name,) = files(notes, "daemon-")
    return psutil.Process(int(name.removeprefix("daemon-"))).status() != psutil.STATUS_ZOMBIE


class TestV12:
    @pytest.mark.parametrize("model", ["deadly", "fresh"])
    async def test_v12_an_idle_worker_is_replaced_while_its_child_lives(
        self, server: RunningServer, notes: Path, model: str
    ) -> None:
        pid = await leave_daemon(server, model, notes)
        os.kill(pid, signal.SIGKILL)
        assert await server.ask(model, ["echo", 1]) == (200, [1])
        assert server.servable(model).pids != [pid]
        assert lives(notes)

    async def test_v12_a_batch_is_run_again_while_the_child_lives(
        self, server: RunningServer, notes: Path
    ) -> None:
        pid = await leave_daemon(server, "deadly", notes)
        asked = asyncio.create_task(server.ask("deadly", ["wait", str(notes)]))
        await until((notes / str(pid)).exists)
        os.kill(pid, signal.SIGKILL)
        (notes / "go").touch()
        assert await asked == (200, ["went"])
        assert len(files(notes) - {"go"} - files(notes, "daemon-")) == 2
        assert lives(notes)

    async def test_v12_a_request_that_kills_is_answered_while_the_child_lives(
        self, server: RunningServer, notes: Path
    ) -> None:
        await leave_daemon(server, "deadly", notes)
        status, answer = await server.ask("deadly", ["exit"])
        assert (status, answer["error"]["code"]) == (500, "worker_died")
        assert await server.ask("deadly", ["echo", 1]) == (200, [1])

    @pytest.mark.parametrize("command", ["sleep", "stop"])
    async def test_v12_a_worker_that_hangs_or_is_stopped_is_replaced_while_the_child_lives(
        self, server: RunningServer, notes: Path, command: str
    ) -> None:
        pid = await leave_daemon(server, "impatient", notes)
        argument = NEVER_S if command == "sleep" else str(notes)
        status, _ = await server.ask("impatient", [command, argument])
        assert status == 504
        await until(lambda: server.servable("impatient").pids not in ([], [pid]))
        assert await server.ask("impatient", ["echo", 1]) == (200, [1])
        assert not psutil.pid_exists(pid)
        assert lives(notes)

    async def test_v12_a_killed_loader_is_replaced_while_a_child_of_it_lives(
        self, notes: Path, start_server: StartServer, tmp_path: Path
    ) -> None:
        source = f"""
            import ctypes, os, time
            if ctypes.PyDLL(None).fork() == 0:
                os.setsid()
                open("{notes}/daemon-%d" % os.getpid(), "w").close()
                time.sleep(120)
                os._exit(0)
            def handle(data, context):
                return None if data is None else [[os.getpid()] for _ in data]
        """
        server = await start_server(leaving=make_mar(tmp_path, source, name="leaving"))
        servable = server.servable("leaving")
        loader = servable.loader_pid
        assert loader is not None
        os.kill(loader, signal.SIGKILL)
        await until(lambda: servable.loader_pid not in (None, loader))
        assert (await server.ask("leaving", [1]))[0] == 200

    async def test_v12_a_model_is_unloaded_while_the_child_lives_and_prints(
        self, notes: Path, start_server: StartServer, tmp_path: Path
    ) -> None:
        server = await start_server(
            {"management_port": 0}, chatty=make_mar(tmp_path, "deadly", name="chatty")
        )
        await leave_daemon(server, "chatty", notes)
        await server.ask("chatty", ["chatter", str(notes)])
        await until(lambda: len(files(notes, "daemon-")) == 2)
        before = pipes()
        status, _ = await server.manage("DELETE", "/models/chatty")
        assert status == 200
        await until(lambda: len(before - pipes()) == 1)


class TestChildrenOfAWorker:
    async def test_v12_a_forked_child_inherits_no_socket(
        self, server: RunningServer, notes: Path
    ) -> None:
        assert (await server.ask("deadly", ["fork", str(notes)]))[0] == 200
        await until(lambda: files(notes, "daemon-"))
        (name,) = files(notes, "daemon-")
        inherited = open_files(int(name.removeprefix("daemon-"))).values()
        assert not [target for target in inherited if target.startswith("socket:")]
        # The worker's own is untouched.
        assert await server.ask("deadly", ["echo", 1]) == (200, [1])

    @pytest.mark.parametrize("model", ["deadly", "fresh"])
    async def test_v12_a_started_program_inherits_no_socket(
        self, server: RunningServer, model: str
    ) -> None:
        status, (listing,) = await server.ask(model, ["list_files_of_program"])
        assert status == 200
        assert "pipe:" in listing
        assert "socket:" not in listing

    async def test_v12_a_child_that_returns_from_the_service_answers_nobody(
        self, server: RunningServer, notes: Path
    ) -> None:
        """It would write a second answer to its parent's socket."""
        status, (pid,) = await server.ask("deadly", ["return_twice", str(notes)])
        assert status == 200
        await until(lambda: files(notes, "daemon-"))
        for number in range(10):
            assert await server.ask("deadly", ["echo", number]) == (200, [number])
        assert await server.ask("deadly", ["pid"]) == (200, [pid])


class TestTheLastAnswer:
    async def test_v12_an_answer_written_just_before_the_end_is_delivered(
        self, server: RunningServer, notes: Path
    ) -> None:
        for number in range(20):
            command = ["answer_and_die", str(notes), number]
            assert await server.ask("deadly", command) == (200, [number])
        # None of them was run a second time.
        assert len(files(notes)) == 20

    async def test_v12_a_long_answer_is_delivered_too_while_a_child_holds_the_socket(
        self, server: RunningServer, notes: Path
    ) -> None:
        await leave_daemon(server, "deadly", notes)
        size = 1 << 20
        command = ["answer_and_die", str(notes), "x", size]
        status, (answer,) = await server.ask("deadly", command)
        assert (status, len(answer)) == (200, size)
        assert len(files(notes) - files(notes, "daemon-")) == 1
        assert await server.ask("deadly", ["echo", 1]) == (200, [1])

    async def test_v12_a_dead_worker_gets_no_further_batch(
        self, server: RunningServer, notes: Path
    ) -> None:
        """Its last answer is read after its end was seen; what waits goes to the next worker."""
        pid = await leave_daemon(server, "deadly", notes)
        servable = server.servable("deadly")
        labels = {"model": "deadly", "reason": "retry"}
        retries = await server.metric("mms_batch_release_total", **labels)
        with servable.unread_answers():
            first = asyncio.create_task(server.ask("deadly", ["answer_and_die", str(notes), 1]))
            await until(lambda: servable.in_flight)
            second = asyncio.create_task(server.ask("deadly", ["echo", 2]))
            await until(lambda: servable.queue_depth)
            await until(lambda: not psutil.pid_exists(pid))
        assert (await first, await second) == ((200, [1]), (200, [2]))
        assert await server.metric("mms_batch_release_total", **labels) == retries
