"""A load that is measured: what counts, and what it came to."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import click

from tests.kit.load.connection import Connection, connect
from tests.kit.load.patterns import Client, ClosedLoop, OpenLoop, Pattern
from tests.kit.load.requests import Requests
from tests.kit.load.schedule import percentiles, poisson
from tests.kit.load.wire import encode_request

#: Longest wait for the answers that are still to come when the last request has been sent.
_LAST_ANSWERS_LIMIT_S = 120.0
_SHOWN_BYTES = 300


class LoadFailed(click.ClickException):
    """The load cannot be put on the server; says why."""


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked, how hard, and for how long.

    Attributes:
        url: Where to.
        content_type: Of the body.
        body: May have `requests.TOKEN` in it.
        connections: Of a closed loop; of an open one, what a request may have to wait for.
        warm_up_s: Load that does not count: connections and caches are warm after it.
        seconds: Load that counts.
        rate: Requests per second of an open loop; None is a closed one.
        seed: Of the open loop's random times.
        burst: How many requests of an open loop come at once.
        answer: Part of every right answer.
        reconnects: Whether a connection that the server closes is opened anew, and counts as a
            failed request, instead of ending the load.
    """

    url: str
    content_type: str
    body: bytes
    connections: int
    warm_up_s: float
    seconds: float
    rate: float | None = None
    seed: int = 0
    burst: int = 1
    answer: bytes = b""
    reconnects: bool = False


class _Record:
    """When each answer came, how long it took and whether it was right, in order."""

    def __init__(self) -> None:
        self.done = array("d")
        self.latencies = array("d")
        self.right = bytearray()
        self.failed = 0
        self.first_failure = ""

    def add(self, now: float, since: float, is_right: bool) -> None:
        self.done.append(now)
        self.latencies.append(now - since)
        self.right.append(is_right)

    def add_failure(self, what: str) -> None:
        self.first_failure = self.first_failure or what
        self.failed += 1


class _Measurement:
    """A pattern with a beginning and an end of what counts.

    Attributes:
        record: What came back.
        over: Done at the end of the time that counts.
        broken: Failed when the load cannot go on.
    """

    def __init__(self, pattern: Pattern, load: Load) -> None:
        loop = asyncio.get_running_loop()
        self.pattern = pattern
        self.record = _Record()
        self.over: asyncio.Future[None] = loop.create_future()
        self.broken: asyncio.Future[None] = loop.create_future()
        self._load = load
        self._start = 0.0
        self._cpu_s = array("d")

    def start(self, clients: list[_Client]) -> None:
        """Begin to ask."""
        self._start = time.monotonic() + self._load.warm_up_s
        loop = asyncio.get_running_loop()
        for delay in (self._load.warm_up_s, self._load.warm_up_s + self._load.seconds):
            loop.call_later(delay, self._mark_cpu)
        self.pattern.start(clients)

    def on_answer(self, client: Client, now: float) -> None:
        """Record that a client is free again."""
        self.pattern.settled(client, now)

    def fail(self, reason: str) -> None:
        """End the load early."""
        if not self.broken.done():
            self.broken.set_exception(LoadFailed(reason))

    def figures(self) -> dict[str, Any]:
        """Return the figures of the time that counts; ``latencies`` is an array of seconds."""
        raise NotImplementedError

    @property
    def client_cpu(self) -> float:
        """Share of a core that this process has used in the time that counts."""
        begin, end = self._cpu_s
        return (end - begin) / self._load.seconds

    def _mark_cpu(self) -> None:
        self._cpu_s.append(time.process_time())
        # An open loop's last answer may come before the end of the time that counts.
        if len(self._cpu_s) == 2 and not self.over.done():
            self.over.set_result(None)


class _Closed(_Measurement):
    """A closed loop.

    What counts begins with the first answer after the warm-up, and ends with the first one that
    comes `seconds` later or after that. The answers of a batch come all at once; this way whole
    batches are counted, over the time that they took, however long that is.
    """

    def __init__(self, load: Load) -> None:
        super().__init__(ClosedLoop(), load)
        self._ends_at = math.inf

    def on_answer(self, client: Client, now: float) -> None:
        """Look whether this is the first answer that counts, or the last."""
        if now >= self._start and self._ends_at == math.inf:
            self._ends_at = now + self._load.seconds
        if now >= self._ends_at:
            # The others are waited for: the next load must not find this one's requests.
            self.pattern.stop()
        self.pattern.settled(client, now)

    def figures(self) -> dict[str, Any]:
        """Return what every measurement does."""
        done = self.record.done
        first, last = bisect_left(done, self._start), bisect_left(done, self._ends_at)
        right = sum(self.record.right[first + 1 : last + 1])
        return {
            "requests_per_s": right / (done[last] - done[first]),
            "latencies": self.record.latencies[first + 1 : last + 1],
        }


