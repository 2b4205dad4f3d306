"""Where faults happen: a server with one model, its archives, and clients that ask it."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import yaml

from tests.chaos.load import Load
from tests.chaos.server import ServerProcess, build_archive
from tests.kit.waiting import until

MAIN_WORKERS = 2
_STATE_BYTES = 64 << 10


class Arena:
    """One folder, one server, one load.

    Args:
        folder: Empty; everything is kept in it.
        seed: Of all that is random.
        is_short: Whether faults happen once only, for a test.
    """

    def __init__(self, folder: Path, seed: int, is_short: bool) -> None:
        self.folder = folder
        self.is_short = is_short
        self.random = random.Random(seed)
        self.store = folder / "store"
        self.main = self.store / "main.model"
        self.config = folder / "mms.yaml"
        self.ledger = folder / "ledger"
        self.state_folder = folder / "state"
        self.state_file = self.state_folder / "state.json"
        self.work = folder / "work"
        self.mark = "first"
        self._is_mounted = False
        self.server = ServerProcess(folder, self._arguments())
        self.load = Load(0, seed)

    def _arguments(self) -> list[str]:
        # One line for each request that is turned away would drown what matters.
        return [
            *("--config", str(self.config), "--work-dir", str(self.work)),
            *("--model-store", str(self.store), "--state-file", str(self.state_file)),
            *("--watch", "--watch-interval", "0.2", "--log-level", "ERROR"),
        ]

    @property
    def repeats(self) -> int:
        """How often a fault that takes no time happens in a row."""
        return 2 if self.is_short else 5

    async def start(self) -> None:
        """Start the server."""
        self.store.mkdir()
        self.state_folder.mkdir()
        self._mount_state()
        self.archive("main", mark=self.mark)
        self.archive("other", mark="other")
        self.write_config(queue_size=400)
        await self.server.start()
        self.load.port = self.server.port
        await self.server.recover()

    async def stop(self) -> None:
        """Stop the server and leave nothing behind."""
        try:
            if self.server.is_alive:
                assert await self.server.stop() == 0, "the server did not exit with 0"
        finally:
            self.clean_up()

    def clean_up(self) -> None:
        """End the server, however that goes, and take its file system away."""
        self.server.clean_up()
        if self._is_mounted:
            subprocess.run(["umount", str(self.state_folder)], check=True)
            self._is_mounted = False

    def _mount_state(self) -> None:
        """Mount a file system for the state file alone, to be filled, where that is allowed."""
        command = ["mount", "-t", "tmpfs", "-o", f"size={_STATE_BYTES}", "tmpfs"]
        with contextlib.suppress(OSError):
            done = subprocess.run([*command, str(self.state_folder)], capture_output=True)
            self._is_mounted = done.returncode == 0

    @contextlib.contextmanager
    def full_disk(self) -> Any:
        """Leave no room for the state file; without a file system of its own, no folder."""
        if not self._is_mounted:
            aside = self.folder / "state-aside"
            self.state_folder.rename(aside)
            try:
                yield
            finally:
                aside.rename(self.state_folder)
            return
        filler = self.state_folder / "filler"
        try:
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
                while file.write(b"x" * 4096):
                    pass
            yield
        finally:
            filler.unlink()

    def archive(self, name: str, **options: Any) -> str:
        """Write an archive of the chaotic service into the store; return its file name."""
        defaults = {"mark": name, "load_s": 0.0, "load_fault": "", "ledger": str(self.ledger)}
        return build_archive(self.store / f"{name}.model", "chaotic", **(defaults | options)).name

    def next_mark(self) -> str:
        """Return a mark that main's archive has not had yet."""
        self.mark = f"mark-{self.random.getrandbits(40):x}"
        return self.mark

    def write_config(self, **settings: Any) -> None:
        """Write the configuration file anew."""
        # With a batch size, so that frames carry several requests at once.
        main = {"path": str(self.main), "workers": MAIN_WORKERS, "batch_size": 4, **settings}
        self.config.write_text(yaml.safe_dump({"models": {"main": main}}))

    @contextlib.asynccontextmanager
    async def model(
        self, name: str, archive: str = "other.model", only: bool = False, **settings: Any
    ) -> AsyncIterator[None]:
        """Register a model beside main, send it half of the load, or all, and unregister it."""
        reply = await self.server.manage(
            "POST", "/models", url=archive, model_name=name, **({"initial_workers": 2} | settings)
        )
        assert reply.status == 200, f"POST /models: {reply.status} {reply.body[:300]!r}"
        self.load.targets = [name] if only else ["main", name]
        try:
            await self.load.answer_of(lambda answer: answer.model == name)
            yield
        finally:
            self.load.targets = ["main"]
            await self.load.settle(self.load.outstanding())
        reply = await self.server.manage("DELETE", f"/models/{name}")
        assert reply.status == 200, f"DELETE /models/{name}: {reply.status}"
        await self.server.recover()

    async def mend(self) -> None:
        """After a fault that found something: unregister what it left, so that others can run.

        Raises:
            AssertionError: The server does not become whole again.
        """
        if not self.server.is_alive:
            await self.restart()
        for name in await self.server.models():
            if name != "main":
                await self.server.manage("DELETE", f"/models/{name}")
        await self.server.manage("PUT", "/models/main", min_worker=MAIN_WORKERS, synchronous=True)
        await self.server.recover()

    async def restart(self) -> None:
        """Start the server again, after its end, on the same ports."""
        await self.server.start()
        self.load.outage = None
        await self.load.flow(20)

    async def is_gone(self, children: list[Any]) -> None:
        """Wait until no process of a server that has ended is left."""
        await until(
            lambda: not [child for child in children if child.is_running()],
            what=f"{len(children)} workers end with their server",
        )

    def tokens_run(self) -> set[str]:
        """Return the tokens of all requests that a worker has finished."""
        return set(self.ledger.read_text().split()) if self.ledger.exists() else set()

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)


def proportional_bytes(pids: list[int]) -> int:
    """Return the memory of processes; what several share counts once (proc(5), smaps_rollup)."""
    total = 0
    for pid in pids:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            total += next(int(line.split()[1]) for line in file if line.startswith("Pss:"))
    return total * 1024


def open_files(pid: int) -> int:
    """Return the number of descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
