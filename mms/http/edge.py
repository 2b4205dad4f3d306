"""State shared by the connections of all ports: limits, counters, and the timer that checks them.

A single timer detects incomplete request heads and unread responses, so that requests need no
timers of their own.
"""

from __future__ import annotations

import asyncio
import logging
import resource
import time
from collections.abc import Mapping
from typing import Protocol

from aiohttp import web

from mms.config.settings import ServerSettings
from mms.errors import MMSError, TooManyConnections
from mms.http.cors import Cors
from mms.http.errors import error_body, kind_of
from mms.http.limiter import LineLimiter
from mms.http.response import ClosingResponse, closing_response
from mms.serving.budget import Budget
from mms.serving.dataplane import SLOW_READER_REASON
from mms.serving.request_ids import RequestIds
from mms.telemetry.counters import ServerMetrics

logger = logging.getLogger("mms.http")

#: File descriptors reserved for workers (three each), models' files and gRPC.
_SPARE_FILES = 128
#: Connections of the management port beyond the limit, so that an operator can still connect.
_RESERVED_CONNECTIONS = 8
#: Connections beyond the limit that get an error response at a time; others are just closed.
_MAX_TURNED_AWAY = 64
#: Interval between checks of all connections: maximum, seconds, and checks per shortest timeout.
_SWEEP_S, _SWEEPS_PER_TIMEOUT = 1.0, 4
#: Name of the route in metrics for requests that cannot be parsed.
_ROUTE = "malformed"
#: Type and code of such errors, by status.
_KINDS = {
    400: ("InvalidRequest", "malformed_request"),
    414: ("InvalidRequest", "request_line_too_long"),
    417: ("InvalidRequest", "expectation_failed"),
    431: ("InvalidRequest", "headers_too_long"),
    500: ("InternalError", "internal_error"),
}


class Watched(Protocol):
    """The interface of a connection to the timer."""

    def check(self, now: float) -> None:
        """Close it if it has been slow for too long."""


def default_max_connections() -> int:
    """Return how many connections fit into the limit of open files, less the reserved ones."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 20
    return max(soft // 2, soft - _SPARE_FILES)


class Edge:
    """State shared by the connections of all ports: limits, counters, and the timer.

    Args:
        settings: The server's settings.
        budget: The budget of buffered bytes.
        metrics: Counters of requests that belong to no model.
    """

    def __init__(self, settings: ServerSettings, budget: Budget, metrics: ServerMetrics) -> None:
        self.budget = budget
        self.max_connections = settings.max_connections or default_max_connections()
        self.max_linger_bytes = settings.max_request_bytes
        self.header_timeout_s = settings.header_timeout
        self.write_timeout_s = settings.write_timeout
        self._metrics = metrics
        # Pages should be able to read these responses, too.
        self._shared = Cors(settings).headers_of(None)
        self._shared_by_management = Cors(settings, is_management=True).headers_of(None)
        self._ids = RequestIds()
        self._lines = LineLimiter()
        self._open: set[Watched] = set()
        self._turned_away: set[Watched] = set()
        self._timer: asyncio.TimerHandle | None = None
        shortest_s = min(self.header_timeout_s, self.write_timeout_s)
        self._sweep_s = min(_SWEEP_S, shortest_s / _SWEEPS_PER_TIMEOUT)

    @property
    def connections(self) -> int:
        """Connections that are open and served."""
        return len(self._open)

    def enter(self, connection: Watched, is_reserved: bool) -> bool:
        """Register a connection, and return whether it is served.

        Args:
            connection: The connection.
            is_reserved: Whether it is on the management port.
        """
        limit = self.max_connections + (_RESERVED_CONNECTIONS if is_reserved else 0)
        is_served = len(self._open) < limit
        (self._open if is_served else self._turned_away).add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
        return is_served

    def leave(self, connection: Watched) -> None:
        """Unregister a closed connection."""
        self._open.discard(connection)
        self._turned_away.discard(connection)

    def close(self) -> None:
        """Stop watching."""
        if self._timer:
            self._timer.cancel()

    def turn_away(self, is_reserved: bool) -> bytes:
        """Return the response to a connection beyond the limit; empty if it is to get none."""
        self._metrics.rejected[TooManyConnections.code] += 1
        if len(self._turned_away) > _MAX_TURNED_AWAY:
            return b""
        error = TooManyConnections(
            f"{self.max_connections} connections are open, as many as max_connections allows; try "
            "again later, or start the server with --max-connections to allow more"
        )
        return self.refusal(error, is_reserved, {"Retry-After": "1"})

    def refusal(
        self, error: MMSError, is_reserved: bool, headers: dict[str, str] | None = None
    ) -> bytes:
        """Count something that is not a request, and return the error response."""
        kind, id_ = kind_of(error), self._ids.of(None)
        status, name = kind.status, type(error).__name__
        self._metrics.requests[_ROUTE, status] += 1
        body = error_body(status, name, error.code, str(error), id_, legacy_type=kind.type)
        return self._closing(status, body, id_, is_reserved, headers or {})

    def malformed(
        self, request: web.BaseRequest, is_reserved: bool, status: int, why: str
    ) -> web.StreamResponse:
        """Count a request that cannot be parsed, log it within limits, and return the response."""
        id_ = self._ids.of(None)
        self._metrics.requests[_ROUTE, status] += 1
        self.log(f"refused a malformed request from {request.remote}: {why}")
        kind, code = _KINDS[status]
        body = error_body(status, kind, code, f"the request is malformed: {why}", id_)
        return ClosingResponse(self._closing(status, body, id_, is_reserved, {}), status)

    def _closing(
        self, status: int, body: bytes, id_: str, is_reserved: bool, headers: Mapping[str, str]
    ) -> bytes:
        shared = self._shared_by_management if is_reserved else self._shared
        return closing_response(status, body, {"X-Request-Id": id_, **headers, **shared})

    def cut_off(self) -> None:
        """Count a connection whose client does not read its responses."""
        self._metrics.rejected[SLOW_READER_REASON] += 1

    def log(self, line: str) -> None:
        """Log a line that a client has caused, at a limited rate."""
        now = time.monotonic()
        self._log_suppressed(now)
        if self._lines.admit(now):
            logger.info("%s", line)

    def _log_suppressed(self, now: float) -> None:
        count = self._lines.take_suppressed(now)
        if count:
            logger.info("%d more malformed or failed requests were not logged", count)

    def _sweep(self) -> None:
        now = time.monotonic()
        self._log_suppressed(now)
        for connection in [*self._open, *self._turned_away]:
            connection.check(now)
        self._timer = None
        if self._open or self._turned_away:
            self._timer = asyncio.get_running_loop().call_later(self._sweep_s, self._sweep)