class _Open(_Measurement):
    """An open loop, with as many connections as the load has."""

    def __init__(self, load: Load, rate: float) -> None:
        times = poisson(rate, load.warm_up_s, load.seconds, load.seed, load.burst)
        self._loop = OpenLoop(times)
        super().__init__(self._loop, load)

    def figures(self) -> dict[str, Any]:
        """Return the latencies of what was meant to be sent in the time that counts.

        ``client_lag_p99_ms`` is what the client itself adds: how late it sends although a
        connection is free.
        """
        done, latencies = self.record.done, self.record.latencies
        counted = array(
            "d",
            (took for at, took in zip(done, latencies, strict=True) if at - took >= self._start),
        )
        end = self._start + self._load.seconds
        right = sum(self.record.right[bisect_left(done, self._start) : bisect_left(done, end)])
        return {
            "requests_per_s": right / self._load.seconds,
            "offered_per_s": len(counted) / self._load.seconds,
            "latencies": counted,
            "client_lag_p99_ms": percentiles(self._loop.lags)["p99_ms"],
        }


class _Client:
    """One connection, over which a request is sent whenever the pattern says so."""

    def __init__(self, load: Load, requests: Requests, measurement: _Measurement) -> None:
        parts = urlsplit(load.url)
        self._address = parts.hostname or "127.0.0.1", parts.port or 80
        self._requests = requests
        self._measurement = measurement
        self._record = measurement.record
        self._reconnects = load.reconnects
        self._connection: Connection | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self._is_asking = False
        self._since = 0.0
        self._token = b""

    async def connect(self) -> None:
        """Open the connection.

        Raises:
            OSError: There is no server.
        """
        self._connection = await connect(*self._address, self._on_answer, self._on_lost)

    def ask(self, since: float) -> None:
        """Send a request; its latency counts from `since`."""
        self._since = since
        self._is_asking = True
        request, self._token = self._requests.next()
        if self._connection is not None:
            self._connection.send(request)

    def close(self) -> None:
        """Close the connection, whatever is on its way."""
        if self._reconnecting is not None:
            self._reconnecting.cancel()
        if self._connection is not None:
            self._connection.close()

    def _on_answer(self, answer: bytes) -> None:
        is_right = self._requests.is_right(answer, self._token)
        if not is_right:
            self._record.add_failure(answer[:_SHOWN_BYTES].decode(errors="replace"))
        now = time.monotonic()
        self._record.add(now, self._since, is_right)
        self._is_asking = False
        self._measurement.on_answer(self, now)

    def _on_lost(self, reason: str) -> None:
        if not self._reconnects:
            self._measurement.fail(reason)
            return
        self._record.add_failure(reason)
        self._reconnecting = asyncio.ensure_future(self._reconnect())

    async def _reconnect(self) -> None:
        try:
            await self.connect()
        except OSError as error:
            self._measurement.fail(f"{error}, after a connection was lost")
            return
        if self._is_asking:
            # None of what counts: it is a failure that has no end.
            self._is_asking = False
            self._measurement.pattern.settled(self, time.monotonic())


async def put_load(load: Load) -> dict[str, Any]:
    """Put a load on a server, and return what came of it.

    Raises:
        LoadFailed: The server cannot be reached, closes a connection that is not to be opened
            anew, or answers too late.
    """
    parts = urlsplit(load.url)
    wire = encode_request("POST", parts.path, load.body, load.content_type, parts.netloc)
    requests = Requests(wire, load.answer)
    measurement = _Closed(load) if load.rate is None else _Open(load, load.rate)
    clients = [_Client(load, requests, measurement) for _ in range(load.connections)]
    limit_s = load.warm_up_s + load.seconds + _LAST_ANSWERS_LIMIT_S
    try:
        for client in clients:
            await client.connect()
        measurement.start(clients)
        for end in (measurement.pattern.finished, measurement.over):
            await asyncio.wait(
                {end, measurement.broken}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED
            )
            if measurement.broken.done():
                measurement.broken.result()
            if not end.done():
                raise LoadFailed(f"{load.url}: not all answers have come after {limit_s:g} s")
    except OSError as error:
        raise LoadFailed(f"{load.url} cannot be reached: {error}") from error
    finally:
        measurement.pattern.finished.cancel()
        measurement.broken.cancel()
        for client in clients:
            client.close()
    return {
        **measurement.figures(),
        "answered": len(measurement.record.done),
        "failed": measurement.record.failed,
        "first_failure": measurement.record.first_failure,
        "client_cpu": measurement.client_cpu,
    }
