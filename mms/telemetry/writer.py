"""Write metrics under v0.4's names at intervals: to the log, to CSV files or to CloudWatch."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mms.config.settings import ServerSettings
from mms.telemetry.counters import ServerMetrics
from mms.telemetry.destinations import (
    CloudWatchDestination,
    CsvDestination,
    Destination,
    LogDestination,
)
from mms.telemetry.readings import Counts, Source

if TYPE_CHECKING:
    from mms.telemetry.machine import Machine

logger = logging.getLogger("mms.metrics")

#: Interval at which the machine is sampled (v0.4's figure), seconds.
SAMPLE_S = 5.0


class MetricsWriter:
    """Writes the counters' increments, interval by interval, until it is stopped.

    Args:
        destination: The destination; owned by the writer, which closes it.
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
        """Start the first interval."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Write the current, incomplete interval, and stop."""
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
            except Exception as error:  # noqa: BLE001 - no failure here may affect serving
                self._report(error)
            if is_due:
                began = now

    async def _pause(self, seconds: float) -> bool:
        """Wait, and return whether the writer has been asked to stop."""
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
        """Log a failure once, not at every interval while it lasts."""
        kind = _kind(error)
        if kind not in self._failures:
            self._failures.add(kind)
            logger.warning("metrics of an interval are lost: %s: %s", kind, error)


def _kind(error: Exception) -> str:
    # Every refusal of AWS has the same class, with the reason inside.
    response = getattr(error, "response", None)
    code = response.get("Error", {}).get("Code", "") if isinstance(response, dict) else ""
    return f"{type(error).__name__} {code}".strip()


def make_writer(
    settings: ServerSettings, source: Source, server: ServerMetrics
) -> MetricsWriter | None:
    """Return the writer that the settings ask for, or None.

    Args:
        settings: The server's.
        source: Returns the counters of each current servable.
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
    # Imported here: it imports psutil, which would add some milliseconds to every start.
    from mms.telemetry.machine import Machine

    return MetricsWriter(destination, Counts(source, server), Machine(), settings.metrics_interval)
