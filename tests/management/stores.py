"""Fill model stores, and clean up what a test has registered."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil

from tests.kit.archives import make_archive, make_folder, signature, source_of
from tests.kit.server import RunningServer
from tests.kit.waiting import until

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
    source = source_of("says")
    line = 'SAID = "a text"\n'
    assert line in source
    return make_folder(folder, source.replace(line, f"SAID = {text!r}\n{load}\n"))


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
    is_lazy = parameters.get("load") == "lazy"
    said = "Workers scaled" if workers and not is_lazy else f'Model "{name}" registered'
    assert answer == (200, {"status": said})
