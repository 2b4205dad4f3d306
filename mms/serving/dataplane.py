"""The data plane: a call in, an answer out. The one way from a transport to a model.

Admits a call, reads its body, chooses the version, has it answered, copies it to a shadow version,
counts it and logs it. HTTP and gRPC translate to it and from it, and decide nothing.
"""

from __future__ import annotations

import enum
import logging
import time
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from mms import log
from mms.errors import (
    Draining,
    InferenceFailed,
    MMSError,
    ProtocolError,
    RejectedByService,
    StartupError,
    Unavailable,
    subclasses,
)
from mms.serving.budget import Hold
from mms.serving.lifecycle import IllegalMove
from mms.serving.registry import Model, Registry
from mms.serving.request_ids import RequestIds
from mms.serving.servable import Servable
from mms.serving.shadow import Shadows
from mms.telemetry.counters import ServableMetrics, ServerMetrics
from mms.wire.frames import Buffer
from mms.wire.messages import Answer, RequestMeta

logger = logging.getLogger("mms.requests")
access_logger = logging.getLogger("mms.access")

#: Status that a request is counted under whose client left before its answer; nginx's number.
CLIENT_LEFT = 499
#: Reason under which such a request is counted.
CLIENT_LEFT_REASON = "client_left"
#: Reason under which a connection is counted that was closed because its client did not read.
SLOW_READER_REASON = "slow_reader"
#: Whichever is on its way when the server stops gets its answer; who comes later is told when.
_RETRY_WHEN_DRAINING_S = 5.0
#: What the service itself has answered. Its failures are counted by their status.
_OF_THE_SERVICE = (InferenceFailed, RejectedByService)


class ServerState(enum.Enum):
    """State of the server, which only ever goes forward.

    Attributes:
        STARTING: Start-up models are being loaded.
        SERVING: All of them have been.
        STOPPING: Not ready any more, but still serving, until load balancers have noticed.
        DRAINING: What was accepted is finished, and nothing more is accepted.
    """

    STARTING = "starting"
    SERVING = "serving"
    STOPPING = "stopping"
    DRAINING = "draining"


#: Allowed transitions; docs/architecture.md draws them.
SERVER_MOVES = {
    # To DRAINING at once: stopped before its models had been loaded.
    ServerState.STARTING: {ServerState.SERVING, ServerState.DRAINING},
    ServerState.SERVING: {ServerState.STOPPING},
    ServerState.STOPPING: {ServerState.DRAINING},
    # Stopping a second time is no harm.
    ServerState.DRAINING: {ServerState.DRAINING},
}


class Call:
    """One call of a client, over either transport, from its arrival to its end.

    Attributes:
        id: The client's own id, or one of ours.
        route: What it is counted under.
        started: Monotonic time of its arrival.
        metrics: Counters of the version that is asked, once that is known.
    """

    __slots__ = ("id", "metrics", "route", "started")

    def __init__(self, id_: str, route: str) -> None:
        self.id = id_
        self.route = route
        self.started = time.monotonic()
        self.metrics: ServableMetrics | None = None


class Query(Protocol):
    """A request for a prediction, as its transport translates it.

    Attributes:
        hold: What its body, and then its answer, hold of the budget.
        model: Name of the model.
        version: The version asked for; None is whichever traffic goes to.
        is_urgent: Whether it goes before requests that are not; known once its body is read.
        timeout_s: The client's own limit in seconds, if it has one; known once its body is read.
    """

    hold: Hold
    model: str
    version: str | None
    is_urgent: bool
    timeout_s: float | None

    def header(self, name: str) -> str | None:
        """Return the value of a header, or of what the transport has instead."""

    def read(self) -> Coroutine[Any, Any, tuple[Sequence[Buffer], int]]:
        """Return the body, held as it comes, and its length in bytes.

        Raises:
            MMSError: It cannot be read, or says something that makes no sense.
        """

    def meta(self, id_: str, wants_headers: bool) -> RequestMeta:
        """Return what a worker must know of the request besides its body.

        Args:
            id_: The call's id.
            wants_headers: Whether the service sees all headers.
        """


