"""`make bench`: what serving costs over the bare handler and the bare model, in one run.

Each figure is a ratio against a reference measured in the same run, in turn with it, so that a
machine whose speed drifts distorts both alike. Absolute figures are printed too, and mean little
on their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from mms.archive.export import export_model
from mms.archive.reader import open_archive
from mms.config import usable_cores
from mms.version import __version__

ROOT = Path(__file__).parent.parent
NOOP_SERVICE = """
from mms.model_service.model_service import SingleNodeService


class Noop(SingleNodeService):
    def _postprocess(self, data):
        return {"ok": True}
"""
NOOP_SIGNATURE = {
    "inputs": [{"data_name": "data", "data_shape": [0]}],
    "input_type": "application/json",
    "outputs": [{"data_name": "ok", "data_shape": [0]}],
    "output_type": "application/json",
}
NOOP_BODY = b'{"x":[1,2,3,4]}'
BATCH_SIZE = 8
START_LIMIT_S = 120.0


class Server:
    """The server under test, as a user starts it."""

    def __init__(self, *args: str) -> None:
        self.port = _free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.started = time.perf_counter()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mms.cli.serve"),
                *("--port", str(self.port), "--management-port", "-1"),
                *args,
            ],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )

    def wait_ready(self) -> float:
        """Give the seconds from the start of the command to readiness."""
        while time.perf_counter() - self.started < START_LIMIT_S:
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{self.url}/ping", timeout=5)
                return time.perf_counter() - self.started
            time.sleep(0.005)
        raise SystemExit("the server did not become ready")

    def post(self, path: str, body: bytes) -> bytes:
        request = urllib.request.Request(
            self.url + path, body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            return bytes(response.read())

    def workers(self) -> set[int]:
        """Give the workers' pids, without the loader that they are forked from."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=5) as response:
            text = response.read().decode()
        lines = [line for line in text.splitlines() if line.startswith("mms_worker_memory_bytes{")]
        return {int(line.split('pid="')[1].split('"')[0]) for line in lines}

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)


@contextlib.contextmanager
def serving(*args: str) -> Iterator[Server]:
    server = Server(*args)
    try:
        server.wait_ready()
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def bare_handler() -> Iterator[str]:
    port = _free_port()
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.bare_http", str(port)], cwd=ROOT)
    try:
        for _ in range(500):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/predictions/noop"
    finally:
        process.terminate()
        process.wait()


def load(url: str, connections: int, seconds: float, body: Path) -> dict[str, float]:
    """Run the load generator once."""
    command = [sys.executable, "-m", "benchmarks.load", url, str(connections), str(seconds)]
    output = subprocess.run(
        [*command, "application/json", str(body)], cwd=ROOT, check=True, stdout=subprocess.PIPE
    ).stdout
    result: dict[str, float] = json.loads(output)
    if result["failed"]:
        raise SystemExit(f"{result['failed']:g} requests to {url} failed")
    return result


def bare_model(folder: Path, batch_size: int, processes: int, seconds: float) -> float:
    """Give the summed rate of so many bare processes, one thread each, at the same time."""
    command = [sys.executable, "-m", "benchmarks.bare_model", str(folder), str(batch_size)]
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    running = [
        subprocess.Popen(
            [*command, str(seconds)], cwd=ROOT, env=environment, stdout=subprocess.PIPE
        )
        for _ in range(processes)
    ]
    outputs = [process.communicate()[0] for process in running]
    return sum(json.loads(output)["requests_per_s"] for output in outputs)


