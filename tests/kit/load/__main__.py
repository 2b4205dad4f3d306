"""A measured load, in a process of its own.

`python -m tests.kit.load URL CONNECTIONS SECONDS CONTENT_TYPE BODY_FILE` prints one JSON line: a
closed loop, or with ``--rate`` an open one. The client is a bare protocol on uvloop, so that it is
not what is measured; ``client_cpu`` says which share of a core it took.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import uvloop

from tests.kit.load.measured import Load, put_load
from tests.kit.load.requests import TOKEN
from tests.kit.load.schedule import percentiles

_HELP = f"""Put load on URL, and print what came of it as JSON.

Where the body has "{TOKEN.decode()}", each request has a token of its own instead, and is answered
right if the same token comes back.
"""


@click.command(help=_HELP)
@click.argument("url")
@click.argument("connections", type=click.IntRange(min=1))
@click.argument("seconds", type=click.FloatRange(min=0, min_open=True))
@click.argument("content_type")
@click.argument("body_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rate", type=float, help="Requests per second of an open loop.")
@click.option("--seed", default=0, help="Of the open loop's random times.")
@click.option("--burst", default=1, help="Requests of an open loop that come at once.")
@click.option("--warm-up", "warm_up_s", default=0.5, help="Seconds of load that do not count.")
@click.option("--answer", default="", help="Part of every right answer.")
@click.option("--reconnects", is_flag=True, help="Go on when the server closes a connection.")
@click.option("--latencies", type=click.Path(path_type=Path), help="File for float64 seconds.")
def main(body_file: Path, answer: str, latencies: Path | None, **options: Any) -> None:
    """Put load on URL."""
    load = Load(body=body_file.read_bytes(), answer=answer.encode(), **options)
    result = uvloop.run(put_load(load))
    measured = result.pop("latencies")
    if latencies:
        latencies.write_bytes(measured.tobytes())
    click.echo(json.dumps({**result, "requests": len(measured), **percentiles(measured)}))


if __name__ == "__main__":
    main()
