"""The server process: start, run, stop; read top to bottom.

Never imports mxnet, numpy or user code, so that it starts fast and survives both.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from aiohttp import web

from mms.archive.reader import open_archive
from mms.archive.workspace import open_workspace
from mms.config import Config, ModelConfig, with_archive_defaults
from mms.errors import AddressInUse, ConfigError, MMSError
from mms.http.app import make_app
from mms.http.context import Context
from mms.metrics import Exporter, ServerMetrics
from mms.serving.processes import become_subreaper, worker_environment
from mms.serving.registry import DEFAULT_VERSION, Registry
from mms.serving.servable import Servable

logger = logging.getLogger("mms.server")

_BACKLOG = 1024
_MAX_HEADER_BYTES = 16 << 10
#: glibc's mallopt parameters. By default a body of 1 MB is mapped and unmapped for each request;
#: kept on the heap, reading one takes 40 % less CPU.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_HEAP_BYTES = -1, -3, 32 << 20


class Server:
    """One server: its models and its listening socket.

    Args:
        config: What to serve and how.
        announce: Called once everything is ready.
    """

    def __init__(self, config: Config, announce: Callable[[Server], None] | None = None) -> None:
        self.config = config
        self.registry = Registry()
        self.metrics = ServerMetrics()
        self.context = Context(
            self.registry, config.server, self.metrics, Exporter(self.registry, self.metrics)
        )
        self._announce = announce
        self._stack = contextlib.AsyncExitStack()
        self._stop_requested = asyncio.Event()
        self._stop_now = asyncio.Event()
        self._site: web.SockSite | None = None
        self.port = 0
        self.workspace = Path()

    async def run(self) -> None:
        """Start, serve until a signal or `request_stop`, and stop.

        Raises:
            MMSError: The server cannot start: port taken, model not loadable.
        """
        with self._signals():
            try:
                starting = asyncio.create_task(self.start())
                await self._until_stopped(starting)
                if self._announce and not self._stop_requested.is_set():
                    self._announce(self)
                await self._stop_requested.wait()
            finally:
                await self.stop()

    async def start(self) -> None:
        """Listen, then load the models; readiness turns true when all of them can serve.

        Raises:
            MMSError: The port is taken or a model cannot be loaded.
        """
        _tune_allocator()
        become_subreaper()
        await self._listen()
        self.workspace = self._make_workspace()
        loads = [asyncio.create_task(self._load(model)) for model in self.config.models]
        try:
            await asyncio.gather(*loads)
        finally:
            for load in loads:
                load.cancel()
            await asyncio.gather(*loads, return_exceptions=True)
        self.context.is_started = True

    async def stop(self) -> None:
        """Turn not ready, stop listening, finish what was accepted, stop the workers."""
        settings = self.config.server
        self.context.is_stopping = True
        if self.context.is_started and settings.drain_delay:
            # Still serving, until load balancers have noticed that we are not ready.
            await self._sleep_unless_forced(settings.drain_delay)
        self.context.is_draining = True
        if self._site:
            await self._site.stop()
        timeout_s = 0.0 if self._stop_now.is_set() else settings.shutdown_timeout
        await asyncio.gather(
            *(servable.unload(timeout_s, self._stop_now) for servable in self.registry.servables())
        )
        await self._stack.aclose()

    def request_stop(self) -> None:
        """Stop gracefully; asked a second time, at once."""
        if self._stop_requested.is_set():
            self._stop_now.set()
        self._stop_requested.set()

    async def _until_stopped(self, task: asyncio.Task[None]) -> None:
        """Wait for a task, but no longer than until the server is to stop."""
        stop = asyncio.create_task(self._stop_requested.wait())
        try:
            await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
            if not task.done():
                task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _listen(self) -> None:
        settings = self.config.server
        runner = web.AppRunner(
            make_app(self.context),
            access_log=None,
            handler_cancellation=True,
            keepalive_timeout=settings.keepalive_timeout,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            # Requests still running at the end were given their time already.
            shutdown_timeout=1.0,
        )
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        sock = _bind(settings.host, settings.port)
        self._site = web.SockSite(runner, sock, backlog=_BACKLOG)
        await self._site.start()
        self.port = sock.getsockname()[1]

    async def _load(self, model: ModelConfig) -> None:
        archive = await asyncio.to_thread(open_archive, model.path, self.workspace)
        settings = with_archive_defaults(
            model.settings, archive.manifest.serving, self.config.origins, model.name
        )
        servable = Servable(
            model.name,
            DEFAULT_VERSION,
            archive,
            settings,
            self.config.server.max_response_bytes,
            partial(_worker_environment, self.config.server.blacklist_env_vars),
        )
        self.registry.add(servable)
        logger.info("loading %s", model.path, extra={"model": model.name})
        try:
            await servable.load()
        except MMSError as error:
            error.args = (f"model {model.name!r} ({model.path}): {error}",)
            raise
        logger.info(
            "ready with %d workers after %.2f s",
            len(servable.workers),
            servable.metrics.load_seconds,
            extra={"model": model.name},
        )

    def _make_workspace(self) -> Path:
        folder = self.config.server.work_dir
        try:
            return self._stack.enter_context(open_workspace(Path(folder) if folder else None))
        except OSError as error:
            raise ConfigError(
                f"work_dir: no folder can be made in {folder or 'the temporary folder'}: "
                f"{error.strerror}"
            ) from None

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Have SIGTERM and Ctrl-C stop the server gracefully."""
        loop = asyncio.get_running_loop()
        numbers = (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self.request_stop)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def _sleep_unless_forced(self, seconds: float) -> None:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop_now.wait(), seconds)


def _bind(host: str, port: int) -> socket.socket:
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
            "choose another with --port, or --port 0 for any free one"
        ) from None
    return sock


def _worker_environment(blacklist: str, threads: int) -> Mapping[str, str]:
    try:
        pattern = re.compile(blacklist) if blacklist else None
    except re.error as error:
        raise ConfigError(f"blacklist_env_vars: not a regular expression: {error}") from None
    return worker_environment(
        os.environ, threads, lambda name: bool(pattern and pattern.fullmatch(name))
    )


def _tune_allocator() -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_THRESHOLD, _M_HEAP_BYTES)
            libc.mallopt(_M_TRIM_THRESHOLD, _M_HEAP_BYTES)