def compare_noop(folder: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    archive = folder / "noop.model"
    source = folder / "noop"
    source.mkdir()
    (source / "service.py").write_text(NOOP_SERVICE)
    (source / "signature.json").write_text(json.dumps(NOOP_SIGNATURE))
    export_model("noop", source, None, folder)
    body = folder / "noop.json"
    body.write_bytes(NOOP_BODY)
    rows = []
    with bare_handler() as reference, serving("--models", f"noop={archive}") as server:
        url = f"{server.url}/predictions/noop"
        for connections in (1, 16, 64):
            pairs = [
                (load(url, connections, seconds, body), load(reference, connections, seconds, body))
                for _ in range(rounds)
            ]
            rows.append(_row(f"noop, {connections} connections", "bare handler", pairs))
    return rows


def compare_model(archive: Path, folder: Path, rounds: int, seconds: float) -> list[dict[str, Any]]:
    unpacked = open_archive(archive, folder).folder
    body = unpacked / "sample.json"
    cores = usable_cores()
    rows = []
    with serving("--models", f"crepe={archive}", "--batch-size", str(BATCH_SIZE)) as server:
        url = f"{server.url}/predictions/crepe"
        for connections, batch_size, processes in (
            (1, 1, 1),
            (16, BATCH_SIZE, cores),
            (64, BATCH_SIZE, cores),
        ):
            pairs = []
            for _ in range(rounds):
                ours = load(url, connections, seconds, body)
                bare = bare_model(unpacked, batch_size, processes, seconds)
                pairs.append((ours, {"requests_per_s": bare}))
            name = f"crepe, {connections} connections, batch_size {BATCH_SIZE}"
            rows.append(_row(name, f"{processes} bare processes, batch {batch_size}", pairs))
    return rows


def measure_life(archive: Path) -> dict[str, float]:
    """Give memory, start-up and replacement figures of the example model."""
    server = Server("--models", f"crepe={archive}", "--workers", "2")
    try:
        ready_s = server.wait_ready()
        sample = b'[{"review_title":"a","review":"b"}]'
        server.post("/predictions/crepe", sample)
        first_s = time.perf_counter() - server.started
        memory = psutil.Process(server.process.pid).memory_info().rss
        for _ in range(20):
            server.post("/predictions/crepe", sample)
        private = [_private_bytes(worker) for worker in server.workers()]
        replaced = [_replacement_s(server) for _ in range(5)]
    finally:
        server.stop()
    return {
        "server_rss_mb": memory / 1e6,
        "worker_private_mb": max(private) / 1e6,
        "start_to_ready_s": ready_s,
        "start_to_first_prediction_s": first_s,
        "worker_replaced_ms": statistics.median(replaced) * 1000,
    }


def _replacement_s(server: Server) -> float:
    """Kill a worker and give the seconds until another one serves in its place."""
    before = server.workers()
    started = time.perf_counter()
    os.kill(min(before), signal.SIGKILL)
    while True:
        now = server.workers()
        if len(now) == len(before) and now != before:
            return time.perf_counter() - started


def _private_bytes(pid: int) -> int:
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    rows = [line.split() for line in text.splitlines() if line.startswith("Private_")]
    return sum(int(row[1]) * 1024 for row in rows)


def _row(name: str, reference: str, pairs: list[tuple[dict[str, float], Any]]) -> dict[str, Any]:
    ratios = [ours["requests_per_s"] / bare["requests_per_s"] for ours, bare in pairs]
    best = {key: statistics.median(ours[key] for ours, _ in pairs) for key in pairs[0][0]}
    return {
        "workload": name,
        "reference": reference,
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "reference_requests_per_s": statistics.median(b["requests_per_s"] for _, b in pairs),
        **best,
    }


def _machine() -> dict[str, Any]:
    model = "unknown"
    with contextlib.suppress(OSError, IndexError):
        text = Path("/proc/cpuinfo").read_text()
        model = text.split("model name", 1)[1].split(":", 1)[1].split("\n", 1)[0].strip()
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=False
    ).stdout
    return {
        "cpu": model,
        "cores": usable_cores(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "mxnet-model-server": __version__,
        "aiohttp": _version("aiohttp"),
        "uvloop": _version("uvloop"),
        "mxnet": _version("mxnet"),
        "numpy": _version("numpy"),
        "commit": commit.decode().strip(),
    }


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _print(result: dict[str, Any]) -> None:
    print(", ".join(f"{key} {value}" for key, value in result["machine"].items()), end="\n\n")
    header = f"{'workload':42}{'req/s':>9}{'bare':>9}{'ratio':>7}{'p50 ms':>9}{'p99 ms':>9}"
    print(f"{header}  reference")
    for row in result["workloads"]:
        print(
            f"{row['workload']:42}{row['requests_per_s']:9.0f}"
            f"{row['reference_requests_per_s']:9.0f}{row['ratio']:7.2f}"
            f"{row['p50_ms']:9.2f}{row['p99_ms']:9.2f}  {row['reference']}"
        )
    print()
    for key, value in result["life"].items():
        print(f"{key:32}{value:9.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive", type=Path, help="the example's character_cnn.model")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--output", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = compare_noop(folder, args.rounds, args.seconds)
        rows += compare_model(args.archive, folder, args.rounds, args.seconds)
    result = {
        "machine": _machine(),
        "workloads": rows,
        "life": measure_life(args.archive),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    _print(result)
    print(f"\nwritten to {args.output}")


if __name__ == "__main__":
    main()
