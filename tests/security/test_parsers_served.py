"""Through the whole server: what is too much is refused, and the next request is served."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from tests.kit.archives import make_archive
from tests.kit.server import RunningServer, running_servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
GZIP = {**JSON, "Content-Encoding": "gzip"}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningServer]:
    folder = tmp_path_factory.mktemp("parsers")
    limits = {"max_form_bytes": 1 << 20, "max_json_elements": 100_000}
    async with running_servers(folder) as start:
        running = await start(limits, echo=make_archive(folder, "echo"))
        # Opens the connection that all tests share.
        await running.ask("echo", [1])
        yield running


def tensors(*data: Sequence[object]) -> bytes:
    inputs = [
        {"name": f"n{n}", "shape": [len(value)], "datatype": "FP32", "data": value}
        for n, value in enumerate(data)
    ]
    return json.dumps({"inputs": inputs}).encode()


ATTACKS = {
    "v02 bomb": (GZIP, gzip.compress(bytes(20 << 20)), 413, "--max-decompression-ratio"),
    "v04 text among numbers": (JSON, tensors([1, "x" * 100_000]), 400, "must contain FP32"),
    "v05 many inputs": (JSON, tensors(*[[1]] * 2000), 400, "2000 inputs, at most 1000"),
    "v05 f-string": (FORM, b"data=f'" + b"{1}" * 50_000 + b"'", 400, "Python literal"),
    "v05 or": (FORM, b"data=" + b"1or " * 100_000, 400, "Python literal"),
    "v05 escapes": (FORM, b"data=" + b"%5B" * 400_000, 413, "--max-form-bytes"),
    "v05 fields": (FORM, b"a&" * 1000, 413, "--max-form-fields"),
    "v05 elements": (JSON, b"[" + b"[]," * 200_000 + b"[]]", 413, "--max-json-elements"),
    "v06 attributes": (FORM, b"data=a" + b".a" * 200_000, 400, "Python literal"),
    "v18 charset": ({"Content-Type": "application/json; charset=klingon"}, b"[]", 415, "UTF-8"),
    "v23 truncated": (GZIP, gzip.compress(b"[1]")[:-4], 400, "truncated"),
    "v23 brotli": ({**JSON, "Content-Encoding": "br"}, b"[1]", 415, "gzip, deflate and identity"),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_an_attack_is_named_and_the_next_request_is_served(
    server: RunningServer, attack: str
) -> None:
    headers, body, status, words = ATTACKS[attack]
    is_v2 = attack in ("v04 text among numbers", "v05 many inputs")
    path = "/v2/models/echo/infer" if is_v2 else "/predictions/echo"
    pid = await server.ask("echo", ["pid"])
    async with server.session.post(
        server.url + path, data=io.BytesIO(body), headers=headers
    ) as response:
        answer = await response.json()
        assert (response.status, words in json.dumps(answer)) == (status, True), answer
    assert await server.ask("echo", ["pid"]) == pid


async def test_v23_a_packed_body_is_unpacked_and_integers_stay_exact(server: RunningServer) -> None:
    url = f"{server.url}/predictions/echo"
    async with server.session.post(url, data=gzip.compress(b"[1,[2]]"), headers=GZIP) as response:
        assert (response.status, await response.json()) == (200, [1, [2]])
    assert await server.ask("echo", [2**53 + 1, 2**64 - 1]) == (200, [2**53 + 1, 2**64 - 1])
