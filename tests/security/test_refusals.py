"""Every reason for which a call is refused is counted, once, under its own name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from mms.config.settings import TOKEN_VARIABLE
from mms.export.package import export_model
from mms.serving.dataplane import reasons
from tests.kit.archives import make_archive, signature, write_linear
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import until
from tests.security.edge import big, busy, command, connect, http, start_edge

TOKEN = "a token of sixteen characters"
MB = 1 << 20
JSON = "Content-Type: application/json"

Provoke = Callable[["Stage"], Awaitable[None]]


class Stage:
    """A server of its own for each reason, with the service `edge` and one worker."""

    def __init__(self, start: StartServer, folder: Path) -> None:
        self._start = start
        self.folder = folder
        self.server: RunningServer

    async def start(self, server: dict[str, Any] | None = None, **model: Any) -> None:
        self.server = await start_edge(self._start, self.folder, server, **model)

    async def refused(self, request: bytes, *, in_management: bool = False) -> str:
        """Send a request that is refused, and return the code of its answer."""
        port = self.server.management_port if in_management else self.server.port
        async with connect(self.server, port=port) as client:
            await client.send(request)
            return (await client.error())[1]


async def invalid_request(stage: Stage) -> None:
    await stage.start()
    assert await stage.refused(http(b"{", JSON)) == "invalid_request"


async def invalid_input_shape(stage: Stage) -> None:
    path = export_model("linear", write_linear(stage.folder / "linear"), None, stage.folder).path
    stage.server = await stage._start({}, linear=path)
    request = http(b"[[1, 2]]", JSON, path="/predictions/linear")
    assert await stage.refused(request) == "invalid_input_shape"


async def undecodable_image(stage: Stage) -> None:
    document = signature([0, 3, 6, 8], "image/jpeg")
    path = make_archive(stage.folder, "vision", document, name="image")
    stage.server = await stage._start({}, image=path)
    request = http(b"no image", "Content-Type: image/jpeg", path="/predictions/image")
    assert await stage.refused(request) == "undecodable_image"


async def slow_client(stage: Stage) -> None:
    await stage.start({"body_timeout": 0.2})
    assert await stage.refused(http(b"[", JSON, "Content-Length: 9")) == "slow_client"


async def payload_too_large(stage: Stage) -> None:
    await stage.start({"max_request_bytes": 10})
    assert await stage.refused(http(b"[" + b" " * 20 + b"]", JSON)) == "payload_too_large"


async def unsupported_media(stage: Stage) -> None:
    await stage.start()
    assert await stage.refused(http(b"[]", "Content-Encoding: br")) == "unsupported_media"


async def model_not_found(stage: Stage) -> None:
    await stage.start()
    assert await stage.refused(http(path="/predictions/nobody")) == "model_not_found"


async def version_not_found(stage: Stage) -> None:
    await stage.start()
    assert await stage.refused(http(path="/predictions/edge/7")) == "version_not_found"


async def conflict(stage: Stage) -> None:
    await stage.start({"management_port": 0, "model_store": str(stage.folder)})
    request = http(path="/models?url=edge&model_name=edge")
    assert await stage.refused(request, in_management=True) == "conflict"


async def forbidden(stage: Stage) -> None:
    await stage.start()
    request = command("count", "").replace(b"Host: localhost", b"Host: elsewhere")
    assert await stage.refused(request) == "forbidden"


async def unauthorized(stage: Stage) -> None:
    await stage.start({"management_port": 0})
    assert await stage.refused(http(path="/models", method="GET"), in_management=True) == (
        "unauthorized"
    )


async def worker_died(stage: Stage) -> None:
    await stage.start(retry_on_crash=False)
    assert await stage.refused(command("die")) == "worker_died"


async def model_not_ready(stage: Stage) -> None:
    await stage.start()
    stage.server.servable("edge").fail()
    assert await stage.refused(command("count", "")) == "model_not_ready"


async def draining(stage: Stage) -> None:
    await stage.start()
    with stage.server.while_draining():
        assert await stage.refused(command("count", "")) == "draining"


async def queue_full(stage: Stage) -> None:
    await stage.start(queue_size=1)
    async with busy(stage.server, stage.folder) as runs, connect(stage.server) as waits:
        await waits.send(command("count", ""))
        await until(lambda: stage.server.servable("edge").queue_depth == 1)
        assert await stage.refused(command("count", "")) == "queue_full"
        (stage.folder / "go").touch()
        assert [(await client.answer())[0] for client in (runs, waits)] == [200, 200]


async def buffer_full(stage: Stage) -> None:
    await stage.start({"max_buffered_bytes": 4 * MB})
    async with busy(stage.server, stage.folder) as runs, connect(stage.server) as waits:
        await waits.send(http(big(2 * MB), JSON))
        await until(lambda: stage.server.budget.held > 2 * MB)
        assert await stage.refused(http(big(2 * MB), JSON)) == "buffer_full"
        (stage.folder / "go").touch()
        assert [(await client.answer())[0] for client in (runs, waits)] == [200, 200]


async def deadline_exceeded(stage: Stage) -> None:
    await stage.start()
    async with busy(stage.server, stage.folder) as runs:
        request = http(b'["count", ""]', JSON, "X-Request-Timeout-Ms: 50")
        assert await stage.refused(request) == "deadline_exceeded"
        (stage.folder / "go").touch()
        assert (await runs.answer())[0] == 200


async def out_of_memory(stage: Stage) -> None:
    await stage.start()
    assert await stage.refused(command("exhaust")) == "out_of_memory"


async def too_many_connections(stage: Stage) -> None:
    await stage.start({"max_connections": 1})
    async with connect(stage.server) as first:
        await until(lambda: stage.server.connections == 1)
        assert await stage.refused(b"") == "too_many_connections"
        await first.send(command("count", ""))
        assert (await first.answer())[0] == 200


async def client_left(stage: Stage) -> None:
    await stage.start()
    async with busy(stage.server, stage.folder) as runs:
        async with connect(stage.server) as leaves:
            await leaves.send(command("count", ""))
            await until(lambda: stage.server.servable("edge").queue_depth == 1)
        await until(lambda: stage.server.servable("edge").rejected["client_left"])
        (stage.folder / "go").touch()
        assert (await runs.answer())[0] == 200


async def slow_reader(stage: Stage) -> None:
    await stage.start({"write_timeout": 0.3})
    async with connect(stage.server, receive_buffer=4096) as client:
        await client.send(command("answer", 30 * MB))
        assert (await client.head())[0] == 200
        await until(lambda: stage.server.connections == 0)


CASES: list[Provoke] = [
    invalid_request, invalid_input_shape, undecodable_image, slow_client, payload_too_large,
    unsupported_media, model_not_found, version_not_found, conflict, forbidden, unauthorized,
    worker_died, model_not_ready, draining, queue_full, buffer_full, deadline_exceeded,
    out_of_memory, too_many_connections, client_left, slow_reader,
]  # fmt: skip


def test_there_is_a_case_for_each_reason_that_the_docs_list() -> None:
    assert sorted(case.__name__ for case in CASES) == reasons()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
async def test_a_refusal_is_counted_once_under_its_reason(
    case: Provoke, start_server: StartServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN if case is unauthorized else "")
    stage = Stage(start_server, tmp_path)
    await case(stage)
    expected = Counter({case.__name__: 1})
    await until(lambda: refusals(stage.server), what=f"a refusal for {case.__name__}")
    assert refusals(stage.server) == expected
    assert await stage.server.metric("mms_requests_rejected_total") == 1


def refusals(server: RunningServer) -> Counter[str]:
    found = Counter(server.rejected)
    for servable in server.servables():
        found += servable.rejected
    return found
