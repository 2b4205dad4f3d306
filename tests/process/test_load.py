"""The load generator: what it sends when, and that no wrong, lost or late answer passes it by."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from benchmarks.attacks import attack
from tests.kit.load.channel import Channel, Cut
from tests.kit.load.connection import connect
from tests.kit.load.measured import Load, LoadFailed, put_load
from tests.kit.load.patterns import ClosedLoop, OpenLoop
from tests.kit.load.requests import TOKEN, Requests
from tests.kit.load.schedule import arrivals
from tests.kit.load.wire import NoLength, Reply, answer_length, encode_request

LIMIT_S = 30.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
REQUEST = encode_request("POST", "/", b"{}")

#: Returns what a request with this body is answered with.
Answer = Callable[[bytes], bytes]


class Last(bytes):
    """Bytes after which the server closes the connection."""


@contextlib.asynccontextmanager
async def answering(answer: Answer, greeting: bytes = b"") -> AsyncIterator[int]:
    """Serve on a port until the block ends."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        writer.write(greeting)
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.partition(b"Content-Length: ")[2].split(b"\r\n")[0])
                reply = answer(await reader.readexactly(length))
                writer.write(reply)
                if isinstance(reply, Last):
                    break
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(0)


def echo(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def load_on(port: int, body: bytes = b"{}", **options: object) -> Load:
    chosen = {"connections": 2, "warm_up_s": 0.0, "seconds": 0.2, **options}
    return Load(f"http://127.0.0.1:{port}/", "application/json", body, **chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [
        OK,
        b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"8;a=b\r\n0\r\n\r\n0\r\n\r\n0\r\nA: b\r\nC: d\r\n\r\n",
    ],
    ids=["length", "empty", "no body", "chunks", "chunks that look like the last, and trailers"],
)
def test_an_answer_ends_where_it_says(answer: bytes) -> None:
    assert not any(answer_length(answer[:end]) for end in range(len(answer)))
    assert answer_length(answer) == len(answer)
    assert answer_length(answer + OK) == len(answer)


def test_an_answer_that_has_no_end_is_refused() -> None:
    with pytest.raises(NoLength):
        answer_length(b"HTTP/1.1 200 OK\r\n\r\n{}")


def test_a_reply_has_status_headers_and_the_code_of_our_errors() -> None:
    body = b'{"error": {"code": "queue_full"}}'
    head = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: %d\r\n\r\n"
    reply = Reply.decode(head % len(body) + body)
    assert (reply.status, reply.headers["retry-after"], reply.code) == (503, "1", "queue_full")
    assert Reply.decode(OK).code == ""


def test_every_request_with_a_token_has_one_of_its_own_and_wants_it_back() -> None:
    requests = Requests(encode_request("POST", "/", b'["%b"]' % TOKEN), b"[")
    sent = [requests.next() for _ in range(100)]
    assert len({token for _, token in sent}) == len({request for request, _ in sent}) == 100
    (first, token), (second, other) = sent[:2]
    assert len(first) == len(second)
    assert token in first
    assert TOKEN not in first
    assert requests.is_right(echo(b'["%b"]' % token), token)
    assert not requests.is_right(echo(b'["%b"]' % other), token)
    assert not requests.is_right(echo(token), token)
    assert not requests.is_right(echo(b'["%b"]' % token).replace(b"200", b"500"), token)


def test_bursts_come_at_once_at_the_rate_asked_for() -> None:
    times = list(itertools.islice(arrivals(1000.0, random.Random(3), burst=8), 16_000))
    assert set(Counter(times).values()) == {8}
    # Five standard deviations of 2,000 exponential gaps.
    assert times[-1] == pytest.approx(16.0, rel=5 / 2000**0.5)


async def test_a_load_whose_answers_are_right_counts_them_all() -> None:
    asked: list[bytes] = []

    def answer(body: bytes) -> bytes:
        asked.append(body)
        return echo(body)

    async with answering(answer) as port:
        result = await put_load(load_on(port, b'["%b"]' % TOKEN, answer=b'["'))
    assert result["failed"] == 0
    assert result["answered"] == len(asked) == len(set(asked)) > 2
    assert result["requests_per_s"] > 0


async def test_a_swapped_answer_is_counted_as_failed_and_not_as_served() -> None:
    last = [b"none"]

    def answer(body: bytes) -> bytes:
        last.append(body)
        return echo(last.pop(0))

    async with answering(answer) as port:
        result = await put_load(load_on(port, b'["%b"]' % TOKEN))
    assert result["failed"] == result["answered"] > 0
    assert result["requests_per_s"] == 0
    assert result["first_failure"].startswith("HTTP/1.1 200 ")


async def test_two_answers_to_one_request_end_a_load() -> None:
    async with answering(lambda _: OK + OK) as port:
        with pytest.raises(LoadFailed, match="nobody asked for"):
            await put_load(load_on(port))


async def test_an_answer_without_a_request_is_a_lost_connection() -> None:
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    answered: list[bytes] = []
    async with answering(echo, greeting=OK) as port:
        connection = await connect("127.0.0.1", port, answered.append, lost.set_result)
        assert "nobody asked for" in await asyncio.wait_for(lost, LIMIT_S)
        connection.send(REQUEST)
    assert not answered


@pytest.mark.parametrize("rate", [None, 500.0], ids=["closed", "open"])
async def test_a_lost_connection_ends_a_load_or_is_counted_and_opened_anew(
    rate: float | None,
) -> None:
    def closing() -> Answer:
        turns = itertools.count(1)
        return lambda _: OK if next(turns) % 5 else Last()

    async with answering(closing()) as port:
        with pytest.raises(LoadFailed, match="the server closed a connection"):
            await put_load(load_on(port, rate=rate))
    async with answering(closing()) as port:
        result = await put_load(load_on(port, rate=rate, reconnects=True))
    assert result["failed"] > 0
    assert result["answered"] >= 4 * result["failed"] - 4
    assert result["first_failure"] == "the server closed a connection"


async def test_a_load_on_nothing_says_so() -> None:
    async with answering(echo) as port:
        pass
    with pytest.raises(LoadFailed, match="cannot be reached"):
        await put_load(load_on(port))


async def test_a_channel_that_was_cut_says_so_and_is_opened_anew() -> None:
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
    replies = iter([OK, Last(OK[:-1]), Last(closing), Last(OK), OK])
    async with answering(lambda _: next(replies)) as port:
        channel = Channel(port)
        assert (await channel.ask(REQUEST)).json() == {}
        with pytest.raises(Cut, match=f"after {len(OK) - 1} bytes"):
            await channel.ask(REQUEST)
        assert (await channel.ask(REQUEST)).headers["connection"] == "close"
        assert (await channel.ask(REQUEST)).status == 200
        # Closed without a word, and the next request is told, whether it has been noticed or not.
        await asyncio.sleep(0.05)
        with pytest.raises(Cut, match="the server closed a connection"):
            await channel.ask(REQUEST)
        assert (await channel.ask(REQUEST)).status == 200
        channel.close()
    with pytest.raises(OSError, match="Connect"):
        await channel.ask(REQUEST)


class Asked:
    """A client that is answered when the test says so."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.asked = asyncio.Event()

    def ask(self, since: float) -> None:
        self.times.append(since)
        self.asked.set()


async def test_a_closed_loop_asks_again_until_it_stops_and_waits_for_all() -> None:
    first, second = Asked(), Asked()
    pattern = ClosedLoop()
    pattern.start([first, second])
    pattern.settled(first, 1.0)
    assert first.times[1:] == [1.0]
    pattern.stop()
    pattern.settled(second, 2.0)
    assert len(second.times) == 1
    assert not pattern.finished.done()
    pattern.settled(first, 3.0)
    assert pattern.finished.done()


async def test_an_open_loop_sends_late_what_found_nobody_free_but_counts_from_its_time() -> None:
    pattern = OpenLoop([0.0, 0.001, 0.002])

    class Slow(Asked):
        def ask(self, since: float) -> None:
            super().ask(since)
            asyncio.get_running_loop().call_later(0.01, pattern.settled, self, since + 0.01)

    client = Slow()
    pattern.start([client])
    await asyncio.wait_for(pattern.finished, LIMIT_S)
    first = client.times[0]
    assert client.times == pytest.approx([first, first + 0.001, first + 0.002])
    assert len(pattern.lags) == 1


async def test_an_open_loop_that_stops_drops_what_waits() -> None:
    client, pattern = Asked(), OpenLoop([0.0, 0.0])
    pattern.start([client])
    await asyncio.wait_for(client.asked.wait(), LIMIT_S)
    pattern.stop()
    pattern.settled(client, 0.0)
    assert pattern.finished.done()
    assert len(client.times) == 1


async def test_an_open_loop_that_may_have_more_clients_lets_nobody_wait() -> None:
    clients: list[Asked] = []
    are_many = asyncio.Event()

    def more() -> Asked:
        clients.append(Asked())
        if len(clients) == 5:
            are_many.set()
        return clients[-1]

    pattern = OpenLoop(arrivals(1000.0, random.Random(3)), more)
    pattern.start([])
    await asyncio.wait_for(are_many.wait(), LIMIT_S)
    assert all(len(client.times) == 1 for client in clients)
    pattern.stop()
    for client in clients:
        assert not pattern.finished.done()
        pattern.settled(client, 0.0)
    assert pattern.finished.done()


@pytest.mark.parametrize("name", ["requests that kill", "answers that nobody reads"])
async def test_an_attack_goes_on_whether_or_not_it_reads_its_answers(name: str) -> None:
    asked: list[bytes] = []

    def answer(body: bytes) -> bytes:
        asked.append(body)
        return OK

    async with answering(answer) as port:
        await asyncio.wait_for(attack(f"http://127.0.0.1:{port}", name, count=100), LIMIT_S)
    # Those of the last connections may not have been read yet.
    assert len(asked) >= 80
