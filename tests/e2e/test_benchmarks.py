"""The benchmarks, run as `make bench` runs them, but short; and what their client measures."""

from __future__ import annotations

import http.server
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.client import Demand, Level, Request, measure
from benchmarks.processes import BenchmarkError
from benchmarks.workloads import CLOSED, OPEN

LIMIT_S = 110.0
#: The workload whose model is there fastest: it needs no MXNet.
QUICK = ("--workload", "large", "--quick", "--seconds", "0.1")


def run(module: str, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *args],
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the file with a result, and the report."""
    path = tmp_path_factory.mktemp("bench") / "new" / "bench.json"
    done = run("benchmarks.bench", *QUICK, "--output", str(path))
    assert done.returncode == 0, done.stderr
    return path, done.stdout


def test_every_level_has_its_figures_and_those_of_its_reference(result: tuple[Path, str]) -> None:
    document = json.loads(result[0].read_text())
    assert [row["load"] for row in document["rows"]] == [str(level) for level in CLOSED + OPEN]
    for row in document["rows"]:
        for side in (row["server"], *row["references"]):
            assert side["requests"] > 0
            assert 0 < side["p50_ms"] <= side["p95_ms"] <= side["p99_ms"] <= side["p99_9_ms"]
            assert all(used > 0 for rounds in side["cpu_us"].values() for used in rounds)
        assert set(row["server"]["cpu_us"]) == {"server", "workers"}
        assert row["server"]["mean_batch"][0] >= 1
        (reference,) = row["references"]
        assert reference["name"] == "bare socket"
        rates = row["server"]["requests_per_s"][0], reference["requests_per_s"][0]
        medians = reference["medians_ms"][0], row["server"]["medians_ms"][0]
        is_closed = row["share"] is None
        expected = rates[0] / rates[1] if is_closed else medians[0] / medians[1]
        assert reference["ratios"] == [pytest.approx(expected)]


def test_start_memory_and_replacement_are_measured(result: tuple[Path, str]) -> None:
    life = json.loads(result[0].read_text())["lives"]["large"]
    assert 0 < life["ready_s"][0] < life["first_answer_s"][0]
    assert life["replaced_ms"][0] > 0
    for processes in life["memory"].values():
        for memory in processes:
            assert 0 < memory["private_mb"] <= memory["proportional_mb"] <= memory["resident_mb"]
    assert life["references"]["bare socket"]["start_s"] > 0


def test_the_report_names_machine_versions_and_every_level(result: tuple[Path, str]) -> None:
    machine = json.loads(result[0].read_text())["machine"]
    for key in ("cpu", "commit", "mxnet", "python"):
        assert machine[key] in result[1]
    for level in CLOSED + OPEN:
        assert re.search(rf"^large +{re.escape(str(level))} .* bare socket ", result[1], re.M)


def test_compared_with_itself_a_result_does_not_change(result: tuple[Path, str]) -> None:
    done = run("benchmarks.compare", str(result[0]), str(result[0]))
    assert done.returncode == 0, done.stderr
    changes = re.findall(r"^large.* (\S+) %", done.stdout, re.M)
    assert len(changes) > len(CLOSED + OPEN)
    assert set(changes) == {"0.0"}


def test_compare_marks_what_exceeds_the_noise_between_rounds(
    result: tuple[Path, str], tmp_path: Path
) -> None:
    document = json.loads(result[0].read_text())
    paths = []
    for name, ratios in (("a", [0.8, 0.9, 0.85]), ("b", [0.5, 0.6, 0.55])):
        document["rows"][0]["references"][0]["ratios"] = ratios
        paths.append(tmp_path / name)
        paths[-1].write_text(json.dumps(document))
    done = run("benchmarks.compare", *map(str, paths))
    line = next(line for line in done.stdout.splitlines() if "1 connection: ratio" in line)
    assert re.search(r"0\.85 \(0\.80–0\.90\) +0\.55 \(0\.50–0\.60\) +-35\.3 % +worse$", line)


def test_an_interrupted_run_leaves_no_process_and_no_file(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.bench", *QUICK, "--output", str(output)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        # Tests that a shell has put into the background inherit that it is ignored.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if "16 connections" in line:
                break
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
        assert process.wait(LIMIT_S) == 130, rest
    assert f"interrupted; {output} is as it was" in rest
    # A reference, the server, its loader and its workers.
    assert len(children) >= 4
    _, alive = psutil.wait_procs(children, timeout=LIMIT_S)
    assert not alive
    assert not list(tmp_path.iterdir())


def test_a_model_that_is_not_built_is_named_with_how_to_build_it(tmp_path: Path) -> None:
    missing = tmp_path / "none.model"
    done = run("benchmarks.bench", "--workload", "crepe", "--quick", "--crepe", str(missing))
    assert done.returncode == 1
    assert f"{missing} is missing; build it with: make" in done.stderr


class Answering(http.server.BaseHTTPRequestHandler):
    """Answers one request after the other."""

    protocol_version = "HTTP/1.1"
    status = 200
    takes_s = 0.0

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(self.takes_s)
        self.send_response(self.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: Any) -> None:
        pass


class Slow(Answering):
    takes_s = 0.02


class Refusing(Answering):
    status = 500


@pytest.fixture
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Serve with the handler that a test names."""
    with http.server.HTTPServer(("127.0.0.1", 0), request.param) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def load(url: str, folder: Path, *args: str) -> dict[str, Any]:
    body = folder / "body"
    body.write_bytes(b"{}")
    options = ("application/json", str(body), "--warm-up", "0", *args)
    done = run("tests.kit.load", url, "1", "0.5", *options)
    assert done.returncode == 0, done.stderr
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


@pytest.mark.parametrize("url", [Slow], indirect=True)
def test_an_open_loop_charges_a_slow_server_for_those_who_wait(url: str, tmp_path: Path) -> None:
    """The last of 50 requests of 20 ms each comes within half a second."""
    summary = load(url, tmp_path, "--rate", "100")
    assert summary["answered"] == summary["requests"]
    assert summary["p99_ms"] >= summary["answered"] * 20 - 500 > 100


@pytest.mark.parametrize("url", [Slow], indirect=True)
def test_a_closed_loop_asks_again_only_when_it_is_answered(url: str, tmp_path: Path) -> None:
    summary = load(url, tmp_path)
    assert summary["requests_per_s"] <= 1000 / 20
    assert summary["p50_ms"] >= 20
    assert summary["failed"] == 0


@pytest.mark.parametrize("url", [Refusing], indirect=True)
def test_refusals_are_counted_and_the_first_one_is_shown(url: str, tmp_path: Path) -> None:
    summary = load(url, tmp_path)
    assert summary["failed"] == summary["answered"] > 0
    assert summary["first_failure"].startswith("HTTP/1.1 500 ")


@pytest.mark.parametrize(("url", "answer"), [(Refusing, ""), (Answering, "[")], indirect=["url"])
def test_wrong_answers_end_a_run_or_are_counted_but_are_never_a_rate(url: str, answer: str) -> None:
    request = Request("application/json", b"{}", answer)
    demand = Demand(Level(1), warm_up_s=0, seconds=0.2)
    with pytest.raises(BenchmarkError, match=r"failed; the first answer: HTTP/1\.1"):
        measure(url, request, demand, {})
    sample = measure(url, request, demand, {}, tolerates=True)
    assert sample.failed == sample.answered > 0
    assert sample.requests_per_s == 0
