"""--metrics-write-to: what a server has written when it has stopped."""

from __future__ import annotations

import csv
import socket
from pathlib import Path

import pytest

from mms.errors import AddressInUse
from tests.kit.archives import make_archive
from tests.kit.server import StartServer


def written(folder: Path, name: str) -> dict[str, float]:
    """Return the sums of a metric's values by model."""
    path = folder / f"mms_{name}.csv"
    sums: dict[str, float] = {}
    if path.exists():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                sums[row["model"]] = sums.get(row["model"], 0.0) + float(row["value"])
    return sums


async def test_every_request_is_in_the_files_when_the_server_has_stopped(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    csv_ = {"metrics_write_to": "csv", "metrics_dir": str(folder), "metrics_interval": 3600.0}
    server = await start_server(csv_, echo=make_archive(tmp_path, "echo"))
    for value in (1, 2, 3):
        assert (await server.ask("echo", [value]))[0] == 200
    assert (await server.ask("echo", "no list"))[0] == 400
    assert (await server.ask("nobody", [1]))[0] == 404
    assert (await server.get("/ping"))[0] == 200
    assert (await server.get("/api-description"))[0] == 200
    duration = await server.metric("mms_request_duration_seconds_sum")
    inference = await server.metric("mms_stage_duration_seconds_sum", stage="inference")
    assert not written(folder, "PredictionTotal")
    await server.stop()
    assert written(folder, "PredictionTotal") == {"echo": 4}
    assert written(folder, "Prediction4XX") == {"echo": 1}
    assert written(folder, "Prediction5XX") == {}
    assert written(folder, "PingTotal") == {"": 1}
    assert written(folder, "APIDescriptionTotal") == {"": 1}
    assert abs(written(folder, "LatencyOverall")["echo"] - 1000 * duration / 4) < 1e-3
    (mean,) = written(folder, "LatencyInference").values()
    assert 0 < mean <= 1000 * inference
    assert set(written(folder, "MemoryUsed")) == {""}


async def test_what_a_service_updates_is_shown_and_written(
    start_server: StartServer, tmp_path: Path
) -> None:
    # In 0.4 the server and the service share these metrics.
    folder = tmp_path / "metrics"
    csv_ = {"metrics_write_to": "csv", "metrics_dir": str(folder), "metrics_interval": 3600.0}
    archive = make_archive(tmp_path, "metering", name="in_archive")
    server = await start_server(csv_, metering=archive)
    for words in (["a"], ["b", "c"]):
        assert (await server.ask("metering", words))[0] == 200
    assert await server.metric("mms_service_words_total", model="metering") == 3
    assert await server.metric("mms_service_prediction5_xx_total", model="metering") == 2
    assert await server.metric("mms_service_latency_preprocess_seconds_sum") == 0.04
    assert await server.metric("mms_service_latency_preprocess_seconds_count") == 2
    await server.stop()
    assert written(folder, "Words") == {"metering": 3}
    assert written(folder, "Prediction5XX") == {"metering": 2}
    assert written(folder, "PredictionTotal") == {"metering": 2}
    assert written(folder, "LatencyPreprocess") == {"metering": 20}


async def test_nothing_is_written_unless_asked_for(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    server = await start_server({"metrics_dir": str(folder), "metrics_interval": 0.01})
    assert (await server.get("/ping"))[0] == 200
    await server.stop()
    assert not folder.exists()


async def test_a_server_that_cannot_start_writes_nothing(
    start_server: StartServer, tmp_path: Path
) -> None:
    folder = tmp_path / "metrics"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        csv_ = {"metrics_write_to": "csv", "metrics_dir": str(folder)}
        with pytest.raises(AddressInUse):
            await start_server({**csv_, "port": taken.getsockname()[1]})
    assert not list(folder.iterdir())
