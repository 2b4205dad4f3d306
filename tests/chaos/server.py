"""The real command as a process: started, asked, killed, and seen to leave nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

import mms
from mms.archive.manifest import Manifest, ModelFormat
from mms.archive.writer import write_archive
from tests.chaos.load import call
from tests.kit.archives import signature
from tests.kit.load.wire import Reply
from tests.kit.waiting import until

SERVICES = Path(__file__).parent / "services"
_LISTENING = re.compile(r"listening on http://127\.0\.0\.1:(\d+)")
_MANAGEMENT = re.compile(r"Management on http://127\.0\.0\.1:(\d+)/models")
#: Lines that only a bug of the server writes.
_BUGS = re.compile(
    r"a bug:|housekeeping failed|never retrieved|never awaited|Unclosed|IllegalMove|"
    r"ERROR asyncio"
)


def build_archive(path: Path, service: str, **options: Any) -> Path:
    """Write an archive of ``services/<service>.py`` in one step, replacing what is there."""
    manifest = Manifest(
        model_name=service,
        model_format=ModelFormat.GLUON,
        service="service.py",
        signature="signature.json",
    )
    files: dict[str, Path | bytes] = {
        "service.py": SERVICES / f"{service}.py",
        "signature.json": json.dumps(signature()).encode(),
        "options.json": json.dumps(options).encode(),
    }
    write_archive(path, manifest, files, overwrite=True)
    return path


class ServerProcess:
    """One server process after another, on the same ports.

    Args:
        folder: For its log.
        arguments: Of the command, but for its ports.
    """

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        self._arguments = arguments
        self._log = folder / "server.log"
        self._read_from = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        self.management_port = 0

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server has not been started"
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(self) -> None:
        """Start the command, and wait until it says where it listens."""
        self._read_from = len(self.log(everything=True))
        self._process = self._spawn()
        await until(self._is_listening, what="the server starts")

    def _spawn(self) -> subprocess.Popen[bytes]:
        ports = ["--port", str(self.port), "--management-port", str(self.management_port)]
        command = [sys.executable, "-m", "mms.cli.serve", *ports, *self._arguments]
        # Workers start from nowhere in particular, and must run the same code.
        environment = {**os.environ, "PYTHONPATH": str(Path(mms.__file__).parents[1])}
        with self._log.open("ab") as log:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
            )

    async def _is_listening(self) -> bool:
        assert self.is_alive, f"the server did not start:\n{self.log()[-2000:]}"
        text = self.log()
        ports = [pattern.search(text) for pattern in (_LISTENING, _MANAGEMENT)]
        if ports[0] is None or ports[1] is None:
            return False
        self.port, self.management_port = int(ports[0][1]), int(ports[1][1])
        return True

    async def exit_status(self) -> int:
        """Wait for the end of the process."""
        process = self._process
        assert process is not None, "the server has not been started"
        await until(lambda: process.poll() is not None, what="the server exits")
        return process.returncode

    async def stop(self) -> int:
        """Stop gracefully, and return the exit status."""
        self.send(signal.SIGTERM)
        return await self.exit_status()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server has not been started"
        self._process.send_signal(number)

    def clean_up(self) -> None:
        """End the process, however that goes; its workers end with it."""
        if self._process is not None and self.is_alive:
            self._process.kill()
            self._process.wait()

    def log(self, everything: bool = False) -> str:
        """Return what this process has printed, or all of them."""
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return text if everything else text[self._read_from :]

    def bugs(self) -> list[str]:
        """Return the lines of the log that only a bug writes."""
        lines = self.log(everything=True).splitlines()
        return [line for line in lines if _BUGS.search(line)]

    def children(self) -> list[psutil.Process]:
        """Return its processes, those not reaped yet included."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return psutil.Process(self.pid).children(recursive=True)
        return []

    def kill_child(self, pid: int) -> None:
        """Kill one of its processes; it must be one."""
        assert pid in {child.pid for child in self.children()}, f"{pid} is not the server's"
        os.kill(pid, signal.SIGKILL)

    async def manage(self, method: str, path: str, **parameters: Any) -> Reply:
        """Call the management API."""
        body = json.dumps(parameters).encode() if parameters else b""
        return await call(self.management_port, method, path, body)

    async def get(self, path: str) -> Reply:
        """Call the inference API."""
        return await call(self.port, "GET", path)

    async def describe(self, model: str) -> dict[str, Any]:
        reply = await self.manage("GET", f"/models/{model}")
        assert reply.status == 200, f"GET /models/{model}: {reply.body[:300]!r}"
        document: dict[str, Any] = reply.json()
        return document

    async def worker_pids(self, model: str) -> list[int]:
        return [worker["pid"] for worker in (await self.describe(model))["workers"]]

    async def loader_pids(self) -> list[int]:
        """Return the processes that are no workers."""
        workers = {pid for model in await self.models() for pid in await self.worker_pids(model)}
        return [child.pid for child in self.children() if child.pid not in workers]

    async def models(self) -> list[str]:
        reply = await self.manage("GET", "/models")
        return [model["modelName"] for model in reply.json()["models"]]

    async def is_whole(self) -> bool:
        """Whether each model has its workers and its loader, and there is nothing else."""
        expected = 0
        for model in await self.models():
            document = await self.describe(model)
            if document["state"] != "ready" or len(document["versions"]) > 1:
                return False
            if len(document["workers"]) != document["minWorkers"]:
                return False
            expected += document["minWorkers"] + 1
        return len(self.children()) == expected

    async def recover(self, dead: int | None = None) -> None:
        """Wait until everything is there again, and a dead process is not."""
        if dead is not None:
            await until(lambda: not psutil.pid_exists(dead), what=f"{dead} is reaped")
        await until(self.is_whole, what="the server is whole again")
