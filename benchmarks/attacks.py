"""What good clients of one model notice while another one is attacked: `make bench-attacks`.

Each attack costs its sender little: a few hundred bytes that unpack to millions, clients that do
not read, requests that kill. For each one, rounds without and with it alternate, and the 99th
percentile of the good clients' latency is compared. Because an attacked worker may keep a core
busy, so may an honest client's request: the first row sends those, and is what the others are to be
held against. Fails if a good request fails, or gets the answer to another.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import click
import uvloop

from benchmarks.client import Demand, Level, Request, measure
from benchmarks.processes import BenchmarkError, start, stopping
from benchmarks.result import describe_machine
from benchmarks.server import Server, serving
from benchmarks.table import number, render
from tests.kit.load.connection import Connection, connect
from tests.kit.load.requests import TOKEN
from tests.kit.load.schedule import percentiles
from tests.kit.load.wire import encode_request

#: Bytes per second that an attacker sends at most: a poor line.
_BANDWIDTH = 1 << 20
#: Connections that it has open at a time, the last ones; and how long it waits for anything.
_OPEN, _OPEN_UNREAD = 8, 20
_LIMIT_S = 5.0
#: What attackers wait at least before the next request; an event loop knows nothing shorter.
_LEAST_WAIT_S = 0.001
_GOOD = Level(connections=4)
_SERVICES = Path(__file__).parent / "services"
_request = partial(encode_request, "POST")


def _gif(width: int, height: int) -> bytes:
    return b"GIF89a" + struct.pack("<HH", width, height) + b"\x00\x00\x00;"


def _png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000))


def _tensor(data: object, shape: list[int]) -> dict[str, object]:
    return {"name": "data", "datatype": "FP32", "shape": shape, "data": data}


#: The requests of each attack, sent one after the other over and over. The first is honest.
ATTACKS: dict[str, Callable[[], list[bytes]]] = {
    "an honest busy client": lambda: [_request("/predictions/victim", b'["spin", 0.2]')],
    "gzip bombs": lambda: [
        _request(
            "/predictions/victim",
            gzip.compress(bytes(60 << 20)),
            more="Content-Encoding: gzip\r\n",
        )
    ],
    "pictures of 10^9 pixels": lambda: [
        _request("/predictions/pictures", _png(32_000, 32_000), "image/png"),
        _request("/predictions/pictures", _gif(65_000, 65_000), "image/gif"),
    ],
    "broken picture headers": lambda: [
        _request("/predictions/pictures", _png(64, 64)[:length], "image/png")
        for length in range(8, 50)
    ],
    "V2: one text among numbers": lambda: [
        _request(
            "/v2/models/victim/infer",
            json.dumps({"inputs": [_tensor([1] * 1000 + ["x" * 900_000], [1001])]}).encode(),
        )
    ],
    "V2: 20,000 inputs": lambda: [
        _request(
            "/v2/models/victim/infer",
            json.dumps(
                {"inputs": [{**_tensor([1], [1]), "name": str(n)} for n in range(20_000)]}
            ).encode(),
        )
    ],
    "literals of operators": lambda: [
        _request(
            "/victim/predict",
            b"data=" + b"1or%201or%20" * 60_000,
            "application/x-www-form-urlencoded",
        )
    ],
    "escapes in forms": lambda: [
        _request(
            "/victim/predict", b"data=" + b"%5B" * 300_000, "application/x-www-form-urlencoded"
        )
    ],
    "empty lists": lambda: [_request("/predictions/victim", b"[" + b"[]," * 300_000 + b"[]]")],
    "requests that kill": lambda: [_request("/predictions/victim", b'["die"]')],
    "malformed requests": lambda: [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"],
    "/metrics in a loop": lambda: [b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n"],
    "answers that nobody reads": lambda: [_request("/predictions/victim", b'["large"]')],
    "priority: high": lambda: [
        _request("/predictions/good", b'{"data": [1]}', more="X-Request-Priority: high\r\n")
    ],
}
_NEVER_READ = ("answers that nobody reads",)


class _Shot:
    """One request on a connection of its own."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self.over = asyncio.Event()

    async def send(self, host: str, port: int, request: bytes, is_reading: bool) -> None:
        self._connection = await connect(host, port, self._end, self._end)
        if not is_reading:
            self._connection.stop_reading()
        self._connection.send(request)

    def _end(self, _: bytes | str) -> None:
        self.over.set()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