class DataPlane:
    """Answers calls with the registry's models.

    Args:
        registry: The models.
        metrics: Counters of calls that belong to no model.
        shadows: Copies of requests for other versions.
        logs_access: As the attribute.

    Attributes:
        state: What the server is doing.
        logs_access: Whether each call is logged in a line, by `log_access`.
    """

    def __init__(
        self, registry: Registry, metrics: ServerMetrics, shadows: Shadows, logs_access: bool
    ) -> None:
        self.state = ServerState.STARTING
        self.logs_access = logs_access
        self._registry = registry
        self._metrics = metrics
        self._shadows = shadows
        self._ids = RequestIds()

    @property
    def is_draining(self) -> bool:
        """Whether no more calls are accepted."""
        return self.state is ServerState.DRAINING

    def enter(self, state: ServerState) -> None:
        """Go to another state.

        Raises:
            IllegalMove: It cannot follow the present one.
        """
        if state not in SERVER_MOVES[self.state]:
            raise IllegalMove(f"a server cannot go from {self.state.name} to {state.name}")
        self.state = state

    def begin(self, route: str, *sent_ids: str | None) -> Call:
        """Return a new call.

        Args:
            route: What it is counted under.
            sent_ids: Ids that the client has sent; the first that can be one is taken.
        """
        call = Call(self._ids.of(*sent_ids), route)
        log.request_id.set(call.id)
        return call

    def find(self, name: str) -> Model:
        """Return a model.

        Raises:
            ModelNotFound: No model has this name.
            ModelNotReady: The server has not read all its archives yet.
        """
        return self._registry.find(name, self.state is not ServerState.STARTING)

    def version(self, name: str, version: str | None) -> Servable:
        """Return the version asked for, or the default one.

        Raises:
            ModelNotFound: There is no such model or version.
            ModelNotReady: The server has not read all its archives yet.
        """
        model = self.find(name)
        return model.version(version or model.default)

    async def predict(self, call: Call, query: Query) -> Answer:
        """Return the model's answer to a call.

        Args:
            call: The call.
            query: What it asks.

        Raises:
            MMSError: Whatever kept the model from answering; `end` counts it.
            asyncio.CancelledError: The client left; the request is dropped if it still waits.
        """
        # A request for a missing model is refused before its body. Until a version is chosen,
        # refusals count for the one that is named, or the default.
        model = self.find(query.model)
        call.metrics = model.version(query.version or model.default).metrics
        if self.state is ServerState.DRAINING:
            raise Draining("the server is stopping", _RETRY_WHEN_DRAINING_S)
        chunks, size = await query.read()
        # Chosen only now: while the body came, versions may have been replaced, or all of them
        # removed and the name registered again.
        if not model.versions:
            model = self.find(query.model)
        shadow = None
        if query.version is None:
            traffic = model.traffic
            sticky = query.header(traffic.sticky_header) if traffic.sticky_header else None
            servable, shadow = model.choose(sticky), model.versions.get(traffic.shadow)
        else:
            servable = model.version(query.version)
        call.metrics = servable.metrics
        meta = query.meta(call.id, servable.wants_headers).encode()
        asking = servable.infer(meta, chunks, size, query.timeout_s, query.is_urgent)
        if shadow is None or shadow is servable:
            answer = await asking
        else:
            answer = await self._shadows.answer(asking, shadow, meta, chunks, size)
        query.hold.replace(len(answer.body))
        return answer

    def end(self, call: Call, status: int, error: MMSError | None = None) -> None:
        """Count how a call has ended, and log what went wrong.

        Args:
            call: The call.
            status: Status of HTTP that it was answered with, or the like; `CLIENT_LEFT` if it was
                not.
            error: Why it was not answered as it was meant to be, if so.
        """
        metrics = call.metrics
        if metrics is None:
            self._metrics.requests[call.route, status] += 1
        else:
            metrics.requests[call.route, status] += 1
            metrics.duration.observe(time.monotonic() - call.started)
        if error is not None:
            _log(error, status)
            if not isinstance(error, _OF_THE_SERVICE):
                (metrics or self._metrics).rejected[error.code] += 1
        elif status == CLIENT_LEFT:
            (metrics or self._metrics).rejected[CLIENT_LEFT_REASON] += 1

    def log_access(self, call: Call, status: int, who: str, what: str) -> None:
        """Log a call that has ended, in a line.

        Args:
            call: The call.
            status: As for `end`.
            who: The client's address.
            what: What it asked for.
        """
        duration_ms = (time.monotonic() - call.started) * 1000
        access_logger.info('%s "%s" %d %.1fms', who, what, status, duration_ms)


def reasons() -> list[str]:
    """Return every reason that a refusal may be counted under, those of connections included.

    A code is not among them if only the service's own failures have it, if it ends a command, or
    if it is the base of others.
    """
    codes = {
        cls.code
        for cls in subclasses()
        if not issubclass(cls, (*_OF_THE_SERVICE, StartupError, ProtocolError))
        and cls not in (MMSError, Unavailable)
    }
    return sorted(codes | {CLIENT_LEFT_REASON, SLOW_READER_REASON})


def _log(error: MMSError, status: int) -> None:
    # A failing service has logged its traceback from the worker under the same request id.
    # Overload and start-up make thousands of 503s, which the metrics count.
    is_ours = status >= 500 and not isinstance(error, Unavailable)
    level = logging.WARNING if is_ours else logging.DEBUG
    logger.log(level, "answered %d: %s", status, error)
