"""Destinations of readings: the log, CSV files, CloudWatch."""

from __future__ import annotations

import csv
import datetime
import fcntl
import io
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from mms.errors import ConfigError
from mms.telemetry.readings import Reading

logger = logging.getLogger("mms.metrics")

_NAMESPACE = "MXNetModelServer"
#: CloudWatch accepts a thousand per call.
_DATA_PER_CALL = 500
#: The server waits for the last write when it stops, so these bound how long two attempts take.
_CONNECT_S, _READ_S, _ATTEMPTS = 3, 5, 2


class Destination(Protocol):
    """A destination of readings. Called in a thread of its own, one call at a time."""

    def write(self, readings: Sequence[Reading], moment: datetime.datetime, seconds: float) -> None:
        """Write the readings of an interval.

        Args:
            readings: At least one.
            moment: End of the interval, in UTC.
            seconds: Length of the interval.

        Raises:
            Exception: Any failure of the destination.
        """

    def close(self) -> None:
        """Release its resources."""


class LogDestination:
    """Logs one line per reading, with the model as in any other line."""

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
    """Writes ``mms_NAME.csv`` for each metric, as v0.4 did, with the model as a third column.

    Raises:
        ConfigError: The folder cannot be created.
    """

    _HEADER = ("time", "value", "model")

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"metrics_dir {folder} cannot be created: {error.strerror}") from None

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
        # whole, and a row is written in one call or not at all.
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
    """Sends to AWS CloudWatch, with v0.4's namespace, names, units and dimensions.

    Raises:
        ConfigError: boto3 is not installed, or no region is configured.
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
            # ValueError: AWS_ENDPOINT_URL is not a URL.
            raise ConfigError(
                f"metrics_write_to cloudwatch: {error} (set the region and credentials with "
                "AWS_DEFAULT_REGION or `aws configure`)"
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
