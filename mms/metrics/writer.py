"""Metrics under v0.4's names, written at intervals to the log, to CSV files or to CloudWatch.

Reads the counters that Prometheus scrapes and writes what an interval has added to them: sums for
counts, means for times and for what the machine is asked now and then. As in v0.4, a metric that
nothing happened to is not written.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import datetime
import fcntl
import io
import logging
import os
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from mms.config.settings import ServerSettings
from mms.errors import ConfigError
from mms.metrics.exporter import Histogram, ServableMetrics, ServerMetrics
from mms.protocol import Stage

logger = logging.getLogger("mms.metrics")

#: How often the machine is looked at (v0.4's figure), seconds.
SAMPLE_S = 5.0
_NAMESPACE = "MXNetModelServer"
#: CloudWatch takes a thousand in one call.
_DATA_PER_CALL = 500
#: The last write is waited for when the server stops: two attempts must not take longer than that.
_CONNECT_S, _READ_S, _ATTEMPTS = 3, 5, 2
_DISK = "/"
_MB, _GB = 1 << 20, 1 << 30

Source = Callable[[], Iterable[ServableMetrics]]


@dataclass(slots=True)
class Samples:
    """What a quantity was found to be during an interval."""

    count: int = 0
    total: float = 0.0
    minimum: float = float("inf")
    maximum: float = float("-inf")

    def add(self, value: float) -> None:
        """Note a value."""
        self.count += 1
        self.total += value
        self.minimum = min(self.minimum, value)
        self.maximum = max(self.maximum, value)


@dataclass(frozen=True, slots=True)
class Reading:
    """A metric of one interval.

    Attributes:
        name: v0.4's name.
        unit: CloudWatch's word for the unit.
        value: Sum or mean over the interval.
        model: Name of the model, "" for what belongs to none.
        samples: What the mean was made of, where single values are known.
    """

    name: str
    unit: str
    value: float
    model: str = ""
    samples: Samples | None = None


class Destination(Protocol):
    """Where readings go. Called in a thread of its own, one call at a time."""

    def write(self, readings: Sequence[Reading], moment: datetime.datetime, seconds: float) -> None:
        """Write the readings of an interval.

        Args:
            readings: At least one.
            moment: End of the interval, in UTC.
            seconds: Length of the interval.

        Raises:
            Exception: Whatever the destination fails with.
        """

    def close(self) -> None:
        """Give back what it holds."""


class LogDestination:
    """One line of the log for each reading, which carries the model like any other line."""

    def write(self, readings: Sequence[Reading], moment: datetime.datetime, seconds: float) -> None:
        """Log the readings."""
        for reading in readings:
            logger.info(
                "%s = %.6g %s in %.1f s",
                reading.name,
                reading.value,
                reading.unit,
                seconds,
                extra={"model": reading.model},
            )

    def close(self) -> None:
        """Do nothing."""


class CsvDestination:
    """``mms_NAME.csv`` for each metric, as v0.4 named them, with the model as a third column.

    Raises:
        ConfigError: The folder cannot be made.
    """

    _HEADER = ("time", "value", "model")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"metrics_dir {folder} cannot be made: {error.strerror}") from None

    def write(self, readings: Sequence[Reading], moment: datetime.datetime, seconds: float) -> None:
        """Append to the files."""
        when = moment.strftime("%Y-%m-%d %H:%M:%SZ")
        rows: dict[str, list[tuple[Any, ...]]] = {}
        for reading in readings:
            row = (when, round(reading.value, 6), reading.model)
            rows.setdefault(reading.name, []).append(row)
        for name, lines in rows.items():
            self._append(self._folder / f"mms_{name}.csv", lines)

    def _append(self, path: Path, rows: list[tuple[Any, ...]]) -> None:
        # Another server may write to the same file: the lock keeps the header first and the rows
        # whole, and what is written is written in one call or not at all.
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            data = _csv(rows if size else [self._HEADER, *rows])
            try:
                if os.write(descriptor, data) < len(data):
                    raise OSError(f"{path}: no space left for a row")
            except OSError:
                os.ftruncate(descriptor, size)
                raise
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Do nothing."""


