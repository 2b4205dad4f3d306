"""How clients ask: in a closed loop, each waiting for its answer, or in an open one.

Each pattern is started with open connections, runs through a warm-up and the time that counts,
waits for the last answer, and sums up.
"""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from typing import Any

from tests.kit.load.connection import Connection, Record
from tests.kit.load.schedule import percentiles, poisson
from tests.kit.load.timer import Timer


class Pattern:
    """What both patterns share.

    Args:
        warm_up_s: Load that does not count: connections and caches are warm after it.
        seconds: Load that counts.

    Attributes:
        record: What came back.
        finished: Done when the time is over and the last answer has come.
    """

    def __init__(self, warm_up_s: float, seconds: float) -> None:
        self._warm_up_s = warm_up_s
        self._seconds = seconds
        self._start = 0.0
        self._cpu_marks: list[float] = []
        self._has_all_answers = False
        self.record = Record()
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, connections: Sequence[Connection]) -> None:
        """Begin to ask."""
        loop = asyncio.get_running_loop()
        self._start = time.monotonic() + self._warm_up_s
        for delay in (self._warm_up_s, self._warm_up_s + self._seconds):
            loop.call_later(delay, self._mark_cpu)
        self._begin(connections)

    def on_answer(self, connection: Connection, now: float) -> None:
        """Record that a connection is free again."""
        raise NotImplementedError

    def summary(self) -> dict[str, Any]:
        """Return the figures of the time that counts; ``latencies`` is an array of seconds."""
        raise NotImplementedError

    @property
    def client_cpu(self) -> float:
        """Share of a core that this process has used in the time that counts."""
        begin, end = self._cpu_marks
        return (end - begin) / self._seconds

    def _begin(self, connections: Sequence[Connection]) -> None:
        raise NotImplementedError

    def _mark_cpu(self) -> None:
        self._cpu_marks.append(time.process_time())
        self._finish_if_over()

    def _take_last_answer(self) -> None:
        self._has_all_answers = True
        self._finish_if_over()

    def _finish_if_over(self) -> None:
        # An open loop's last answer may come before the end of the time that counts.
        if self._has_all_answers and len(self._cpu_marks) == 2 and not self.finished.done():
            self.finished.set_result(None)


class ClosedLoop(Pattern):
    """Each connection asks again as soon as it has its answer.

    What counts begins with the first answer after the warm-up, and ends with the first one that
    comes `seconds` later or after that. The answers of a batch come all at once; this way whole
    batches are counted, over the time that they took, however long that is.
    """

    def _begin(self, connections: Sequence[Connection]) -> None:
        self._asking = len(connections)
        self._ends_at = math.inf
        for connection in connections:
            connection.send(time.monotonic())

    def on_answer(self, connection: Connection, now: float) -> None:
        """Ask again, or wait for the others: the next run must not find this one's requests."""
        if now >= self._start and self._ends_at == math.inf:
            self._ends_at = now + self._seconds
        if now < self._ends_at:
            connection.send(now)
            return
        self._asking -= 1
        if not self._asking:
            self._take_last_answer()

    def summary(self) -> dict[str, Any]:
        """Return what every pattern does."""
        done = self.record.done
        first, last = bisect_left(done, self._start), bisect_left(done, self._ends_at)
        return {
            "requests_per_s": (last - first) / (done[last] - done[first]),
            "latencies": self.record.latencies[first + 1 : last + 1],
        }


class OpenLoop(Pattern):
    """Requests come at random times, whether or not earlier ones have been answered.

    One that finds no connection free waits for one here. Its latency counts from the time at which
    it was meant to be sent, so that a server that stalls is charged for everybody who would have
    asked meanwhile.

    Args:
        warm_up_s: As for every pattern.
        seconds: As for every pattern.
        rate: Requests per second.
        seed: Of the random times.
    """

    def __init__(self, warm_up_s: float, seconds: float, rate: float, seed: int) -> None:
        super().__init__(warm_up_s, seconds)
        self._arrivals = poisson(rate, warm_up_s, seconds, seed)
        self._sent = 0
        self._idle: list[Connection] = []
        self._waiting: deque[float] = deque()
        self._lags = array("d")
        self._timer = Timer(self._send_due)

    def _begin(self, connections: Sequence[Connection]) -> None:
        begin = self._start - self._warm_up_s
        self._arrivals = array("d", (begin + at for at in self._arrivals))
        self._idle.extend(connections)
        self._timer.start_at(self._arrivals[0])

    def on_answer(self, connection: Connection, now: float) -> None:
        """Send what waits for a connection."""
        if self._waiting:
            connection.send(self._waiting.popleft())
        else:
            self._idle.append(connection)
        if len(self.record.done) == len(self._arrivals):
            self._timer.close()
            self._take_last_answer()

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._sent < len(self._arrivals) and (at := self._arrivals[self._sent]) <= now:
            self._sent += 1
            if self._idle:
                self._lags.append(now - at)
                self._idle.pop().send(at)
            else:
                self._waiting.append(at)
        if self._sent < len(self._arrivals):
            self._timer.start_at(self._arrivals[self._sent])

    def summary(self) -> dict[str, Any]:
        """Return the latencies of what was meant to be sent in the time that counts.

        ``client_lag_p99_ms`` is what the client itself adds: how late it sends although a
        connection is free.
        """
        done, latencies = self.record.done, self.record.latencies
        counted = array(
            "d",
            (took for at, took in zip(done, latencies, strict=True) if at - took >= self._start),
        )
        end = self._start + self._seconds
        answered = bisect_left(done, end) - bisect_left(done, self._start)
        return {
            "requests_per_s": answered / self._seconds,
            "offered_per_s": len(counted) / self._seconds,
            "latencies": counted,
            "client_lag_p99_ms": percentiles(self._lags)["p99_ms"],
        }
