"""Clients that count: closed-loop ones and a Poisson stream, and what became of each request.

Each request carries a token that no other carries, and its answer must bring the same token back,
so that neither a lost answer nor a swapped one goes unseen. What is sent when is the load
generator's part; what is tried again, and when that is excused, stands here.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.kit.load.channel import Channel, Cut
from tests.kit.load.patterns import ClosedLoop, OpenLoop, Pattern
from tests.kit.load.schedule import arrivals
from tests.kit.load.wire import Reply, encode_request
from tests.kit.waiting import until

#: How long anything that should happen may take. Generous: test machines are slow and noisy.
LIMIT_S = 45.0
CLIENTS = 16
OPEN_RATE_PER_S = 30.0
#: What each request takes in its worker. Frames then hold one request each: the server joins
#: several only for models that answer within a millisecond.
WORK_S = 0.02
#: One request in so many is large, so that workers also die in the middle of a body.
_LARGE_EVERY, _LARGE_BYTES = 40, 200_000
#: First wait before an attempt that was turned away is made again, and longest: growing, or the
#: open loop's clients, more and more of them, would keep a server from starting.
_RETRY_S, _MAX_RETRY_S = 0.1, 1.0


async def call(port: int, method: str, path: str, body: bytes = b"") -> Reply:
    """Send one request over a connection of its own."""
    channel = Channel(port)
    try:
        return await asyncio.wait_for(channel.ask(encode_request(method, path, body)), LIMIT_S)
    finally:
        channel.close()


@dataclass(slots=True)
class Tally:
    """What became of the requests of one stretch of time.

    Attributes:
        sent: Requests, each counted once however often it is sent again.
        answered: Those that got their own answer.
        refused: Attempts turned away: 503 with Retry-After, or no connection in an outage.
        failed: Requests that got an error, or nothing.
        wrong: Answers that belong to another request.
        reasons: Why attempts were refused and requests failed.
        longest_gap_s: Longest time without an answer.
    """

    sent: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    wrong: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    longest_gap_s: float = 0.0
    last_answer_at: float = field(default_factory=time.monotonic)

    @property
    def pending(self) -> int:
        return self.sent - self.answered - self.failed - self.wrong

    @property
    def lost(self) -> int:
        return self.failed + self.wrong

    def fail(self, reason: str) -> None:
        self.failed += 1
        self.reasons[f"failed: {reason}"] += 1

    def refuse(self, reason: str) -> None:
        self.refused += 1
        self.reasons[f"refused: {reason}"] += 1

    def add(self, other: Tally) -> None:
        """Take another stretch into this one."""
        self.sent += other.sent
        self.answered += other.answered
        self.refused += other.refused
        self.failed += other.failed
        self.wrong += other.wrong
        self.reasons += other.reasons
        self.longest_gap_s = max(self.longest_gap_s, other.longest_gap_s)


@dataclass(frozen=True, slots=True)
class Answer:
    """A right answer: who gave it, and which attempt it is for."""

    model: str
    mark: str
    pid: int
    sent_at: float
    came_at: float


@dataclass(slots=True)
class Outage:
    """A time in which the server is meant to be away.

    Attributes:
        since: Monotonic time at which it began.
        is_sudden: Whether requests sent before may be cut, too: the server was killed.
    """

    since: float
    is_sudden: bool

    def excuses(self, sent_at: float) -> bool:
        return self.is_sudden or sent_at >= self.since


class _Client:
    """A client of a pattern, with a connection of its own."""

    def __init__(self, load: Load, pattern: Pattern) -> None:
        self._load = load
        self._pattern = pattern
        self._channel = Channel(load.port)
        self._asking: asyncio.Task[None] | None = None

    def ask(self, since: float) -> None:
        """Send the load's next request."""
        self._asking = asyncio.ensure_future(self._load.request(self._channel))
        self._asking.add_done_callback(self._settle)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def _settle(self, asking: asyncio.Task[None]) -> None:
        asking.result()
        self._pattern.settled(self, time.monotonic())


