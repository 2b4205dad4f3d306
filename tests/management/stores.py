"""Fill model stores, and clean up what a test has registered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil

from tests.kit.archives import make_archive, make_folder, signature
from tests.kit.server import RunningServer
from tests.kit.waiting import until

#: Answers a fixed text, whatever it is asked; `pid` and `wait` as the faulty service does.
_SAYS = """
import os
import time
from mms.model_service.model_service import SingleNodeService

{load}

class Says(SingleNodeService):
    def _postprocess(self, data):
        command, *args = data[0] or ["text"]
        if command == "pid":
            return os.getpid()
        if command == "wait":
            open(f"{{args[0]}}/{{os.getpid()}}", "w").close()
            while not os.path.exists(f"{{args[0]}}/go"):
                time.sleep(0.005)
        if command == "environment":
            return dict(os.environ)
        return {text!r}
"""
#: Loads only once a file has appeared.
WAITS_FOR = "while not os.path.exists({path!r}): time.sleep(0.005)"
#: Loads only as long as there is no such file.
FAILS_WITH = "if os.path.exists({path!r}): raise ValueError('the load is broken')"


def says(folder: Path, text: str, load: str = "") -> Path:
    """Write an unpacked archive whose service answers a text.

    Args:
        folder: Where to; made if missing.
        text: The answer.
        load: Statements that run when the service is loaded.
    """
    return make_folder(folder, _SAYS.format(text=text, load=load))


def make_store(folder: Path) -> Path:
    """Make a model store with the archives that most tests need."""
    store = folder / "store"
    store.mkdir(parents=True)
    for name, shape in (("echo", [0]), ("faulty", [0]), ("rows", [0, 3])):
        archive = make_archive(folder / "sources", name, signature(shape))
        archive.rename(store / f"{name}.model")
    (store / "not-a.model").write_bytes(b"this is no zip file")
    says(store / "broken", "", "raise ValueError('the load is broken')")
    for number in (1, 2, 3):
        says(store / f"v{number}", f"v{number}")
    return store


class Traces:
    """What a test must not leave in a server that it shares: models, processes, unpacked files."""

    def __init__(self, server: RunningServer) -> None:
        self._server = server
        self._models = self._names()
        self._processes = _processes()
        self._files = self.unpacked()

    def unpacked(self) -> set[str]:
        """Return the names of the unpacked archives in the work folder."""
        return {name for name in os.listdir(self._server.workspace) if name != "lock"}

    async def clean(self) -> None:
        """Unregister what was registered since, and wait until it is gone."""
        for name in self._names() - self._models:
            await self._server.manage("DELETE", f"/models/{name}")
        await until(lambda: self.unpacked() <= self._files)
        await self.settle()

    async def settle(self) -> None:
        """Wait until there are no more processes than before."""
        await until(lambda: _processes() <= self._processes)

    def _names(self) -> set[str]:
        return self._server.names


def _processes() -> int:
    return len(psutil.Process().children(recursive=True))


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def read(path: Path) -> Any:
    """Return the JSON document in a file."""
    return json.loads(path.read_bytes())


def move(path: Path, target: Path) -> Path:
    return path.rename(target)


async def register(
    server: RunningServer, name: str, url: str | None = None, workers: int = 1, **parameters: Any
) -> None:
    """Register a model of the store and wait until it is loaded."""
    document = {
        "url": url or f"{name}.model",
        "model_name": name,
        "initial_workers": workers,
        **parameters,
    }
    answer = await server.manage("POST", "/models", document)
    assert answer == (200, {"status": f'Model "{name}" registered'})


async def waiting(folder: Path, count: int = 1) -> list[int]:
    """Wait until so many requests sit in a service's ``wait``, and return the workers' pids."""

    def pids() -> list[int]:
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]

    await until(lambda: len(pids()) >= count)
    return pids()


def let_go(folder: Path) -> None:
    """End all ``wait`` of a folder."""
    (folder / "go").touch()
