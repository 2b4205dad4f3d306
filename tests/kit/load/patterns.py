"""When clients ask: in a closed loop, each waiting for its answer, or in an open one."""

from __future__ import annotations

import asyncio
import math
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from tests.kit.load.timer import Timer


class Client(Protocol):
    """Somebody who asks one thing at a time, and says `Pattern.settled` when that is over."""

    def ask(self, since: float) -> None:
        """Send a request that was meant to be sent at `since`, and return at once."""


class Pattern:
    """What both patterns share.

    Attributes:
        finished: Done when nobody will ask again and all that was asked is settled.
    """

    def __init__(self) -> None:
        self._asking = 0
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def start(self, clients: Iterable[Client]) -> None:
        """Have clients, of whom none is asking, begin."""
        raise NotImplementedError

    def settled(self, client: Client, now: float) -> None:
        """Record that a client has its answer, or will get none."""
        raise NotImplementedError

    def stop(self) -> None:
        """Send no more; what is on its way may still be settled."""
        raise NotImplementedError

    def _ask(self, client: Client, since: float) -> None:
        self._asking += 1
        client.ask(since)

    def _finish_if_idle(self) -> None:
        if not self._asking and not self.finished.done():
            self.finished.set_result(None)


class ClosedLoop(Pattern):
    """Each client asks again as soon as it has its answer."""

    def __init__(self) -> None:
        super().__init__()
        self._is_stopping = False

    def start(self, clients: Iterable[Client]) -> None:
        """Have all clients ask at once."""
        for client in clients:
            self._ask(client, time.monotonic())

    def settled(self, client: Client, now: float) -> None:
        """Have the client ask again."""
        self._asking -= 1
        if self._is_stopping:
            self._finish_if_idle()
        else:
            self._ask(client, now)

    def stop(self) -> None:
        """Send no more; what is on its way may still be settled."""
        self._is_stopping = True
        self._finish_if_idle()


class OpenLoop(Pattern):
    """Requests come at given times, whether or not earlier ones have been answered.

    One that finds no client free waits for one here. Its time stays that at which it was meant to
    be sent, so that a server that stalls is charged for everybody who would have asked meanwhile.

    Args:
        offsets: When they come, in seconds from the start, in order.
        more: Makes another client when none is free; without it, requests wait.

    Attributes:
        lags: How late each request was sent although a client was free.
    """

    def __init__(self, offsets: Iterable[float], more: Callable[[], Client] | None = None) -> None:
        super().__init__()
        self.lags = array("d")
        self._offsets: Iterator[float] = iter(offsets)
        self._more = more
        self._begin = 0.0
        self._due = math.inf
        self._idle: list[Client] = []
        self._waiting: deque[float] = deque()
        self._timer = Timer(self._send_due)
        self.finished.add_done_callback(lambda _: self._timer.close())

    def start(self, clients: Iterable[Client]) -> None:
        """Begin to wait for the first request's time."""
        self._begin = time.monotonic()
        self._idle.extend(clients)
        self._move_on()
        self._wait()

    def settled(self, client: Client, now: float) -> None:
        """Have the client send what waits for one."""
        self._asking -= 1
        if self._waiting:
            self._ask(client, self._waiting.popleft())
            return
        self._idle.append(client)
        self._finish_if_over()

    def stop(self) -> None:
        """Send no more; what is on its way may still be settled."""
        self._due = math.inf
        self._waiting.clear()
        self._finish_if_over()

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due <= now:
            if not self._idle and self._more is not None:
                self._idle.append(self._more())
            if self._idle:
                self.lags.append(now - self._due)
                self._ask(self._idle.pop(), self._due)
            else:
                self._waiting.append(self._due)
            self._move_on()
        self._wait()

    def _move_on(self) -> None:
        self._due = self._begin + next(self._offsets, math.inf)

    def _wait(self) -> None:
        if self._due < math.inf:
            self._timer.start_at(self._due)
        else:
            self._finish_if_over()

    def _finish_if_over(self) -> None:
        if self._due == math.inf:
            self._finish_if_idle()
