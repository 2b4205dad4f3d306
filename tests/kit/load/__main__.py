"""HTTP load over keep-alive connections, in a process of its own.

`python -m tests.kit.load URL CONNECTIONS SECONDS CONTENT_TYPE BODY_FILE` prints one JSON line: a
closed loop, or with ``--rate`` an open one. The client is a bare protocol on uvloop, so that it is
not what is measured; ``client_cpu`` says which share of a core it took.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import uvloop

from tests.kit.load.connection import Connection, LoadFailed
from tests.kit.load.patterns import ClosedLoop, OpenLoop, Pattern
from tests.kit.load.schedule import percentiles

#: Longest wait for the answers that are still to come when the last request has been sent.
_LAST_ANSWERS_LIMIT_S = 120.0


async def put_load(
    make_pattern: Callable[[], Pattern],
    url: str,
    connections: int,
    limit_s: float,
    content_type: str,
    body: bytes,
) -> dict[str, Any]:
    """Run a pattern to its end, and return its summary.

    Raises:
        LoadFailed: The server cannot be reached, closes a connection, or takes longer than
            `limit_s` altogether.
    """
    loop = asyncio.get_running_loop()
    pattern = make_pattern()
    broken: asyncio.Future[None] = loop.create_future()
    request, (host, port) = _request(url, content_type, body)
    clients: list[Connection] = []
    try:
        for _ in range(connections):
            _, client = await loop.create_connection(
                lambda: Connection(request, pattern.record, pattern.on_answer, broken), host, port
            )
            clients.append(client)
        pattern.start(clients)
        waited_for = {pattern.finished, broken}
        await asyncio.wait(waited_for, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        if broken.done():
            broken.result()
        if not pattern.finished.done():
            raise LoadFailed(f"{url}: not all answers have come after {limit_s:g} s")
    except OSError as error:
        raise LoadFailed(f"{url} cannot be reached: {error}") from error
    finally:
        broken.cancel()
        for client in clients:
            client.close()
    return {
        **pattern.summary(),
        "answered": len(pattern.record.done),
        "failed": pattern.record.failed,
        "first_failure": pattern.record.first_failure,
        "client_cpu": pattern.client_cpu,
    }


def _request(url: str, content_type: str, body: bytes) -> tuple[bytes, tuple[str, int]]:
    parts = urlsplit(url)
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body, (parts.hostname or "127.0.0.1", parts.port or 80)


@click.command()
@click.argument("url")
@click.argument("connections", type=click.IntRange(min=1))
@click.argument("seconds", type=click.FloatRange(min=0, min_open=True))
@click.argument("content_type")
@click.argument("body_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rate", type=float, help="Requests per second of an open loop.")
@click.option("--seed", default=0, help="Of the open loop's random times.")
@click.option("--warm-up", "warm_up_s", default=0.5, help="Seconds of load that do not count.")
@click.option("--latencies", type=click.Path(path_type=Path), help="File for float64 seconds.")
def main(
    url: str,
    connections: int,
    seconds: float,
    content_type: str,
    body_file: Path,
    rate: float | None,
    seed: int,
    warm_up_s: float,
    latencies: Path | None,
) -> None:
    """Put load on URL, and print what came of it as JSON."""

    def make_pattern() -> Pattern:
        if rate is None:
            return ClosedLoop(warm_up_s, seconds)
        return OpenLoop(warm_up_s, seconds, rate, seed)

    limit_s = warm_up_s + seconds + _LAST_ANSWERS_LIMIT_S
    body = body_file.read_bytes()
    result = uvloop.run(put_load(make_pattern, url, connections, limit_s, content_type, body))
    measured = result.pop("latencies")
    if latencies:
        latencies.write_bytes(measured.tobytes())
    click.echo(json.dumps({**result, "requests": len(measured), **percentiles(measured)}))


if __name__ == "__main__":
    main()
