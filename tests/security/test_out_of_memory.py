"""A server whose memory runs out answers 507, goes on, and keeps its log short."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.kit.archives import make_folder
from tests.kit.waiting import LIMIT_S, until
from tests.security.edge import SERVICE

MB = 1 << 20
#: What the server may allocate beyond what it has at start; all bodies do not fit.
SPARE_BYTES = 500 * MB
BODIES, BODY_BYTES = 40, 30 * MB


class Command:
    """A real server; its log goes to a file."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.log = folder / "log"
        archive = make_folder(folder / "edge", SERVICE)
        program = "from mms.cli.serve import main; main()"
        arguments = ["--models", f"edge={archive}", f"echo={archive}", "--workers", "1"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", program, *arguments, "--port", "0", *options],
                stdout=log,
                stderr=log,
            )

    def limit(self) -> None:
        """Limit the memory of the server, but not that of its workers."""
        size = psutil.Process(self.process.pid).memory_info().vms + SPARE_BYTES
        resource.prlimit(self.process.pid, resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

    def stop(self) -> None:
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.process.pid, resource.RLIMIT_AS, unlimited)
        self.process.terminate()
        self.process.wait(LIMIT_S)

    async def port(self) -> int:
        def found() -> str | None:
            text = self.log.read_text()
            assert self.process.poll() is None, text
            address = re.search(r"http://127\.0\.0\.1:(\d+)/predictions", text)
            return address and address[1]

        return int(await until(found))


@pytest.fixture
def commands(tmp_path: Path) -> Iterator[Any]:
    started = []

    def start(*options: str) -> Command:
        started.append(Command(tmp_path, "--management-port", "-1", *options))
        return started[-1]

    yield start
    for command in started:
        command.stop()


async def post(port: int, model: str, body: bytes) -> tuple[int, str]:
    """Post on a connection of its own; (0, "") where that is reset."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /predictions/{model} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        for at in range(0, len(body), MB):
            writer.write(memoryview(body)[at : at + MB])
            await writer.drain()
        answer = await asyncio.wait_for(reader.read(), LIMIT_S)
        writer.close()
        head_, _, document = answer.partition(b"\r\n\r\n")
        parsed = json.loads(document)
        code = parsed["error"]["code"] if isinstance(parsed, dict) and "error" in parsed else ""
        return int(head_.split()[1]), code
    except (ConnectionError, ValueError, IndexError):
        return 0, ""


@pytest.mark.parametrize("budget", [200 * MB, 1 << 40])
async def test_v09_bodies_that_do_not_fit_memory_are_refused_and_others_are_served(
    commands: Any, tmp_path: Path, budget: int
) -> None:
    """Within a budget that fits, none gets as far as 507; without, memory itself is the limit."""
    command = commands("--max-buffered-bytes", str(budget))
    port = await command.port()
    command.limit()
    wait = json.dumps(["wait", str(tmp_path)]).encode()
    running = asyncio.create_task(post(port, "edge", wait))
    await until((tmp_path / "started").exists)
    body = json.dumps(["count", "x" * BODY_BYTES]).encode()
    bodies = [asyncio.create_task(post(port, "edge", body)) for _ in range(BODIES)]
    await until(lambda: sum(task.done() for task in bodies) >= BODIES // 4)
    # Refused at once, not at the end of a timeout; and the neighbour is served beside them.
    assert (await post(port, "echo", b"[1]"))[0] == 200
    (tmp_path / "go").touch()
    answers = Counter(await asyncio.gather(*bodies))
    assert (await running)[0] == 200
    assert {status for status, _ in answers} <= {0, 200, 503, 507}, answers
    assert answers[503, "buffer_full"] + answers[507, "out_of_memory"] > 0, answers
    if budget > SPARE_BYTES:
        assert answers[507, "out_of_memory"] > 0, answers
    else:
        assert answers[507, "out_of_memory"] == 0, answers
    assert (await post(port, "edge", b"[1]"))[0] == 200
    log = command.log.read_text()
    assert "Traceback" not in log, log
    assert "a bug" not in log, log
