"""Closed-loop HTTP load over keep-alive connections, with a look into every answer.

Each connection sends its next request when the last one is answered. A request counts as failed
unless its answer has status 200 and holds what a right answer holds: a server must not look fast
by answering errors. Answers may come with a length or in chunks, as peers differ in that.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import uvloop

#: A server that stops answering ends the run after this, instead of holding it for ever.
ANSWER_LIMIT_S = 30.0
_END_OF_HEAD = b"\r\n\r\n"
_LAST_CHUNK = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Request:
    """What every connection sends, and a part of every right answer."""

    url: str
    body: bytes
    answer: bytes

    def encode(self) -> bytes:
        """Return the request as bytes on the wire."""
        parts = urlsplit(self.url)
        head = (
            f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self.body)}\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What one round came to.

    Attributes:
        requests_per_s: Rate of right answers.
        p50_ms: Median latency of all answers.
        p99_ms: 99th percentile of it.
        failed: Answers that were not right, and connections that the server dropped.
        total: All answers, with those of the warm-up.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    failed: int
    total: int


def load(request: Request, connections: int, seconds: float, warm_up_s: float) -> LoadResult:
    """Put load on a server; what is answered during the warm-up is not counted.

    Raises:
        OSError: The server accepts no connection.
        TimeoutError: Nothing was answered within ANSWER_LIMIT_S.
    """
    return uvloop.run(_load(request, connections, seconds, warm_up_s))


def message_end(buffer: bytes) -> int:
    """Return the length of the first complete answer in `buffer`, or 0 if it is not complete."""
    end = buffer.find(_END_OF_HEAD)
    if end < 0:
        return 0
    head = buffer[:end].lower()
    body = end + len(_END_OF_HEAD)
    at = head.find(b"\r\ncontent-length:")
    if at >= 0:
        length = int(head[at + 17 :].split(b"\r\n", 1)[0])
        return body + length if len(buffer) >= body + length else 0
    # Peers answer JSON of one line, so these bytes stand at the end of the last chunk only.
    last = buffer.find(_LAST_CHUNK, body)
    return last + len(_LAST_CHUNK) if last >= 0 else 0


class _Sample:
    """Answers of all connections: when, how long they took, whether they were right."""

    def __init__(self) -> None:
        self.answers: list[tuple[float, float, bool]] = []
        self.dropped: list[float] = []
        self.is_stopping = False


class _Connection(asyncio.Protocol):
    def __init__(self, wire: bytes, answer: bytes, sample: _Sample) -> None:
        self._wire = wire
        self._answer = answer
        self._sample = sample
        self._buffer = b""
        self._sent_at = 0.0
        self.closed = asyncio.Event()
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's is no asyncio.Transport by type, but has all of its methods.
        self.transport = cast(asyncio.Transport, transport)
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not (length := message_end(self._buffer)):
            return
        message = self._buffer[:length]
        self._buffer = b""
        is_right = message.startswith(b"HTTP/1.1 200") and self._answer in message
        now = time.perf_counter()
        self._sample.answers.append((now, now - self._sent_at, is_right))
        if self._sample.is_stopping:
            self.closed.set()
        else:
            self._send()

    def connection_lost(self, exc: Exception | None) -> None:
        # Also after a complete answer: the next request was on its way.
        if not self._sample.is_stopping:
            self._sample.dropped.append(time.perf_counter())
        self.closed.set()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        if self.transport is not None:
            self.transport.write(self._wire)


async def _client(request: Request, sample: _Sample) -> None:
    """Keep one connection busy; a server that closes it gets another one."""
    loop = asyncio.get_running_loop()
    parts = urlsplit(request.url)
    wire = request.encode()
    connection: _Connection | None = None
    try:
        while not sample.is_stopping:
            _, connection = await loop.create_connection(
                lambda: _Connection(wire, request.answer, sample),
                parts.hostname or "",
                parts.port or 80,
            )
            await connection.closed.wait()
    finally:
        if connection is not None and connection.transport is not None:
            connection.transport.abort()


async def _load(request: Request, connections: int, seconds: float, warm_up_s: float) -> LoadResult:
    sample = _Sample()
    clients = [asyncio.create_task(_client(request, sample)) for _ in range(connections)]
    try:
        started, ended = await _measure(clients, sample, seconds, warm_up_s)
        # Left to the server, they would be the next round's load.
        sample.is_stopping = True
        await asyncio.wait(clients, timeout=ANSWER_LIMIT_S)
    finally:
        sample.is_stopping = True
        for client in clients:
            client.cancel()
        await asyncio.gather(*clients, return_exceptions=True)
    return _summary(sample, started, ended)


async def _measure(
    clients: list[asyncio.Task[None]], sample: _Sample, seconds: float, warm_up_s: float
) -> tuple[float, float]:
    started = time.perf_counter() + warm_up_s
    # A client ends early only by an error, which is the run's, too.
    done, _ = await asyncio.wait(
        clients, timeout=warm_up_s + seconds, return_when=asyncio.FIRST_EXCEPTION
    )
    ended = time.perf_counter()
    for client in done:
        client.result()
    while not any(at >= started for at, _, _ in sample.answers[-1:]):
        if time.perf_counter() - started > ANSWER_LIMIT_S:
            raise TimeoutError(f"no answer within {ANSWER_LIMIT_S:g} s")
        await asyncio.sleep(0.01)
        ended = time.perf_counter()
    return started, ended


def _summary(sample: _Sample, started: float, ended: float) -> LoadResult:
    counted = [answer for answer in sample.answers if started <= answer[0] <= ended]
    latencies = sorted(latency for _, latency, _ in counted)
    right = sum(is_right for _, _, is_right in counted)
    dropped = sum(started <= at <= ended for at in sample.dropped)
    return LoadResult(
        requests_per_s=right / (ended - started),
        p50_ms=_percentile(latencies, 0.5) * 1000,
        p99_ms=_percentile(latencies, 0.99) * 1000,
        failed=len(counted) - right + dropped,
        total=len(sample.answers),
    )


def _percentile(ordered: list[float], share: float) -> float:
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
