"""The server under test, as a user starts it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import signal
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from benchmarks.client import Demand, Request, Sample, clock_of, measure
from benchmarks.processes import BenchmarkError, start, stopping
from mms.telemetry.prometheus import METRICS_AGE_S

_START_LIMIT_S = 120.0
_REPLACE_LIMIT_S = 60.0
_POLL_S = 0.002
_METRICS_AGE_S = 1.1 * METRICS_AGE_S
_LISTENING = re.compile(r"listening on (http://\S+)\n.*Management on (http://\S+)/models\n", re.S)


class Server:
    """A running server with one model or several.

    Attributes:
        pid: Of the server process.
        url: Where it listens.
        management_url: Where its management API listens.
        ready_s: From the start of the command until it said that it is ready.
    """

    def __init__(self, pid: int, url: str, management_url: str, started_at: float) -> None:
        self.pid = pid
        self.url = url
        self.management_url = management_url
        self._started_at = started_at
        self.ready_s = self.age_s

    @property
    def age_s(self) -> float:
        """Seconds since the start of the command."""
        return time.monotonic() - self._started_at

    def measure(self, model: str, request: Request, demand: Demand) -> Sample:
        """Ask a model for a while, and return what came of it."""
        before, read_at = self._batches(), time.monotonic()
        clocks = {"server": clock_of([self.pid]), "workers": clock_of(self.children())}
        sample = measure(self.url_of(model), request, demand, clocks)
        # Until then, /metrics answers what it has answered.
        time.sleep(max(read_at + _METRICS_AGE_S - time.monotonic(), 0))
        requests, batches = (now - then for now, then in zip(self._batches(), before, strict=True))
        return dataclasses.replace(sample, batch_size=requests / batches)

    def url_of(self, model: str) -> str:
        """Return where a model answers."""
        return f"{self.url}/predictions/{model}"

    def ask(self, model: str, request: Request) -> None:
        """Send one request, and wait for its answer."""
        asked = urllib.request.Request(
            self.url_of(model),
            request.body,
            {"Content-Type": request.content_type},
        )
        with urllib.request.urlopen(asked, timeout=_START_LIMIT_S) as answer:
            answer.read()

    def children(self) -> list[int]:
        """Return the pids of all processes of its models: loaders and workers."""
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)]

    def workers(self) -> set[int]:
        """Return the pids of the workers that serve now."""
        names = [model["modelName"] for model in self._managed("/models")["models"]]
        models = [self._managed(f"/models/{name}") for name in names]
        return {worker["pid"] for model in models for worker in model["workers"]}

    def replacement_s(self) -> float:
        """Kill a worker as a crash would; return the seconds until another serves in its place."""
        before = self.workers()
        victim = min(before)
        started = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        while time.monotonic() - started < _REPLACE_LIMIT_S:
            now = self.workers()
            if len(now) == len(before) and victim not in now:
                return time.monotonic() - started
        raise BenchmarkError(f"worker {victim} was not replaced within {_REPLACE_LIMIT_S:g} s")

    def _batches(self) -> tuple[float, float]:
        """Return the number of requests sent to workers so far, and of the batches they went in."""
        text = self._metrics()
        requests, batches = (
            sum(map(float, re.findall(rf"^mms_batch_size_{name}\{{.*\}} (\S+)$", text, re.M)))
            for name in ("sum", "count")
        )
        return requests, batches

    def _managed(self, path: str) -> Any:
        with urllib.request.urlopen(self.management_url + path, timeout=_START_LIMIT_S) as answer:
            return json.load(answer)

    def _metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=_START_LIMIT_S) as answer:
            return str(answer.read(), "utf-8")


@contextlib.contextmanager
def serving(*args: str) -> Iterator[Server]:
    """Start the server with these arguments, on a free port; it is ready.

    Raises:
        BenchmarkError: It does not start, with what it has printed.
    """
    with tempfile.TemporaryDirectory(prefix="mms-bench-") as name:
        log = Path(name) / "log"
        with log.open("wb") as file:
            started = time.monotonic()
            process = start(
                "mms.cli.serve",
                *("--port", "0", "--management-port", "0", "--work-dir", name, *args),
                stdout=file,
                stderr=file,
            )
        with stopping(process):
            while not (found := _LISTENING.search(log.read_text())):
                if process.poll() is not None or time.monotonic() - started > _START_LIMIT_S:
                    raise BenchmarkError(f"the server does not start:\n{log.read_text()}")
                time.sleep(_POLL_S)
            yield Server(process.pid, found[1], found[2], started)
