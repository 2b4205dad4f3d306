"""What handlers say besides the body must not move the border between two answers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.kit.archives import make_mar
from tests.kit.server import RunningServer, StartServer
from tests.kit.waiting import LIMIT_S

pytestmark = pytest.mark.asyncio(loop_scope="module")

SECOND = json.dumps({"answer": "the second one"}).encode()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(folder: Path, start_shared: StartServer) -> RunningServer:
    return await start_shared(obeys=make_mar(folder, "obeys", name="obeys"))


def post(body: bytes, *headers: str, path: str = "/predictions/obeys") -> bytes:
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: localhost",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def pipelined(
    server: RunningServer, order: dict[str, Any], path: str = "/predictions/obeys"
) -> tuple[int, dict[str, list[str]], bytes]:
    """Send an order and, in the same packet, a second request; check that its answer is in step.

    Returns:
        Status, headers and body of the first answer.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        first = post(json.dumps(order).encode(), path=path)
        writer.write(first + post(SECOND, "Connection: close"))
        raw = await asyncio.wait_for(reader.read(), LIMIT_S)
    finally:
        writer.close()
        await writer.wait_closed()
    status, headers, rest = parse(raw)
    length = int(headers.get("content-length", ["0"])[0])
    body, rest = rest[:length], rest[length:]
    assert "transfer-encoding" not in headers
    second_status, _, second_body = parse(rest)
    assert (second_status, second_body) == (200, b"the second one"), raw
    return status, headers, body


def parse(raw: bytes) -> tuple[int, dict[str, list[str]], bytes]:
    head, _, rest = raw.partition(b"\r\n\r\n")
    line, *fields = head.split(b"\r\n")
    assert line.startswith(b"HTTP/1.1 "), raw[:300]
    headers: dict[str, list[str]] = {}
    for field in fields:
        name, separator, value = field.decode("latin-1").partition(":")
        assert separator, raw[:300]
        headers.setdefault(name.lower(), []).append(value.strip())
    return int(line.split()[1]), headers, rest


OURS = [
    ("Content-Length", "1"),
    ("content-LENGTH", "999999"),
    ("Content-Length", "-1"),
    ("Transfer-Encoding", "chunked"),
    ("transfer-encoding", "gzip, chunked"),
    ("Connection", "close"),
    ("Connection", "upgrade"),
    ("Keep-Alive", "timeout=1"),
    ("Proxy-Connection", "close"),
    ("Proxy-Authenticate", "Basic"),
    ("TE", "trailers"),
    ("Trailer", "X-Sum"),
    ("Upgrade", "h2c"),
    ("Date", "yesterday"),
    ("Server", "secret/1.0"),
    ("x-request-id", "forged"),
    ("Inference-Header-Content-Length", "7"),
]


@pytest.mark.parametrize(("name", "value"), OURS)
async def test_v14_framing_and_hop_by_hop_headers_are_the_server_s(
    server: RunningServer, name: str, value: str
) -> None:
    order = {"headers": [[name, value], ["X-Mine", "kept"]]}
    status, headers, body = await pipelined(server, order)
    assert (status, body) == (200, b"ok")
    assert value not in headers.get(name.lower(), [])
    assert headers["x-mine"] == ["kept"]
    assert headers["content-length"] == ["2"]


IMPOSSIBLE = [
    {"headers": [["X-A", "b\r\nX-Injected: 1"]]},
    {"headers": [["X-A", "b\nc"]]},
    {"headers": [["X-A", "b\rc"]]},
    {"headers": [["X-A", "b\0c"]]},
    {"headers": [["X-A", "b\x1b[31m"]]},
    {"headers": [["X-A", "b\x7f"]]},
    {"headers": [["X-A", "\ud800"]]},
    {"headers": [["X A", "b"]]},
    {"headers": [["", "b"]]},
    {"headers": [["X-A:", "b"]]},
    {"headers": [["X-A\r\nX-Injected", "b"]]},
    {"headers": [["Content-Length ", "1"]]},
    {"headers": [["X-\u00e9", "b"]]},
    {"headers": [["x" * 200 + "(", "b"]]},
    {"headers": [["X-A", "y" * 20_000]]},
    {"count": 101},
    {"count": 10_000},
    {"count": 90, "each": 1_000},
    {"type": "text/plain\r\nX-Injected: 1"},
    {"type": "text/\0plain"},
    {"type": "x" * 20_000},
    {"status": 200, "phrase": "fine\0"},
    {"status": 200, "phrase": "\ud800"},
    {"status": 100},
    {"status": 101},
    {"status": 199},
    {"status": 1000},
    {"status": "200"},
    {"status": True},
    {"status": 2**70},
]


