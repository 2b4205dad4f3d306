"""Metrics under v0.4's names: what an interval has added, and where it is written."""

from __future__ import annotations

import csv
import datetime
import logging
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from mms.config.build import build_config
from mms.config.settings import ServerSettings
from mms.errors import ConfigError
from mms.telemetry.counters import ServableMetrics, ServerMetrics
from mms.telemetry.destinations import CloudWatchDestination, CsvDestination, LogDestination
from mms.telemetry.machine import Machine
from mms.telemetry.readings import Counts, Reading, Samples
from mms.telemetry.writer import MetricsWriter, make_writer
from mms.wire.messages import Stage
from tests.kit.waiting import until

MOMENT = datetime.datetime(2026, 1, 31, 12, 30, 5, tzinfo=datetime.timezone.utc)
TOTAL = Reading("PredictionTotal", "Count", 7, "crepe")


def values(readings: Sequence[Reading]) -> dict[tuple[str, str], float]:
    return {(reading.model, reading.name): reading.value for reading in readings}


class TestCounts:
    def test_an_interval_has_what_was_added_since_the_last_one(self) -> None:
        crepe, server = ServableMetrics("crepe", "1"), ServerMetrics()
        crepe.requests["predictions", 200] += 100
        counts = Counts(lambda: [crepe], server)
        assert values(counts.take()) == {("crepe", "PredictionTotal"): 100}
        assert counts.take() == []
        crepe.requests["predictions", 200] += 3
        crepe.requests["legacy_predict", 400] += 2
        crepe.requests["predictions", 499] += 1
        crepe.requests["predictions", 503] += 4
        for seconds in (0.1, 0.2, 0.6):
            crepe.duration.observe(seconds)
        crepe.stages[Stage.PREPROCESS].observe(0.001)
        crepe.stages[Stage.INFERENCE].observe(0.020)
        crepe.stages[Stage.INFERENCE].observe(0.040)
        crepe.stages[Stage.POSTPROCESS].observe(0.002)
        readings = counts.take()
        assert values(readings) == pytest.approx(
            {
                ("crepe", "PredictionTotal"): 10,
                ("crepe", "Prediction4XX"): 3,
                ("crepe", "Prediction5XX"): 4,
                ("crepe", "LatencyOverall"): 300,
                ("crepe", "LatencyPreprocess"): 1,
                ("crepe", "LatencyInference"): 30,
                ("crepe", "LatencyPostprocess"): 2,
            }
        )
        units = {reading.unit for reading in readings if reading.name.startswith("Latency")}
        assert units == {"Milliseconds"}
        crepe.duration.observe(5.0)
        assert values(counts.take()) == pytest.approx({("crepe", "LatencyOverall"): 5000})

    def test_the_versions_of_a_model_are_one(self) -> None:
        versions = [ServableMetrics("crepe", version) for version in ("1", "2")]
        other = ServableMetrics("other", "1")
        counts = Counts(lambda: [*versions, other], ServerMetrics())
        for number, metrics in enumerate([*versions, other], 1):
            metrics.requests["predictions", 200] += number
            metrics.duration.observe(number)
        assert values(counts.take()) == pytest.approx(
            {
                ("crepe", "PredictionTotal"): 3,
                ("crepe", "LatencyOverall"): 1500,
                ("other", "PredictionTotal"): 3,
                ("other", "LatencyOverall"): 3000,
            }
        )

    def test_the_last_requests_of_a_model_that_is_gone_count_too(self) -> None:
        known = [ServableMetrics("crepe", "1")]
        counts = Counts(lambda: known, ServerMetrics())
        gone = known.pop()
        gone.requests["predictions", 200] += 2
        assert values(counts.take()) == {("crepe", "PredictionTotal"): 2}
        # It may still drain.
        gone.requests["predictions", 200] += 1
        assert values(counts.take()) == {("crepe", "PredictionTotal"): 1}
        assert counts.take() == []
        known.append(ServableMetrics("crepe", "1"))
        known[0].requests["predictions", 200] += 5
        assert values(counts.take()) == {("crepe", "PredictionTotal"): 5}

    def test_pings_and_descriptions_belong_to_no_model(self) -> None:
        server = ServerMetrics()
        server.requests["ping", 200] += 4
        counts = Counts(list, server)
        server.requests["ping", 200] += 1
        server.requests["ping", 503] += 1
        server.requests["api_description", 200] += 3
        server.requests["root", 200] += 9
        expected = {("", "PingTotal"): 2, ("", "APIDescriptionTotal"): 3}
        assert values(counts.take()) == expected
        assert counts.take() == []


