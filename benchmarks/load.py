"""Closed-loop HTTP load over keep-alive connections, in a process of its own.

`python -m benchmarks.load URL CONNECTIONS SECONDS CONTENT_TYPE BODY_FILE` prints one JSON line.
Each connection sends its next request when the last one is answered. The client is a bare
protocol on uvloop, about 8 µs per request, so that it is not what is measured.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvloop

#: Load that is not counted: connections are made and caches are warm after it.
WARM_UP_S = 0.5


@dataclass(frozen=True)
class LoadResult:
    """What one run came to; latencies in milliseconds."""

    requests_per_s: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    failed: int


class _Connection(asyncio.Protocol):
    def __init__(self, request: bytes, samples: list[tuple[float, float]]) -> None:
        self._request = request
        self._samples = samples
        self._buffer = b""
        self._sent_at = 0.0
        self.failed = 0
        self.is_stopping = False
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self._buffer) < end + 4 + length:
            return
        if not head.startswith(b"http/1.1 200"):
            self.failed += 1
        self._buffer = b""
        now = time.perf_counter()
        self._samples.append((now, now - self._sent_at))
        if not self.is_stopping:
            self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        if self.transport is not None:
            self.transport.write(self._request)


async def _run(url: str, connections: int, seconds: float, type_: str, body: bytes) -> LoadResult:
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: {type_}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    loop = asyncio.get_running_loop()
    samples: list[tuple[float, float]] = []
    clients = []
    for _ in range(connections):
        _, client = await loop.create_connection(
            lambda: _Connection(head.encode() + body, samples), parts.hostname, parts.port
        )
        clients.append(client)
    started = time.perf_counter() + WARM_UP_S
    await asyncio.sleep(WARM_UP_S + seconds)
    ended = time.perf_counter()
    for client in clients:
        client.is_stopping = True
    counted = sorted(latency for at, latency in samples if started <= at <= ended)
    for client in clients:
        if client.transport:
            client.transport.abort()

    def percentile(share: float) -> float:
        if not counted:
            return float("nan")
        return counted[min(int(len(counted) * share), len(counted) - 1)] * 1000

    return LoadResult(
        requests_per_s=len(counted) / (ended - started),
        p50_ms=percentile(0.5),
        p95_ms=percentile(0.95),
        p99_ms=percentile(0.99),
        failed=sum(client.failed for client in clients),
    )


if __name__ == "__main__":
    _, url_, connections_, seconds_, content_type_, body_file_ = sys.argv
    result = uvloop.run(
        _run(url_, int(connections_), float(seconds_), content_type_, Path(body_file_).read_bytes())
    )
    print(json.dumps(asdict(result)))