@pytest.mark.parametrize("order", IMPOSSIBLE, ids=lambda o: repr(o)[:40])
async def test_v14_what_cannot_be_sent_is_a_500_of_that_request_alone(
    server: RunningServer, order: dict[str, Any]
) -> None:
    counted = {"model": "obeys", "code": "500"}
    before = await server.metric("mms_requests_total", **counted)
    status, headers, body = await pipelined(server, order)
    assert status == 500
    assert json.loads(body)["error"]["code"] == "invalid_service_output"
    assert "x-injected" not in headers
    assert len(body) < 2_000
    assert await server.metric("mms_requests_total", **counted) == before + 1


@pytest.mark.parametrize("status", [204, 205, 304])
async def test_v14_an_answer_without_a_body_has_none(server: RunningServer, status: int) -> None:
    found, _, body = await pipelined(server, {"status": status, "answer": "a body nevertheless"})
    assert (found, body) == (status, b"")


@pytest.mark.parametrize("path", ["/invocations", "/models/obeys/invoke", "/obeys/predict"])
async def test_v14_holds_on_every_route_of_a_handler(server: RunningServer, path: str) -> None:
    order = {"headers": [["Content-Length", "1"], ["Transfer-Encoding", "chunked"]]}
    status, _, body = await pipelined(server, order, path)
    assert (status, body) == (200, b"ok")
    status, _, body = await pipelined(server, {"status": 204, "answer": "more"}, path)
    assert (status, body) == (204, b"")


@pytest.mark.parametrize("status", [204, 304, 200])
async def test_v14_in_the_open_inference_protocol_too(server: RunningServer, status: int) -> None:
    order = json.dumps(
        {
            "headers": [["Content-Length", "1"], ["inference-header-content-length", "1"]],
            "status": status,
        }
    )
    document = {"inputs": [{"name": "order", "shape": [1], "datatype": "BYTES", "data": [order]}]}
    found, headers, body = await pipelined(server, document, "/v2/models/obeys/infer")
    assert found == status
    assert "inference-header-content-length" not in headers
    assert bool(body) == (status == 200)


@pytest.mark.parametrize("code", [100, 101, 199, 1000, "x"])
async def test_v14_a_status_raised_that_no_answer_can_have_is_500(
    server: RunningServer, code: Any
) -> None:
    status, _, body = await pipelined(server, {"raises": code})
    assert (status, json.loads(body)["error"]["code"]) == (500, "rejected_by_service")


@pytest.mark.parametrize("code", [200, 302, 600, 999])
async def test_v14_any_other_status_may_be_raised(server: RunningServer, code: int) -> None:
    # 1.x sends it with a document of code, type and message.
    status, _, body = await pipelined(server, {"raises": code})
    document = json.loads(body)
    assert (status, document["code"], document["message"]) == (code, code, "chosen")


@pytest.mark.parametrize("code", [204, 304])
async def test_v14_one_without_a_body_has_none(server: RunningServer, code: int) -> None:
    assert (await pipelined(server, {"raises": code}))[::2] == (code, b"")


@pytest.mark.parametrize("status", [600, 999])
async def test_v14_statuses_of_ones_own_are_sent(server: RunningServer, status: int) -> None:
    # 1.x sends them, too.
    found, _, body = await pipelined(server, {"status": status})
    assert (found, body) == (status, b"ok")


async def test_v14_a_phrase_is_cut_and_its_line_breaks_go(server: RunningServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    order = {"status": 201, "phrase": "Made\r\nX-Injected: 1 " + "z" * 1_000}
    writer.write(post(json.dumps(order).encode(), "Connection: close"))
    raw = await asyncio.wait_for(reader.read(), LIMIT_S)
    writer.close()
    await writer.wait_closed()
    line = raw.split(b"\r\n")[0]
    assert line.startswith(b"HTTP/1.1 201 Made X-Injected: 1 zzz")
    assert len(line) < 300


async def test_v14_of_several_spellings_one_is_sent(server: RunningServer) -> None:
    order = {
        "headers": [
            ["X-A", "first"],
            ["x-a", "last"],
            ["CONTENT-TYPE", "text/a"],
            ["content-type", "text/b"],
        ]
    }
    _, headers, _ = await pipelined(server, order)
    assert headers["x-a"] == ["last"]
    assert headers["content-type"] == ["text/b"]
