"""Memory of 1, 2 and 8 workers of a model with 400 MB of parameters."""

from __future__ import annotations

import json
from pathlib import Path

import click

from tests.chaos.arena import proportional_bytes
from tests.chaos.load import call
from tests.chaos.server import ServerProcess, build_archive

_SIZES = (1, 2, 8)
_MB = 1 << 20


async def measure_memory(folder: Path) -> None:
    """Print the proportional set sizes of a server's processes, workers and loader together."""
    archive = build_archive(folder / "big.model", "big")
    server = ServerProcess(folder, ["--models", f"big={archive}", "--workers", "1"])
    click.echo("workers  all processes MB  per further worker MB")
    try:
        await server.start()
        first = 0
        for size in _SIZES:
            await server.manage("PUT", "/models/big", min_worker=size, synchronous=True)
            await server.recover()
            await _ask_all(server, size)
            used = proportional_bytes([child.pid for child in server.children()]) // _MB
            first = first or used
            further = f"{(used - first) / (size - 1):.1f}" if size > 1 else "-"
            click.echo(f"{size:7}  {used:16}  {further:>21}")
        assert await server.stop() == 0, "the server did not exit with 0"
    finally:
        server.clean_up()


async def _ask_all(server: ServerProcess, size: int) -> None:
    """Have every worker run the network: memory that is only promised is not counted."""
    for _ in range(200):
        workers = (await server.describe("big"))["workers"]
        if len(workers) == size and all(worker["requests"] for worker in workers):
            return
        body = json.dumps([1.0]).encode()
        reply = await call(server.port, "POST", "/predictions/big", body)
        assert reply.status == 200, f"{reply.status} {reply.body[:300]!r}"
    raise AssertionError("not every worker got a request")
