"""A real server in the test's own loop, and a client for it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import psutil
from prometheus_client.parser import text_string_to_metric_families

from mms.cli.announce import announce
from mms.config.build import Config, ModelConfig
from mms.config.layers import Layer, resolve
from mms.config.settings import ModelSettings, ServerSettings
from mms.errors import WorkerDied
from mms.http.app import make_app
from mms.http.guard import Guard
from mms.http.openapi.document import Route, routes_of
from mms.server import Server
from mms.serving.budget import Budget
from mms.serving.dataplane import ServerState
from mms.serving.lifecycle import ServableState
from mms.serving.memory import shared_bytes
from mms.serving.pool.child import reap_orphans
from mms.serving.pool.machine import Phase
from mms.serving.registration import Registration, Trust
from mms.serving.registry import Traffic
from mms.serving.servable import Servable
from mms.wire.messages import Dialect, Ready, RequestMeta
from tests.kit.waiting import LIMIT_S, until

T = TypeVar("T")


class ServableView:
    """One version of a model, seen from inside: what no request can ask, or not at every moment.

    Only this class and `RunningServer` know how a server is built inside. Views of the same
    servable are equal.
    """

    def __init__(self, servable: Servable, server: Server) -> None:
        self._servable = servable
        self._server = server

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ServableView) and other._servable is self._servable

    def __hash__(self) -> int:
        return hash(self._servable)

    @property
    def name(self) -> str:
        return self._servable.name

    @property
    def version(self) -> str:
        return self._servable.version

    @property
    def state(self) -> str:
        return self._servable.state.value

    @property
    def is_ready(self) -> bool:
        return self._servable.is_ready

    @property
    def is_startup(self) -> bool:
        """Whether the readiness of the whole server waits for it."""
        return self._servable in self._server.controlplane.startup_servables()

    @property
    def settings(self) -> ModelSettings:
        return self._servable.settings

    @property
    def batch_size(self) -> int:
        """As the queue has it now."""
        return self._servable.lane.limits.batch_size

    @property
    def queue_size(self) -> int:
        """As the queue has it now."""
        return self._servable.lane.limits.queue_size

    @property
    def folder(self) -> Path:
        """Where the archive is unpacked."""
        return self._servable.archive.folder

    @property
    def source(self) -> Path:
        """Where the archive came from."""
        return Path(self._servable.archive.source)

    @property
    def digest(self) -> str:
        return self._servable.archive.digest

    @property
    def size(self) -> int:
        """How many workers were asked for."""
        return self._servable.size

    @property
    def phase(self) -> Phase:
        """What its pool of workers is doing."""
        return self._servable.pool.phase

    @property
    def pids(self) -> list[int]:
        """The workers that are alive and ready."""
        return [worker.child.pid for worker in self._servable.pool.workers]

    @property
    def pid(self) -> int:
        """The only worker."""
        (pid,) = self.pids
        return pid

    @property
    def loader_pid(self) -> int | None:
        loader = self._servable.pool.loader
        return loader.child.pid if loader else None

    @property
    def processes(self) -> list[int]:
        """The workers and the loader."""
        return [*self.pids, *([self.loader_pid] if self.loader_pid else [])]

    @property
    def is_starting_workers(self) -> bool:
        return self._servable.pool.starting > 0

    @property
    def is_complete(self) -> bool:
        """Whether a model has all its processes, or has been given up."""
        pool = self._servable.pool
        has_all = len(pool.workers) == pool.size and (pool.loader or not self.settings.preload)
        return bool(has_all) or self._servable.state is ServableState.FAILED

    @property
    def batches(self) -> dict[int, int]:
        """How many batches each worker has finished."""
        return {worker.child.pid: worker.batches for worker in self._servable.pool.workers}

    @property
    def reports(self) -> dict[int, Ready]:
        """What each process, the loader included, said of itself once it was loaded."""
        loader = self._servable.pool.loader
        processes = [*self._servable.pool.workers, *([loader] if loader else [])]
        return {process.child.pid: process.ready for process in processes if process.ready}

    @property
    def queue_depth(self) -> int:
        return self._servable.lane.depth

    @property
    def in_flight(self) -> int:
        return self._servable.lane.in_flight

    @property
    def requests(self) -> Counter[tuple[str, int]]:
        """Counts of (route, status); like the two that follow, without a request of its own."""
        return self._servable.metrics.requests

    @property
    def rejected(self) -> Counter[str]:
        """Counts of reasons."""
        return self._servable.metrics.rejected

    @property
    def releases(self) -> Counter[str]:
        """Counts of batches by why they were sent when they were."""
        return self._servable.metrics.releases

    @property
    def restarts(self) -> Counter[str]:
        """Counts of reasons."""
        return self._servable.metrics.restarts

    def memory_bytes(self) -> int:
        return shared_bytes(self._servable.pids)

    async def sleep(self) -> None:
        """Unload it now, as if it had been idle for long."""
        await self._servable.sleep()

    def fail(self) -> None:
        """Have its pool give up, as if its workers had died one after the other."""
        self._servable.on_failed(WorkerDied("3 workers in a row died"))

    @contextlib.contextmanager
    def unread_answers(self) -> Iterator[None]:
        """Leave what the workers alive now send unread for a while."""
        transports = [worker._transport for worker in self._servable.pool.workers]
        for transport in transports:
            assert transport is not None
            transport.pause_reading()
        yield
        for transport in transports:
            assert transport is not None
            transport.resume_reading()


class RunningServer:
    """A started server and a client for it."""

    def __init__(self, server: Server, session: aiohttp.ClientSession) -> None:
        self._server = server
        self.session = session

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def management_port(self) -> int:
        return self._server.management_port

    @property
    def management_url(self) -> str:
        return f"http://127.0.0.1:{self.management_port}"

    @property
    def grpc_port(self) -> int:
        return self._server.grpc_port

    @property
    def settings(self) -> ServerSettings:
        return self._server.config.server

    @property
    def workspace(self) -> Path:
        """Where archives are unpacked."""
        assert self._server.workspace is not None
        return self._server.workspace

    @property
    def budget(self) -> Budget:
        """What the bodies held now may take."""
        return self._server.budget

    @property
    def is_draining(self) -> bool:
        return self._server.dataplane.is_draining

    @property
    def connections(self) -> int:
        """How many clients are connected now."""
        return self._server._edge.connections

    @property
    def turned_away(self) -> int:
        """How many of those that were too many are still being told so."""
        return len(self._server._edge._turned_away)

    @property
    def requests(self) -> Counter[tuple[str, int]]:
        """Counts of (route, status) of what belongs to no model, as a servable has its own."""
        return self._server.metrics.requests

    @property
    def rejected(self) -> Counter[str]:
        """Counts of reasons, for what belongs to no model."""
        return self._server.metrics.rejected

    @property
    def shadows(self) -> Counter[tuple[str, str, str]]:
        """Counts of (model, shadow's version, outcome)."""
        return self._server.metrics.shadows

    @property
    def names(self) -> set[str]:
        """The names of all models."""
        return {model.name for model in self._server.registry.models()}

    def servable(self, name: str, version: str | None = None) -> ServableView:
        """Return a version of a model, the default one if none is named.

        Raises:
            ModelNotFound: There is no such model.
            VersionNotFound: There is no such version.
        """
        return ServableView(self._server.registry.get(name, version), self._server)

    def versions(self, name: str) -> dict[str, ServableView]:
        """Return all versions of a model."""
        versions = self._server.registry.model(name).versions
        return {version: ServableView(found, self._server) for version, found in versions.items()}

    def servables(self) -> list[ServableView]:
        """Return all versions of all models."""
        return [ServableView(found, self._server) for found in self._server.registry.servables()]

    def default(self, name: str) -> str:
        """Return the default version of a model."""
        return self._server.registry.model(name).default

    def traffic(self, name: str) -> Traffic:
        """Return how a model's requests are shared among its versions."""
        return self._server.registry.model(name).traffic

    async def register(self, name: str, archive: Path, version: str, **settings: Any) -> None:
        """Register a version that does not become the default, without a management API."""
        values = resolved(ModelSettings, {"workers": 1, **settings})
        registration = Registration(name, str(archive), values, {}, Trust.OPERATOR, version)
        await self._server.controlplane.register(registration, make_default=False)

    def set_default(self, name: str, version: str) -> None:
        self._server.controlplane.set_default(name, version)

    async def unregister(self, name: str, version: str) -> None:
        await self._server.controlplane.unregister(name, version)

    async def reload(self, name: str) -> None:
        """Load a model's archive again, as if its file had changed."""
        servable = self._server.registry.get(name)
        await self._server.controlplane.replace(servable)

    async def apply(self, config: Config) -> list[str]:
        """Do what a new configuration asks for, and return what was done."""
        return await self._server.startup.apply(config)

    @contextlib.contextmanager
    def before_its_start(self) -> Iterator[None]:
        """Let it pass for a server whose models are not all loaded yet."""
        self._server.dataplane.state = ServerState.STARTING
        try:
            yield
        finally:
            self._server.dataplane.state = ServerState.SERVING

    @contextlib.contextmanager
    def while_draining(self) -> Iterator[None]:
        """Let it pass for a server that accepts no more."""
        self._server.dataplane.state = ServerState.DRAINING
        try:
            yield
        finally:
            self._server.dataplane.state = ServerState.SERVING

    async def infer_shadowed(self, name: str, body: bytes) -> None:
        """Answer a request by a model that is a shadow of itself, and compare the answers."""
        servable, shadows = self._server.registry.get(name), self._server._shadows
        meta = RequestMeta("id", Dialect.PLAIN, "application/json", "").encode()
        asking = servable.infer(meta, [body], len(body))
        await shadows.answer(asking, servable, meta, [body], len(body))

    def routes(self) -> list[Route]:
        """Return the routes of inference."""
        return list(routes_of(make_app(self._server.context, Guard(ServerSettings()))))

    def announce(self) -> None:
        """Print the lines with which the command says that it serves."""
        announce(self._server)

    def request_reload(self) -> None:
        self._server.request_reload()

    def request_stop(self) -> None:
        self._server.request_stop()

    async def stop(self) -> None:
        await self._server.stop()

    def forwards(self, name: str) -> list[int]:
        """Return the rows of each forward pass that a model's service has noted."""
        notes = self.servable(name).folder / "forwards"
        return [int(line) for line in notes.read_text().split()] if notes.exists() else []

    async def ask(
        self, model: str, value: Any, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Post a JSON value to /predictions and return status and parsed answer."""
        url = f"{self.url}/predictions/{model}"
        async with self.session.post(url, json=value, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, Any]:
        async with self.session.get(self.url + path) as response:
            return response.status, await response.json()

    async def manage(
        self,
        method: str,
        path: str,
        document: Any = None,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, Any]:
        """Ask the management API and return status and parsed answer."""
        url = self.management_url + path
        async with self.session.request(method, url, json=document, headers=headers) as response:
            return response.status, await response.json()

    async def metrics(self) -> str:
        async with self.session.get(self.url + "/metrics") as response:
            return await response.text()

    async def metric(self, sample: str, **labels: str) -> float:
        """Return the sum of a metric's samples that have these labels."""
        return sum(
            found.value
            for family in text_string_to_metric_families(await self.metrics())
            for found in family.samples
            if found.name == sample and labels.items() <= found.labels.items()
        )


StartServer = Callable[..., Awaitable[RunningServer]]


def resolved(cls: type[T], values: Mapping[str, Any]) -> T:
    """Return settings from values as a file or a call would have them."""
    return resolve(cls, [Layer("test", values)])[0]


@contextlib.asynccontextmanager
async def running_servers(folder: Path) -> AsyncIterator[StartServer]:
    """Return a function that starts servers; all of them are stopped at the end.

    Call it with ``name=(archive, {model settings})`` or ``name=archive``, and server settings in
    ``server``. Without ``management_port=0`` among these there is no management API. What
    ``reread`` gives is the configuration from the next ``request_reload`` on. ``/metrics`` is never
    old and wrong tokens wait for nothing, unless asked for.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def start(
            server: dict[str, Any] | None = None,
            reread: Callable[[], Config] | None = None,
            metrics_age_s: float = 0.0,
            longest_delay_s: float = 0.0,
            **models: Path | str | tuple[Path | str, dict[str, Any]],
        ) -> RunningServer:
            configs = []
            for name, model in models.items():
                path, settings = model if isinstance(model, tuple) else (model, {})
                settings = {"workers": 1, **settings}
                configs.append(ModelConfig(name, str(path), resolved(ModelSettings, settings)))
            values = {
                "port": 0,
                "management_port": -1,
                "work_dir": str(folder / "work"),
                **(server or {}),
            }
            running = Server(
                Config(resolved(ServerSettings, values), tuple(configs), {}),
                reread=reread,
                metrics_age_s=metrics_age_s,
                longest_delay_s=longest_delay_s,
            )
            stack.push_async_callback(running.stop)
            await running.start()
            session = await stack.enter_async_context(open_session())
            return RunningServer(running, session)

        yield start
    # Whatever was killed at the very end is reaped by this loop, which stops with the test. What
    # services leave behind becomes a child of this process, and no janitor runs any more.
    await until(_is_reaped, what="all processes are reaped")


@contextlib.asynccontextmanager
async def fresh_client(shared: RunningServer) -> AsyncIterator[RunningServer]:
    """Return a shared server, whole again, with a session of its own."""
    await until(lambda: all(servable.is_complete for servable in shared.servables()))
    async with open_session() as session:
        yield RunningServer(shared._server, session)
    # Both ends of a connection are this process's, and the server closes its own a bit later.
    await until(lambda: not _connections({shared.port, shared.management_port}))
    await until(lambda: all(servable.is_complete for servable in shared.servables()))


def _is_reaped() -> bool:
    reap_orphans()
    return not any(_is_zombie(child) for child in psutil.Process().children())


def _is_zombie(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _connections(ports: set[int]) -> list[Any]:
    return [
        found
        for found in psutil.Process().net_connections("tcp")
        if found.laddr.port in ports and found.status != psutil.CONN_LISTEN
    ]


def open_session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=LIMIT_S)
    )
