"""The server process: start, run, stop; read top to bottom.

Never imports mxnet, numpy or user code, so that it starts fast and survives their crashes.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import re
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from aiohttp import web

from mms.archive.workspace import open_workspace
from mms.config.address import is_loopback
from mms.config.build import Config
from mms.config.settings import TOKEN_VARIABLE
from mms.errors import AddressInUse, ConfigError, MMSError
from mms.fetch.download import Progress
from mms.http.app import make_app, shows_errors
from mms.http.audit import LONGEST_DELAY_S, Failures
from mms.http.connection import Runner
from mms.http.context import Context
from mms.http.edge import Edge
from mms.http.guard import Guard
from mms.http.management import make_management_app
from mms.http.one_port import add_management, has_one_port
from mms.http.openapi.description import models_of
from mms.http.openapi.document import routes_of
from mms.http.openapi.generate import find_generator
from mms.serving.budget import Budget, default_limit
from mms.serving.controlplane import ControlPlane
from mms.serving.dataplane import DataPlane, ServerState
from mms.serving.janitor import Janitor
from mms.serving.pool.child import become_subreaper, worker_environment
from mms.serving.registry import Registry
from mms.serving.shadow import Shadows
from mms.serving.startup import Startup
from mms.telemetry.counters import ServableMetrics, ServerGauges, ServerMetrics
from mms.telemetry.prometheus import METRICS_AGE_S, Exporter
from mms.telemetry.writer import MetricsWriter, make_writer

if TYPE_CHECKING:
    from mms.grpc.server import GrpcServer

logger = logging.getLogger("mms.server")

_BACKLOG = 1024
#: Time to send the responses that are ready at the end, seconds.
_LAST_ANSWERS_S = 1.0
_PR_SET_DUMPABLE = 4
#: Threshold of the garbage collector, in new objects: a few MB at most.
_COLLECT_AFTER_OBJECTS = 20_000
#: glibc's mallopt parameters. By default, a body of 1 MB is mapped and unmapped for each request;
#: on the heap, reading one takes 40 % less CPU.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_HEAP_BYTES = -1, -3, 32 << 20


class Server:
    """One server: its models and its listening socket.

    Args:
        config: The configuration.
        announce: Called once everything is ready.
        reread: Returns the current configuration, for SIGHUP.
        progress: Receives the progress of downloads.
        metrics_age_s: Maximum age of a response of /metrics, in seconds.
        longest_delay_s: Maximum delay of the response to a wrong token, in seconds.
    """

    def __init__(
        self,
        config: Config,
        announce: Callable[[Server], None] | None = None,
        reread: Callable[[], Config] | None = None,
        progress: Progress | None = None,
        metrics_age_s: float = METRICS_AGE_S,
        longest_delay_s: float = LONGEST_DELAY_S,
    ) -> None:
        self.config = config
        self._reread = reread
        self._reloading: asyncio.Task[None] | None = None
        self.registry = Registry()
        self.metrics = ServerMetrics(gauges=self._gauges)
        self.budget = Budget(config.server.max_buffered_bytes or _default_budget())
        self._edge = Edge(config.server, self.budget, self.metrics)
        self._shadows = Shadows(self.metrics.shadows, self.budget)
        self.dataplane = DataPlane(
            self.registry, self.metrics, self._shadows, config.server.access_log
        )
        hidden = config.server.blacklist_env_vars
        self.controlplane = ControlPlane(
            config,
            self.registry,
            partial(_worker_environment, re.compile(hidden) if hidden else None),
            progress,
        )
        self.startup = Startup(self.controlplane, self.registry)
        self.janitor = Janitor(self.controlplane, self.registry)
        self.context = Context(
            self.registry,
            config.server,
            Exporter(self.registry, self.metrics, metrics_age_s),
            self.dataplane,
            self.controlplane,
        )
        self._announce = announce
        self._longest_delay_s = longest_delay_s
        self._stack = contextlib.AsyncExitStack()
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._site: web.SockSite | None = None
        self._grpc: GrpcServer | None = None
        self.port = 0
        self.management_port = 0
        self.grpc_port = 0
        self.workspace = Path()

    async def run(self) -> None:
        """Start, serve until a signal or `request_stop`, and stop.

        Raises:
            MMSError: The server cannot start: a port is taken or a model does not load.
        """
        with self._signals():
            try:
                starting = asyncio.create_task(self.start())
                await self._until_stopped(starting)
                _tune_collector()
                if self._announce and not self._stop_requested.is_set():
                    self._announce(self)
                await self._stop_requested.wait()
            finally:
                await self.stop()

    async def start(self) -> None:
        """Listen, then load the models; the server is ready once all of them can serve.

        Raises:
            MMSError: A port is taken or a model does not load.
        """
        _tune_allocator()
        _hide_memory()
        become_subreaper()
        generator = find_generator(self.config.server)
        writer = self._make_metrics_writer()
        token = os.environ.get(TOKEN_VARIABLE, "")
        guard = Guard(self.config.server, token, Failures(self._longest_delay_s))
        app = await self._listen(guard)
        if writer:
            writer.start()
        if self.config.server.grpc_port >= 0:
            await self._listen_for_grpc()
        self.workspace = self._make_workspace()
        self.controlplane.open(self.workspace)
        if self.config.server.management_port >= 0 and not self.management_port:
            await self._listen_for_management(guard)
        await self.startup.start()
        self.janitor.start()
        self.dataplane.enter(ServerState.SERVING)
        if generator:
            await generator.generate(routes_of(app), models_of(self.registry), self.url)

    async def stop(self) -> None:
        """Become not ready, stop listening, finish accepted requests, stop the workers."""
        settings = self.config.server
        if self.dataplane.state is ServerState.SERVING:
            self.dataplane.enter(ServerState.STOPPING)
            if settings.drain_delay:
                # Until load balancers have noticed that the server is not ready.
                await self._sleep_unless_forced(settings.drain_delay)
        self.dataplane.enter(ServerState.DRAINING)
        if self._is_reloading and self._reloading:
            self._reloading.cancel()
            await asyncio.gather(self._reloading, return_exceptions=True)
        if self._site:
            site, self._site = self._site, None
            await site.stop()
        timeout_s = 0.0 if self._stop_now.is_set() else settings.shutdown_timeout
        # Concurrently with the queues, which it waits for; they fail what is left at the timeout.
        stopping = asyncio.create_task(self._stop_grpc(timeout_s))
        await self._shadows.stop()
        await self.janitor.stop()
        await self.controlplane.stop(timeout_s, self._stop_now)
        await stopping
        await self._stack.aclose()
        self._edge.close()

    @property
    def url(self) -> str:
        """URL of the inference API for clients on this machine."""
        return _url(self.config.server.host, self.port)

    @property
    def management_url(self) -> str:
        """URL of the management API for clients on this machine."""
        return _url(self.config.server.management_host, self.management_port)

    def request_stop(self) -> None:
        """Stop gracefully; on the second call, at once."""
        if self._stop_requested.is_set():
            self._stop_now.set()
        self._stop_requested.set()

    def request_reload(self) -> None:
        """Reload the configuration file and apply its changes to the start-up models."""
        if self._reread and self._is_started and not self._is_reloading:
            self._reloading = asyncio.create_task(self._reload())

    @property
    def _is_started(self) -> bool:
        return self.dataplane.state is not ServerState.STARTING

    @property
    def _is_reloading(self) -> bool:
        return self._reloading is not None and not self._reloading.done()

    async def _reload(self) -> None:
        try:
            config = self._reread() if self._reread else self.config
            done = await self.startup.apply(config)
        except MMSError as error:
            logger.error("the configuration was not applied: %s", error)
        except Exception:
            # Whatever the error, the server continues with the old configuration.
            logger.exception("the configuration was not applied")
        else:
            logger.info("configuration reloaded: %s", "; ".join(done) or "no changes")

    async def _until_stopped(self, task: asyncio.Task[None]) -> None:
        """Wait for a task, or until a stop is requested, which cancels it."""
        stop = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _listen(self, guard: Guard) -> web.Application:
        settings = self.config.server
        if has_one_port(settings):
            self._check_management(guard)
        sock = _bind(settings.host, settings.port, "port")
        app = make_app(self.context, guard)
        self.port = sock.getsockname()[1]
        if has_one_port(settings):
            add_management(app, self.context, guard)
            self.management_port = self.port
        self._site = await self._serve(app, sock)
        return app

    async def _listen_for_grpc(self) -> None:
        settings = self.config.server
        try:
            from mms.grpc.server import GrpcServer, InferenceService
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"grpc_port: {error.name!r} is not installed; run: "
                "pip install 'mxnet-model-server[grpc]'"
            ) from None
        if settings.grpc_port:
            # gRPC's own error does not tell the reason.
            _bind(settings.host, settings.grpc_port, "grpc-port").close()
        service = InferenceService(
            self.dataplane,
            settings,
            self.budget,
            lambda: self.context.is_ready,
            shows_errors(settings),
        )
        server = GrpcServer(service, settings.max_request_bytes)
        try:
            self.grpc_port = await server.start(settings.host, settings.grpc_port)
        except OSError as error:
            raise AddressInUse(f"cannot listen for gRPC on {settings.host!r}: {error}") from None
        self._grpc = server

    async def _stop_grpc(self, timeout_s: float) -> None:
        if self._grpc:
            server, self._grpc = self._grpc, None
            await server.stop(timeout_s + _LAST_ANSWERS_S)

    def _check_management(self, guard: Guard) -> None:
        settings = self.config.server
        if not guard.asks_for_token and not is_loopback(settings.management_host):
            raise ConfigError(
                f"management_host {settings.management_host} can be reached from elsewhere; set a "
                f"token in {TOKEN_VARIABLE}, or leave it on 127.0.0.1"
            )

    async def _listen_for_management(self, guard: Guard) -> None:
        settings = self.config.server
        self._check_management(guard)
        sock = _bind(settings.management_host, settings.management_port, "management-port")
        app = make_management_app(self.context, guard)
        await self._serve(app, sock, is_management=True)
        self.management_port = sock.getsockname()[1]

    async def _serve(
        self, app: web.Application, sock: socket.socket, is_management: bool = False
    ) -> web.SockSite:
        runner = Runner(
            app,
            self._edge,
            is_reserved=is_management,
            keepalive_timeout=self.config.server.keepalive_timeout,
            # Requests still running at this point have had their time already.
            shutdown_timeout=_LAST_ANSWERS_S,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        site = web.SockSite(runner, sock, backlog=_BACKLOG)
        await site.start()
        return site

    def _gauges(self) -> ServerGauges:
        budget, edge = self.budget, self._edge
        return ServerGauges(budget.held, budget.limit, edge.connections, edge.max_connections)

    def _make_metrics_writer(self) -> MetricsWriter | None:
        """Return the writer of metrics, if one is set; it is stopped after the last request."""

        def source() -> list[ServableMetrics]:
            return [servable.metrics for servable in self.registry.servables()]

        writer = make_writer(self.config.server, source, self.metrics)
        if writer:
            self._stack.push_async_callback(writer.stop)
        return writer

    def _make_workspace(self) -> Path:
        folder = self.config.server.work_dir
        try:
            return self._stack.enter_context(open_workspace(Path(folder) if folder else None))
        except OSError as error:
            raise ConfigError(
                f"work_dir: no folder can be created in {folder or 'the temporary folder'}: "
                f"{error.strerror}"
            ) from None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Install the signal handlers: SIGTERM and Ctrl-C stop gracefully, SIGHUP reloads."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.request_stop)
        loop.add_signal_handler(signal.SIGHUP, self.request_reload)
        try:
            yield
        finally:
            for number in (*numbers, signal.SIGHUP):
                loop.remove_signal_handler(number)

    async def _sleep_unless_forced(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop_now.wait(), seconds)


def _url(host: str, port: int) -> str:
    known = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}
    return f"http://{known.get(host, f'[{host}]' if ':' in host else host)}:{port}"


def _bind(host: str, port: int, flag: str) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        sock = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise AddressInUse(f"cannot listen on {host!r}: {error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise AddressInUse(
            f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}; "
            f"choose another port with --{flag}, or --{flag} 0 for any free one"
        ) from None
    return sock


def _worker_environment(hidden: re.Pattern[str] | None, threads: int) -> Mapping[str, str]:
    return worker_environment(
        os.environ,
        threads,
        # A service must not manage models of others.
        lambda name: name == TOKEN_VARIABLE or bool(hidden and hidden.fullmatch(name)),
    )


def _hide_memory() -> None:
    """Protect memory and environment from other processes of this user, services above all.

    Afterwards, only root can open /proc/PID/environ and /proc/PID/mem of this process, no debugger
    can attach and no core is dumped. Workers are not affected: executing a new program, as each of
    them does, resets it.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _default_budget() -> int:
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    is_limited = address_space != resource.RLIM_INFINITY
    return default_limit(address_space=address_space if is_limited else 0)


def _tune_collector() -> None:
    """Freeze start-up objects and raise the garbage collector's threshold.

    Requests leave no cycles behind, so it finds next to nothing, and took a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER_OBJECTS)


def _tune_allocator() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, _M_HEAP_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, _M_HEAP_BYTES)