async def attack(url: str, name: str, count: int = 1_000_000) -> None:
    """Send an attack's requests over and over, each on a connection of its own."""
    host, port = urlsplit(url).hostname or "", urlsplit(url).port or 0
    is_reading = name not in _NEVER_READ
    shots: deque[_Shot] = deque()
    owed_s = 0.0
    try:
        for request in itertools.islice(itertools.cycle(ATTACKS[name]()), count):
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                shot = _Shot()
                await asyncio.wait_for(shot.send(host, port, request, is_reading), _LIMIT_S)
                shots.append(shot)
                if is_reading and len(shots) >= _OPEN:
                    await asyncio.wait_for(shots[0].over.wait(), _LIMIT_S)
            while len(shots) > (_OPEN if is_reading else _OPEN_UNREAD):
                shots.popleft().close()
            owed_s += len(request) / _BANDWIDTH
            if owed_s >= _LEAST_WAIT_S:
                await asyncio.sleep(owed_s)
                owed_s = 0.0
    finally:
        for shot in shots:
            shot.close()


@contextlib.contextmanager
def attacking(url: str, name: str) -> Iterator[None]:
    with stopping(start("benchmarks.attacks", "--attack", name, "--url", url)):
        time.sleep(0.5)
        yield


def _archives(folder: Path) -> list[str]:
    models = []
    kinds = {"good": "application/json", "victim": "application/json", "pictures": "image/jpeg"}
    for name, kind in kinds.items():
        model = folder / name
        model.mkdir()
        service = _SERVICES / ("echo.py" if name == "good" else "attacked.py")
        (model / "service.py").write_text(service.read_text())
        tensor = [
            {"data_name": "data", "data_shape": [1, 3, 64, 64] if name == "pictures" else [0]}
        ]
        document = {
            "inputs": tensor, "input_type": kind, "outputs": tensor,
            "output_type": "application/json",
        }  # fmt: skip
        (model / "signature.json").write_text(json.dumps(document))
        subprocess.run(
            [sys.executable, "-m", "mms.cli.export", "--model-name", name, "--model-path",
             str(model), "--export-path", str(folder)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        models.append(f"{name}={folder / name}.model")
    return models


def _p99_ms(server: Server, request: Request, seconds: float) -> float:
    # Without the processes' clocks: attacked workers may not live as long.
    sample = measure(server.url_of("good"), request, Demand(_GOOD, 0.2, seconds), {})
    return percentiles(sample.latencies)["p99_ms"]


def _row(server: Server, request: Request, name: str, rounds: int, seconds: float) -> list[str]:
    quiet, attacked = [], []
    for _ in range(rounds):
        quiet.append(_p99_ms(server, request, seconds))
        with attacking(server.url, name):
            attacked.append(_p99_ms(server, request, seconds))
    ratios = [a / q for a, q in zip(attacked, quiet, strict=True)]
    middle = statistics.median
    return [
        name, number(middle(quiet), 2), number(middle(attacked), 2), number(middle(ratios), 2),
        f"{min(ratios):.2f}-{max(ratios):.2f}",
    ]  # fmt: skip


@click.command(help=__doc__)
@click.option("--rounds", default=5, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Of each measurement.")
@click.option("--attack", "name", hidden=True)
@click.option("--url", hidden=True)
def main(rounds: int, seconds: float, name: str | None, url: str | None) -> None:
    """Measure every attack, or be one."""
    if name and url:
        uvloop.run(attack(url, name))
        return
    with tempfile.TemporaryDirectory(prefix="mms-attacks-") as temporary:
        folder = Path(temporary)
        request = Request("application/json", b'{"data": ["%b"]}' % TOKEN)
        models = _archives(folder)
        with serving("--models", *models, "--workers", "1", "--log-level", "CRITICAL") as server:
            rows = [_row(server, request, attack, rounds, seconds) for attack in ATTACKS]
    for key, value in describe_machine().items():
        click.echo(f"{key}: {value}")
    header = ["good clients beside", "p99 ms", "attacked", "ratio", "of the rounds"]
    click.echo(render(header, rows))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    try:
        main()
    except BenchmarkError as error:
        raise SystemExit(str(error)) from None