def test_the_machine_is_described_by_the_mean_of_what_was_seen() -> None:
    machine = Machine()
    for _ in range(3):
        machine.sample()
    readings = {reading.name: reading for reading in machine.take()}
    units = {name: reading.unit for name, reading in readings.items()}
    assert units == {
        "CPUUtilization": "Percent",
        "MemoryUsed": "Megabytes",
        "MemoryAvailable": "Megabytes",
        "MemoryUtilization": "Percent",
        "DiskUsed": "Gigabytes",
        "DiskAvailable": "Gigabytes",
        "DiskUtilization": "Percent",
    }
    for reading in readings.values():
        assert reading.samples is not None
        assert reading.samples.count == 3
        # A mean of equal numbers is rounded, too.
        low, high = reading.samples.minimum - 1e-6, reading.samples.maximum + 1e-6
        assert low <= reading.value <= high
    assert readings["MemoryUsed"].value > 1
    assert 0 < readings["MemoryUtilization"].value <= 100
    assert machine.take() == []


class TestLog:
    def test_a_line_for_each_reading_carries_its_model(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO)
        readings = [TOTAL, Reading("CPUUtilization", "Percent", 12.3456789)]
        LogDestination().write(readings, MOMENT, 60.02)
        assert [(record.name, record.getMessage()) for record in caplog.records] == [
            ("mms.metrics", "PredictionTotal = 7 Count in 60.0 s"),
            ("mms.metrics", "CPUUtilization = 12.3457 Percent in 60.0 s"),
        ]
        assert [vars(record)["model"] for record in caplog.records] == ["crepe", ""]