class Load:
    """The clients.

    Attributes:
        port: Where the server listens.
        targets: Models asked, each as often as the others.
        tally: Counts of the current stretch of time.
        outage: Set while the server is meant to be away.
        unanswered: Tokens of attempts that the outage cut.
    """

    def __init__(self, port: int, seed: int) -> None:
        self.port = port
        self.targets = ["main"]
        self.tally = Tally()
        self.outage: Outage | None = None
        self.unanswered: list[str] = []
        self._random = random.Random(seed)
        self._ids = itertools.count(1)
        self._outstanding: set[int] = set()
        self._listeners: list[Callable[[Answer], None]] = []
        self._patterns: list[Pattern] = []
        self._clients: list[_Client] = []

    def start(self) -> None:
        """Begin to send."""
        closed = ClosedLoop()
        open_ = OpenLoop(arrivals(OPEN_RATE_PER_S, self._random), lambda: self._client(open_))
        self._patterns = [closed, open_]
        closed.start([self._client(closed) for _ in range(CLIENTS)])
        open_.start([])

    def _client(self, pattern: Pattern) -> _Client:
        self._clients.append(_Client(self, pattern))
        return self._clients[-1]

    async def stop(self) -> None:
        """Send no more, wait for what is on its way, and close the connections."""
        for pattern in self._patterns:
            pattern.stop()
        await until(self._has_finished, what="the clients stop")
        while self._clients:
            self._clients.pop().close()
        # Aborted transports close in the loop's next turn.
        await asyncio.sleep(0)

    def _has_finished(self) -> bool:
        return all(pattern.finished.done() for pattern in self._patterns)

    def begin(self) -> Tally:
        """Begin a stretch of time; return the tally of the one that ends, which may grow yet."""
        ended, self.tally = self.tally, Tally()
        return ended

    def outstanding(self) -> frozenset[int]:
        """Return what has been sent and not been settled."""
        return frozenset(self._outstanding)

    async def settle(self, requests: frozenset[int]) -> None:
        """Wait until none of these requests is outstanding."""
        await until(lambda: not (requests & self._outstanding), what="requests are settled")

    async def flow(self, answers: int) -> None:
        """Wait until so many more answers have come."""
        goal = self.tally.answered + answers
        await until(lambda: self.tally.answered >= goal, what=f"{answers} more answers")

    def next_answer(self, accept: Callable[[Answer], bool]) -> asyncio.Future[Answer]:
        """Return the first answer from now on that is accepted."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def listen(answer: Answer) -> None:
            if not future.done() and accept(answer):
                future.set_result(answer)

        self._listeners.append(listen)
        future.add_done_callback(lambda _: self._listeners.remove(listen))
        return future

    async def answer_of(self, accept: Callable[[Answer], bool]) -> Answer:
        """Wait for the first answer from now on that is accepted."""
        return await asyncio.wait_for(self.next_answer(accept), LIMIT_S)

    async def ask(self, model: str, command: str, argument: Any = None) -> Reply:
        """Send one request beside the counted ones."""
        body = json.dumps([self._token(), command, argument, ""]).encode()
        return await call(self.port, "POST", f"/predictions/{model}", body)

    async def request(self, channel: Channel) -> None:
        """Send a request, again and again if need be, until it is settled."""
        tally, id_ = self.tally, next(self._ids)
        model = self._random.choice(self.targets)
        tally.sent += 1
        self._outstanding.add(id_)
        try:
            await asyncio.wait_for(self._until_settled(channel, model, tally), LIMIT_S)
        except asyncio.TimeoutError:
            tally.fail(f"no answer within {LIMIT_S:g} s")
        finally:
            self._outstanding.discard(id_)

    async def _until_settled(self, channel: Channel, model: str, tally: Tally) -> None:
        filler = "x" * (_LARGE_BYTES if self._random.randrange(_LARGE_EVERY) == 0 else 0)
        for attempt in itertools.count():
            token, sent_at = self._token(), time.monotonic()
            body = json.dumps([token, "work", WORK_S, filler]).encode()
            try:
                reply = await channel.ask(encode_request("POST", f"/predictions/{model}", body))
            except (OSError, Cut) as error:
                reason = f"{type(error).__name__} {error}"
                if self.outage is None or not self.outage.excuses(sent_at):
                    tally.fail(reason)
                    return
                self.unanswered.append(token)
                tally.refuse(type(error).__name__)
            else:
                if reply.status != 503 or "retry-after" not in reply.headers:
                    self._settle(reply, model, token, filler, sent_at, tally)
                    return
                tally.refuse(f"503 {reply.code}")
            await asyncio.sleep(min(_RETRY_S * 2.0 ** min(attempt, 10), _MAX_RETRY_S))

    def _settle(
        self, reply: Reply, model: str, token: str, filler: str, sent_at: float, tally: Tally
    ) -> None:
        if reply.status != 200:
            tally.fail(f"{reply.status} {reply.code} from {model}")
            return
        document = reply.json()
        if document.get("token") != token or document.get("filler") != filler:
            tally.wrong += 1
            tally.reasons["wrong: the answer of another request"] += 1
            return
        tally.answered += 1
        now, current = time.monotonic(), self.tally
        current.longest_gap_s = max(current.longest_gap_s, now - current.last_answer_at)
        current.last_answer_at = now
        answer = Answer(model, document["mark"], document["pid"], sent_at, now)
        for listen in list(self._listeners):
            listen(answer)

    def _token(self) -> str:
        return f"{next(self._ids)}-{self._random.getrandbits(32):08x}"
