"""The same traffic over HTTP and gRPC: who answers, with what status, what is counted and logged.

Each case runs once over either transport, on a server of its own. What is to come of it is stated
once, so that neither transport can drift from it, nor from the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import pytest

from mms.grpc import inference_pb2 as pb
from mms.grpc import inference_pb2_grpc
from mms.grpc.errors import HTTP_STATUSES
from tests.kit.archives import HANDLERS, source_of
from tests.kit.server import RunningServer, running_servers
from tests.kit.waiting import let_go, until, waiting
from tests.v2.models import body_of, tensor

ROUTES = {"v2_infer", "v2_infer_version", "grpc_infer"}


@dataclass
class Seen:
    """What a case has shown.

    Attributes:
        answers: (version, status) of each answer, in the order in which they were asked for.
        counted: Number of calls by (version, status); the version is "" if there is none.
        refused: Number of refusals by (version, reason).
        logged: Level and status of each line about what went wrong.
    """

    answers: list[tuple[str, int]] = field(default_factory=list)
    counted: Counter[tuple[str, int]] = field(default_factory=Counter)
    refused: Counter[tuple[str, str]] = field(default_factory=Counter)
    logged: list[tuple[str, str]] = field(default_factory=list)


class Client:
    """Asks over one transport."""

    async def ask(
        self, do: str, model: str = "told", version: str = "", user: str = ""
    ) -> tuple[str, int]:
        """Return which version answered, "" if none did, and with what status."""
        raise NotImplementedError


class HttpClient(Client):
    def __init__(self, server: RunningServer) -> None:
        self._server = server

    async def ask(
        self, do: str, model: str = "told", version: str = "", user: str = ""
    ) -> tuple[str, int]:
        path = f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"
        body = body_of(tensor("do", "BYTES", [1], [do]))
        headers = {"X-User": user} if user else {}
        url = f"{self._server.url}{path}/infer"
        async with self._server.session.post(url, data=body, headers=headers) as response:
            document = orjson.loads(await response.read())
            return document.get("model_version", ""), response.status


class GrpcClient(Client):
    def __init__(self, stub: Any) -> None:
        self._stub = stub

    async def ask(
        self, do: str, model: str = "told", version: str = "", user: str = ""
    ) -> tuple[str, int]:
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name="do", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
            do.encode()
        )
        metadata = (("x-user", user),) if user else ()
        call = self._stub.ModelInfer(request, metadata=metadata)
        try:
            # Its exceptions outlive the loop, and make another one when they are collected.
            code = await call.code()
        except asyncio.CancelledError:
            call.cancel()
            raise
        if code is not grpc.StatusCode.OK:
            return "", HTTP_STATUSES[code]
        return (await call).model_version, 200


@contextlib.asynccontextmanager
async def over_http(server: RunningServer) -> AsyncIterator[Client]:
    yield HttpClient(server)


@contextlib.asynccontextmanager
async def over_grpc(server: RunningServer) -> AsyncIterator[Client]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        yield GrpcClient(inference_pb2_grpc.GRPCInferenceServiceStub(channel))


@dataclass
class Stage:
    """Where a case plays.

    Attributes:
        server: With the model `told` in version 1, and one worker.
        client: Asks over the transport at hand.
        folder: Where services wait, and what a second version is made of.
    """

    server: RunningServer
    client: Client
    folder: Path

    def start(self, do: str, **options: str) -> asyncio.Task[tuple[str, int]]:
        return asyncio.create_task(self.client.ask(do, **options))

    async def occupy(self) -> asyncio.Task[tuple[str, int]]:
        """Have the only worker wait for `release`."""
        task = self.start(f"wait {self.folder}")
        await waiting(self.folder)
        return task

    def release(self) -> None:
        let_go(self.folder)

    async def add_version(self) -> None:
        """Register version 2, which is not the default."""
        await self.server.register("told", self.folder, "2", handler="service:handle")

    async def split(self, **traffic: Any) -> None:
        assert (await self.server.manage("PUT", "/models/told/traffic", traffic))[0] == 200


async def plain(stage: Stage) -> list[tuple[str, int]]:
    return [await stage.client.ask("say"), await stage.client.ask("say", version="1")]


async def unknown(stage: Stage) -> list[tuple[str, int]]:
    ask = stage.client.ask
    return [await ask("say", model="nobody"), await ask("say", version="7")]


async def split(stage: Stage) -> list[tuple[str, int]]:
    await stage.add_version()
    await stage.split(weights={"1": 0, "2": 1})
    return [await stage.client.ask("say"), await stage.client.ask("say", version="1")]


async def sticky(stage: Stage) -> list[tuple[str, int]]:
    await stage.add_version()
    await stage.split(weights={"1": 1, "2": 1}, sticky_header="X-User")
    return [await stage.client.ask("say", user=user) for user in ("1", "5", "1", "5")]


async def shadow(stage: Stage) -> list[tuple[str, int]]:
    await stage.add_version()
    await stage.split(shadow="2")
    answers = [await stage.client.ask("say")]
    await until(lambda: stage.server.shadows["told", "2", "same"] == 1)
    return answers


async def replaced(stage: Stage) -> list[tuple[str, int]]:
    await stage.add_version()
    stage.server.set_default("told", "2")
    await stage.server.unregister("told", "1")
    return [await stage.client.ask("say"), await stage.client.ask("say", version="1")]


async def raises(stage: Stage) -> list[tuple[str, int]]:
    return [await stage.client.ask("raise")]


async def dies(stage: Stage) -> list[tuple[str, int]]:
    return [await stage.client.ask("die")]


async def queue_full(stage: Stage) -> list[tuple[str, int]]:
    running = await stage.occupy()
    waits = stage.start("say")
    await until(lambda: stage.server.servable("told").queue_depth == 1)
    refused = await stage.client.ask("say")
    stage.release()
    return [await running, await waits, refused]


async def deadline(stage: Stage) -> list[tuple[str, int]]:
    return [await stage.client.ask(f"wait {stage.folder}")]


async def client_left(stage: Stage) -> list[tuple[str, int]]:
    running = await stage.occupy()
    leaves = stage.start("say")
    servable = stage.server.servable("told")
    await until(lambda: servable.queue_depth == 1)
    leaves.cancel()
    await until(lambda: servable.rejected["client_left"] == 1)
    stage.release()
    return [await running]


async def draining(stage: Stage) -> list[tuple[str, int]]:
    running = await stage.occupy()
    # A connection that is open already: the server takes no new ones.
    late = stage.start("say")
    await until(lambda: stage.server.servable("told").queue_depth == 1)
    with stage.server.while_draining():
        refused = await stage.client.ask("say")
    stage.release()
    return [await running, await late, refused]


async def not_ready(stage: Stage) -> list[tuple[str, int]]:
    with stage.server.before_its_start():
        return [await stage.client.ask("say", model="later")]


async def failed(stage: Stage) -> list[tuple[str, int]]:
    stage.server.servable("told").fail()
    return [await stage.client.ask("say")]


Case = Callable[[Stage], Awaitable[list[tuple[str, int]]]]

EXPECTED: dict[Case, tuple[dict[str, Any], Seen]] = {
    plain: ({}, Seen([("1", 200)] * 2, Counter({("1", 200): 2}))),
    unknown: (
        {},
        Seen(
            [("", 404)] * 2,
            Counter({("", 404): 2}),
            Counter({("", "model_not_found"): 1, ("", "version_not_found"): 1}),
            [("DEBUG", "404")] * 2,
        ),
    ),
    split: ({}, Seen([("2", 200), ("1", 200)], Counter({("1", 200): 1, ("2", 200): 1}))),
    # CRC-32 of "1" is odd, of "5" even.
    sticky: (
        {},
        Seen(
            [("2", 200), ("1", 200)] * 2,
            Counter({("1", 200): 2, ("2", 200): 2}),
        ),
    ),
    shadow: ({}, Seen([("1", 200)], Counter({("1", 200): 1}))),
    replaced: (
        {},
        Seen(
            [("2", 200), ("", 404)],
            Counter({("2", 200): 1, ("", 404): 1}),
            Counter({("", "version_not_found"): 1}),
            [("DEBUG", "404")],
        ),
    ),
    raises: (
        {},
        Seen([("", 500)], Counter({("1", 500): 1}), logged=[("WARNING", "500")]),
    ),
    dies: (
        {"retry_on_crash": False},
        Seen(
            [("", 500)],
            Counter({("1", 500): 1}),
            Counter({("1", "worker_died"): 1}),
            [("WARNING", "500")],
        ),
    ),
    queue_full: (
        {"queue_size": 1},
        Seen(
            [("1", 200), ("1", 200), ("", 503)],
            Counter({("1", 200): 2, ("1", 503): 1}),
            Counter({("1", "queue_full"): 1}),
            [("DEBUG", "503")],
        ),
    ),
    deadline: (
        {"response_timeout": 0.5},
        Seen(
            [("", 504)],
            Counter({("1", 504): 1}),
            Counter({("1", "deadline_exceeded"): 1}),
            [("WARNING", "504")],
        ),
    ),
    client_left: (
        {},
        Seen(
            [("1", 200)],
            Counter({("1", 200): 1, ("1", 499): 1}),
            Counter({("1", "client_left"): 1}),
        ),
    ),
    draining: (
        {},
        Seen(
            [("1", 200), ("1", 200), ("", 503)],
            Counter({("1", 200): 2, ("1", 503): 1}),
            Counter({("1", "draining"): 1}),
            [("DEBUG", "503")],
        ),
    ),
    not_ready: (
        {},
        Seen(
            [("", 503)],
            Counter({("", 503): 1}),
            Counter({("", "model_not_ready"): 1}),
            [("DEBUG", "503")],
        ),
    ),
    failed: (
        {},
        Seen(
            [("", 503)],
            Counter({("1", 503): 1}),
            Counter({("1", "model_not_ready"): 1}),
            [("DEBUG", "503")],
        ),
    ),
}


@pytest.mark.parametrize("transport", [over_http, over_grpc])
@pytest.mark.parametrize("case", EXPECTED, ids=lambda case: case.__name__)
async def test_both_transports_show_the_same(
    transport: Callable[[RunningServer], contextlib.AbstractAsyncContextManager[Client]],
    case: Case,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "mms.requests")
    folder = tmp_path / "told"
    folder.mkdir()
    (folder / "service.py").write_text(source_of("told", HANDLERS))
    settings, expected = EXPECTED[case]
    told = (folder, {"handler": "service:handle", **settings})
    async with running_servers(tmp_path) as start:
        server = await start({"grpc_port": 0, "management_port": 0}, told=told)
        async with transport(server) as client:
            seen = Seen(await case(Stage(server, client, folder)))
            await until(lambda: sum(counted(server).values()) == sum(expected.counted.values()))
            seen.counted = counted(server)
            seen.refused = refused(server)
    seen.logged = [
        (record.levelname, str(record.args[0]))
        for record in caplog.records
        if record.name == "mms.requests" and isinstance(record.args, tuple)
    ]
    # They hold errors, and these, by their tracebacks, the calls.
    caplog.clear()
    assert seen == expected


def counted(server: RunningServer) -> Counter[tuple[str, int]]:
    found: Counter[tuple[str, int]] = Counter()
    for version, requests in by_version(server, "requests"):
        for (route, status), count in requests.items():
            if route in ROUTES:
                found[version, status] += count
    return found


def refused(server: RunningServer) -> Counter[tuple[str, str]]:
    return Counter(
        {
            (version, reason): count
            for version, reasons in by_version(server, "rejected")
            for reason, count in reasons.items()
        }
    )


def by_version(server: RunningServer, name: str) -> list[tuple[str, Counter[Any]]]:
    versions = [(servable.version, getattr(servable, name)) for servable in server.servables()]
    return [*versions, ("", getattr(server, name))]


async def test_a_version_is_chosen_when_the_body_has_come(tmp_path: Path) -> None:
    """A version that goes while the body comes is nobody's answer, and nobody notices."""
    folder = tmp_path / "told"
    folder.mkdir()
    (folder / "service.py").write_text(source_of("told", HANDLERS))
    came, whole = asyncio.Event(), body_of(tensor("do", "BYTES", [1], ["say"]))

    async def body() -> AsyncIterator[bytes]:
        yield whole[:10]
        await came.wait()
        yield whole[10:]

    async with running_servers(tmp_path) as start:
        server = await start({"management_port": 0}, told=(folder, {"handler": "service:handle"}))
        url = f"{server.url}/v2/models/told/infer"
        asking = asyncio.create_task(_version_of(server.session, url, body()))
        await until(lambda: server.budget.held > 0)
        await server.register("told", folder, "2", handler="service:handle")
        server.set_default("told", "2")
        await server.unregister("told", "1")
        came.set()
        assert await asking == "2"


async def _version_of(session: aiohttp.ClientSession, url: str, body: Any) -> str:
    async with session.post(url, data=body) as response:
        return str((await response.json())["model_version"])