class TestCsv:
    def rows(self, path: Path) -> list[list[str]]:
        with path.open(newline="") as file:
            return list(csv.reader(file))

    def test_each_metric_has_a_file_whose_header_is_written_once(self, tmp_path: Path) -> None:
        folder = tmp_path / "deep" / "metrics"
        destination = CsvDestination(folder)
        cpu = Reading("CPUUtilization", "Percent", 12.3456789)
        destination.write([TOTAL, Reading(TOTAL.name, "Count", 1, "other"), cpu], MOMENT, 60)
        CsvDestination(folder).write([TOTAL], MOMENT + datetime.timedelta(minutes=1), 60)
        assert sorted(path.name for path in folder.iterdir()) == [
            "mms_CPUUtilization.csv",
            "mms_PredictionTotal.csv",
        ]
        assert self.rows(folder / "mms_PredictionTotal.csv") == [
            ["time", "value", "model"],
            ["2026-01-31 12:30:05Z", "7", "crepe"],
            ["2026-01-31 12:30:05Z", "1", "other"],
            ["2026-01-31 12:31:05Z", "7", "crepe"],
        ]
        assert self.rows(folder / "mms_CPUUtilization.csv")[1:] == [
            ["2026-01-31 12:30:05Z", "12.345679", ""]
        ]

    def test_several_servers_may_write_to_one_folder(self, tmp_path: Path) -> None:
        program = """
            import datetime, sys
            from pathlib import Path
            from mms.telemetry.destinations import CsvDestination
            from mms.telemetry.readings import Reading
            destination = CsvDestination(Path(sys.argv[1]))
            now = datetime.datetime(2026, 1, 1)
            for number in range(200):
                destination.write([Reading("A", "Count", number, "m" * 100)] * 3, now, 1)
        """
        command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
        writers = [subprocess.Popen(command) for _ in range(3)]
        assert [writer.wait(60) for writer in writers] == [0, 0, 0]
        header, *rows = self.rows(tmp_path / "mms_A.csv")
        assert header == ["time", "value", "model"]
        assert len(rows) == 3 * 200 * 3
        assert {(len(row), row[2]) for row in rows} == {(3, "m" * 100)}

    def test_a_row_that_does_not_fit_leaves_nothing_behind(self, tmp_path: Path) -> None:
        program = """
            import datetime, resource, sys
            from pathlib import Path
            from mms.telemetry.destinations import CsvDestination
            from mms.telemetry.readings import Reading
            destination = CsvDestination(Path(sys.argv[1]))
            now = datetime.datetime(2026, 1, 1)
            destination.write([Reading("A", "Count", 1, "fits")], now, 1)
            resource.setrlimit(resource.RLIMIT_FSIZE, (80, 80))
            try:
                destination.write([Reading("A", "Count", 2, "x" * 100)], now, 1)
            except OSError as error:
                print("refused", error)
        """
        command = [sys.executable, "-c", textwrap.dedent(program), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.startswith("refused")
        assert self.rows(tmp_path / "mms_A.csv") == [
            ["time", "value", "model"],
            ["2026-01-01 00:00:00Z", "1", "fits"],
        ]

    def test_a_folder_that_cannot_be_made_is_an_error_at_start(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        settings = ServerSettings(metrics_write_to="csv", metrics_dir=str(tmp_path / "file"))
        with pytest.raises(ConfigError, match=r"metrics_dir .*file cannot be created"):
            make_writer(settings, list, ServerMetrics())


class TestWriter:
    async def test_it_writes_at_intervals_and_once_more_at_the_end(self, tmp_path: Path) -> None:
        crepe = ServableMetrics("crepe", "1")
        counts = Counts(lambda: [crepe], ServerMetrics())
        writer = MetricsWriter(CsvDestination(tmp_path), counts, Machine(), 0.01)
        file = tmp_path / "mms_PredictionTotal.csv"
        writer.start()
        crepe.requests["predictions", 200] += 5
        await until(file.exists)
        crepe.requests["predictions", 200] += 3
        await until(lambda: file.read_text().count("crepe") == 2)
        crepe.requests["predictions", 500] += 2
        await writer.stop()
        written = [line.split(",")[1:] for line in file.read_text().splitlines()[1:]]
        assert written == [["5", "crepe"], ["3", "crepe"], ["2", "crepe"]]
        assert "2,crepe" in (tmp_path / "mms_Prediction5XX.csv").read_text()
        assert (tmp_path / "mms_CPUUtilization.csv").exists()

    async def test_a_failure_is_logged_once_while_it_lasts_and_its_end_too(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "mms.metrics")
        folder = tmp_path / "metrics"
        destination = CsvDestination(folder)
        folder.rmdir()
        calls: list[int] = []

        def source() -> list[ServableMetrics]:
            calls.append(1)
            return []

        counts = Counts(source, ServerMetrics())
        writer = MetricsWriter(destination, counts, Machine(), 0.01)
        writer.start()
        calls.clear()
        await until(lambda: len(calls) > 9)
        folder.mkdir()
        await until(lambda: list(folder.iterdir()))
        await writer.stop()
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 2, lines
        assert lines[0].startswith("metrics of an interval are lost: FileNotFoundError")
        assert lines[1] == "metrics are written again"

    @pytest.mark.parametrize("destination", ["", "log"])
    async def test_the_settings_say_whether_and_where_to(self, destination: str) -> None:
        writer = make_writer(ServerSettings(metrics_write_to=destination), list, ServerMetrics())
        assert (writer is not None) == bool(destination)
        if writer:
            await writer.stop()

    def test_another_destination_is_refused_with_those_there_are(self) -> None:
        with pytest.raises(ConfigError, match="must be one of log, csv, cloudwatch, got 'file'"):
            build_config([], {"metrics_write_to": "file"}, {})
        assert build_config([], {}, {"MMS_METRICS_WRITE_TO": ""}).server.metrics_write_to == ""


@pytest.fixture(scope="module")
def aws() -> Iterator[str]:
    """Return the URL of a server that behaves like AWS."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """Return credentials, and none of this machine's own."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    return monkeypatch


class TestCloudWatch:
    def statistics(self, client: Any, name: str, model: str = "") -> dict[str, Any]:
        """Return what CloudWatch knows of a metric."""
        dimensions = [{"Name": "host", "Value": socket.gethostname()}]
        if model:
            dimensions.append({"Name": "model_name", "Value": model})
        now = datetime.datetime.now(datetime.timezone.utc)
        answer = client.get_metric_statistics(
            Namespace="MXNetModelServer",
            MetricName=name,
            Dimensions=dimensions,
            StartTime=now - datetime.timedelta(hours=1),
            EndTime=now + datetime.timedelta(hours=1),
            Period=7200,
            Statistics=["Sum", "Average", "SampleCount", "Minimum", "Maximum"],
        )
        (point,) = answer["Datapoints"]
        return dict(point)

    async def test_metrics_arrive_with_the_names_units_and_dimensions_of_04(
        self, aws: str, account: pytest.MonkeyPatch
    ) -> None:
        account.setenv("AWS_ENDPOINT_URL", aws)
        account.setenv("AWS_DEFAULT_REGION", "eu-central-1")
        crepe, server = ServableMetrics("crepe", "1"), ServerMetrics()
        settings = ServerSettings(metrics_write_to="cloudwatch", metrics_interval=3600)
        writer = make_writer(settings, lambda: [crepe], server)
        assert writer is not None
        writer.start()
        crepe.requests["predictions", 200] += 5
        crepe.duration.observe(0.25)
        server.requests["ping", 200] += 2
        await writer.stop()
        client = boto3.client("cloudwatch")
        try:
            total = self.statistics(client, "PredictionTotal", "crepe")
            assert (total["Sum"], total["Unit"]) == (5, "Count")
            latency = self.statistics(client, "LatencyOverall", "crepe")
            assert (latency["Average"], latency["Unit"]) == (250, "Milliseconds")
            assert self.statistics(client, "PingTotal")["Sum"] == 2
            used = self.statistics(client, "MemoryUsed")
            assert used["Unit"] == "Megabytes"
            assert used["Sum"] > 1
        finally:
            client.close()

    def test_more_metrics_than_one_call_takes_are_sent_in_several(
        self, aws: str, account: pytest.MonkeyPatch
    ) -> None:
        account.setenv("AWS_ENDPOINT_URL", aws)
        account.setenv("AWS_DEFAULT_REGION", "us-east-1")
        destination = CloudWatchDestination()
        now = datetime.datetime.now(datetime.timezone.utc)
        samples = Samples()
        for value in (1.0, 4.0):
            samples.add(value)
        readings = [Reading("Many", "Count", n, f"model-{n}") for n in range(1234)]
        destination.write([*readings, Reading("Sampled", "Percent", 2.5, "", samples)], now, 60)
        destination.close()
        client = boto3.client("cloudwatch")
        try:
            pages = client.get_paginator("list_metrics").paginate(Namespace="MXNetModelServer")
            found = [m for page in pages for m in page["Metrics"] if m["MetricName"] == "Many"]
            assert len(found) == 1234
            sampled = self.statistics(client, "Sampled")
            assert (sampled["Sum"], sampled["Minimum"], sampled["Maximum"]) == (5, 1, 4)
            assert sampled["SampleCount"] == 2
        finally:
            client.close()

    async def test_an_aws_that_cannot_be_reached_is_logged_once_and_hurts_nobody(
        self, account: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        account.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        account.setenv("AWS_DEFAULT_REGION", "us-east-1")
        caplog.set_level(logging.INFO, "mms.metrics")
        calls: list[int] = []

        def source() -> list[ServableMetrics]:
            calls.append(1)
            return []

        settings = ServerSettings(metrics_write_to="cloudwatch", metrics_interval=0.01)
        writer = make_writer(settings, source, ServerMetrics())
        assert writer is not None
        writer.start()
        calls.clear()
        await until(lambda: len(calls) >= 6)
        await writer.stop()
        lines = [record.getMessage() for record in caplog.records]
        assert len(lines) == 1
        assert "EndpointConnectionError" in lines[0]

    def test_without_a_region_the_error_says_how_to_name_one(
        self, account: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ConfigError, match="AWS_DEFAULT_REGION"):
            CloudWatchDestination()

    def test_without_boto3_the_error_says_what_to_install(self, tmp_path: Path) -> None:
        program = (
            "import sys; sys.modules['boto3'] = None\nfrom mms.cli.serve import main\nmain()\n"
        )
        args = ["--models", "m=/no/such.model", "--metrics-write-to", "cloudwatch", "--port", "0"]
        done = subprocess.run(
            [sys.executable, "-c", program, *args], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "pip install 'mxnet-model-server[cloudwatch]'" in done.stderr.splitlines()[-1]