def _csv(rows: Sequence[tuple[Any, ...]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


class CloudWatchDestination:
    """AWS CloudWatch, with v0.4's namespace, names, units and dimensions.

    Raises:
        ConfigError: boto3 is not installed, or does not know which region to write to.
    """

    def __init__(self) -> None:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError
        except ImportError:
            raise ConfigError(
                "metrics_write_to cloudwatch needs boto3: "
                "pip install 'mxnet-model-server[cloudwatch]'"
            ) from None
        limits = Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_READ_S,
            retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
        )
        try:
            self._client = boto3.client("cloudwatch", config=limits)
        except (BotoCoreError, ValueError) as error:
            # ValueError: AWS_ENDPOINT_URL is no URL.
            raise ConfigError(
                f"metrics_write_to cloudwatch: {error} (AWS_DEFAULT_REGION and `aws configure` "
                "say where to write and as whom)"
            ) from None
        self._host = {"Name": "host", "Value": socket.gethostname()}

    def write(self, readings: Sequence[Reading], moment: datetime.datetime, seconds: float) -> None:
        """Send the readings."""
        data = [self._datum(reading, moment) for reading in readings]
        for start in range(0, len(data), _DATA_PER_CALL):
            self._client.put_metric_data(
                Namespace=_NAMESPACE, MetricData=data[start : start + _DATA_PER_CALL]
            )

    def _datum(self, reading: Reading, moment: datetime.datetime) -> dict[str, Any]:
        dimensions = [self._host]
        if reading.model:
            dimensions.append({"Name": "model_name", "Value": reading.model})
        datum: dict[str, Any] = {
            "MetricName": reading.name,
            "Timestamp": moment,
            "Unit": reading.unit,
            "Dimensions": dimensions,
        }
        if reading.samples is None:
            return {**datum, "Value": reading.value}
        return {
            **datum,
            "StatisticValues": {
                "SampleCount": reading.samples.count,
                "Sum": reading.samples.total,
                "Minimum": reading.samples.minimum,
                "Maximum": reading.samples.maximum,
            },
        }

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


class Machine:
    """The host's processors, memory and disk since the last time they were asked for."""

    def __init__(self) -> None:
        # The first call only sets the mark from which the next one measures.
        psutil.cpu_percent()
        self._samples: dict[tuple[str, str], Samples] = {}

    def sample(self) -> None:
        """Look at the machine now."""
        memory, disk = psutil.virtual_memory(), psutil.disk_usage(_DISK)
        for name, unit, value in (
            ("CPUUtilization", "Percent", psutil.cpu_percent()),
            ("MemoryUsed", "Megabytes", memory.used / _MB),
            ("MemoryAvailable", "Megabytes", memory.available / _MB),
            ("MemoryUtilization", "Percent", memory.percent),
            ("DiskUsed", "Gigabytes", disk.used / _GB),
            ("DiskAvailable", "Gigabytes", disk.free / _GB),
            ("DiskUtilization", "Percent", disk.percent),
        ):
            self._samples.setdefault((name, unit), Samples()).add(value)

    def take(self) -> list[Reading]:
        """Return the means, and begin again."""
        samples, self._samples = self._samples, {}
        return [
            Reading(name, unit, found.total / found.count, samples=found)
            for (name, unit), found in samples.items()
        ]


@dataclass(slots=True)
class _Totals:
    """Counts of one servable, or the differences of two of them; times in seconds."""

    all: int = 0
    client_errors: int = 0
    server_errors: int = 0
    times: tuple[tuple[int, float], ...] = ((0, 0.0),) * 4

    def minus(self, other: _Totals) -> _Totals:
        return self._with(other, -1)

    def plus(self, other: _Totals) -> _Totals:
        return self._with(other, 1)

    def _with(self, other: _Totals, sign: int) -> _Totals:
        times = tuple(
            (count + sign * theirs, total + sign * their_total)
            for (count, total), (theirs, their_total) in zip(self.times, other.times, strict=True)
        )
        return _Totals(
            self.all + sign * other.all,
            self.client_errors + sign * other.client_errors,
            self.server_errors + sign * other.server_errors,
            times,
        )


#: v0.4's names for the four entries of `_Totals.times`.
_TIMES = ("LatencyOverall", "LatencyPreprocess", "LatencyInference", "LatencyPostprocess")


def _totals(metrics: ServableMetrics) -> _Totals:
    stages = metrics.stages
    histograms = (
        metrics.duration,
        stages[Stage.PREPROCESS],
        stages[Stage.INFERENCE],
        stages[Stage.POSTPROCESS],
    )
    return _Totals(
        sum(metrics.requests.values()),
        sum(n for (_, status), n in metrics.requests.items() if 400 <= status < 500),
        sum(n for (_, status), n in metrics.requests.items() if status >= 500),
        tuple(_count_and_sum(histogram) for histogram in histograms),
    )


def _count_and_sum(histogram: Histogram) -> tuple[int, float]:
    return sum(histogram.counts), histogram.total


class Counts:
    """What was added to the counters since the last time.

    Keeps the counters that it has seen: of a model unregistered meanwhile, the last requests
    count too.
    """

    def __init__(self, source: Source, server: ServerMetrics) -> None:
        self._source = source
        self._server = server
        self._seen: dict[ServableMetrics, _Totals] = {}
        self._routes = self._route_totals()
        self.look()

    def look(self) -> None:
        """Note which models there are."""
        for metrics in self._source():
            self._seen.setdefault(metrics, _Totals())

    def take(self) -> list[Reading]:
        """Return what was added, by model, and begin again."""
        self.look()
        known = set(self._source())
        models: dict[str, _Totals] = {}
        for metrics, before in list(self._seen.items()):
            now = _totals(metrics)
            added = now.minus(before)
            models[metrics.model] = models.get(metrics.model, _Totals()).plus(added)
            self._seen[metrics] = now
            if metrics not in known and not added.all:
                # Unregistered, and drained since.
                del self._seen[metrics]
        readings = [r for model, added in sorted(models.items()) for r in _readings(model, added)]
        routes, self._routes = self._routes, self._route_totals()
        return readings + [
            Reading(name, "Count", now - routes[name])
            for name, now in self._routes.items()
            if now > routes[name]
        ]

    def _route_totals(self) -> dict[str, int]:
        requests = self._server.requests
        return {
            name: sum(n for (route, _), n in requests.items() if route == asked)
            for name, asked in (("PingTotal", "ping"), ("APIDescriptionTotal", "api_description"))
        }


def _readings(model: str, added: _Totals) -> list[Reading]:
    counts = (
        ("PredictionTotal", added.all),
        ("Prediction4XX", added.client_errors),
        ("Prediction5XX", added.server_errors),
    )
    return [Reading(name, "Count", value, model) for name, value in counts if value] + [
        Reading(name, "Milliseconds", 1000 * total / count, model)
        for name, (count, total) in zip(_TIMES, added.times, strict=True)
        if count
    ]


class MetricsWriter:
    """Writes what the counters gained, interval by interval, until it is stopped.

    Args:
        destination: Where to; belongs to the writer, which closes it.
        counts: The counters.
        machine: The host.
        interval_s: Seconds between writes.
        clock: Monotonic time.
    """

    def __init__(
        self,
        destination: Destination,
        counts: Counts,
        machine: Machine,
        interval_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._destination = destination
        self._counts = counts
        self._machine = machine
        self._interval_s = interval_s
        self._clock = clock
        self._stopping = asyncio.Event()
        self._failures: set[str] = set()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin the first interval."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write what the interval has brought so far, and end."""
        self._stopping.set()
        if self._task:
            await self._task
        self._destination.close()

    async def _run(self) -> None:
        began = self._clock()
        is_last = False
        while not is_last:
            is_last = await self._pause(min(SAMPLE_S, began + self._interval_s - self._clock()))
            now = self._clock()
            is_due = is_last or now >= began + self._interval_s
            try:
                self._machine.sample()
                self._counts.look()
                if is_due:
                    await self._write(now - began)
            except Exception as error:  # noqa: BLE001 - nothing that fails here may hurt serving
                self._report(error)
            if is_due:
                began = now

    async def _pause(self, seconds: float) -> bool:
        """Wait so long, and say whether the writer is to end."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), max(seconds, 0.0))
        return self._stopping.is_set()

    async def _write(self, seconds: float) -> None:
        readings = self._counts.take() + self._machine.take()
        moment = datetime.datetime.now(datetime.timezone.utc)
        await asyncio.to_thread(self._destination.write, readings, moment, seconds)
        if self._failures:
            self._failures.clear()
            logger.info("metrics are written again")

    def _report(self, error: Exception) -> None:
        """Log a failure, but not again at each interval for as long as it lasts."""
        kind = _kind(error)
        if kind not in self._failures:
            self._failures.add(kind)
            logger.warning("metrics of an interval are lost: %s: %s", kind, error)


def _kind(error: Exception) -> str:
    # All that AWS refuses comes as one class, with the reason inside.
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return f"{type(error).__name__} {code}".strip()


def make_writer(
    settings: ServerSettings, source: Source, server: ServerMetrics
) -> MetricsWriter | None:
    """Return the writer that the settings ask for, if they do.

    Args:
        settings: The server's.
        source: Gives the counters of each servable there is now.
        server: Counters of requests that belong to no model.

    Raises:
        ConfigError: The destination cannot be used.
    """
    destination: Destination
    if settings.metrics_write_to == "log":
        destination = LogDestination()
    elif settings.metrics_write_to == "csv":
        destination = CsvDestination(Path(settings.metrics_dir).expanduser())
    elif settings.metrics_write_to == "cloudwatch":
        destination = CloudWatchDestination()
    else:
        return None
    return MetricsWriter(destination, Counts(source, server), Machine(), settings.metrics_interval)
