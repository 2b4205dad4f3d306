"""The example of a 1.x archive, built and asked as its README says, and with whole batches."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import FormData

from tests.examples.readme import EXAMPLES, Shell, shell_lines
from tests.kit.processes import resign_as_subreaper
from tests.kit.server import RunningServer, StartServer

README = EXAMPLES / "mar_1x" / "README.md"
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    return Shell(tmp_path_factory.mktemp("mar"))


@pytest.fixture(scope="module")
def printed(shell: Shell) -> str:
    return "".join(shell.prepare(README).values())


@pytest.fixture(scope="module")
def sample(printed: str) -> int:
    """Return the digit that the sample requests are."""
    found = re.search(r"the samples beside it are a (\d)", printed)
    assert found is not None
    return int(found[1])


@pytest.fixture(scope="module")
def folder(shell: Shell, printed: str) -> Path:
    assert "digits.mar" in printed
    return shell.folder / "build" / "mar_1x"


def test_the_readmes_requests_are_answered_as_it_says(
    shell: Shell, printed: str, sample: int
) -> None:
    resign_as_subreaper()
    found = re.search(r"accuracy on 450 unseen digits: ([\d.]+)", printed)
    assert found is not None
    assert float(found[1]) > 0.95
    server = shell.serve(README)
    url = server.url()
    asked = [command for command in shell_lines(README) if command.startswith("curl")]
    *answers, metrics = (shell.run(command.split(" | ")[0], url) for command in asked)
    pixels, text, form, refused = answers
    assert json.loads(pixels)["digit"] == sample
    assert json.loads(pixels)["probability"] > 0.99
    assert text == f"{sample}\n"
    assert json.loads(form)["digit"] == sample
    assert f"# {refused}\n" in README.read_text()
    assert asked[-1].endswith("| grep mms_service_digits")
    assert 'mms_service_digits_read_total{model="digits",version="1"} 3.0\n' in metrics
    assert 'mms_service_digits_refused_total{model="digits",version="1"} 1.0\n' in metrics
    server.process.terminate()
    assert server.end() == 0, server.output


async def post(server: RunningServer, data: Any, headers: dict[str, str]) -> tuple[int, str, str]:
    """Return status, text and the size of the batch."""
    url = f"{server.url}/predictions/digits"
    async with server.session.post(url, data=data, headers=headers) as reply:
        return reply.status, await reply.text(), reply.headers["X-Batch-Size"]


async def test_a_batch_holds_every_kind_of_request_and_refuses_only_those_that_are_wrong(
    start_server: StartServer, folder: Path, sample: int
) -> None:
    settings = {"batch_size": 5, "max_batch_delay": 2000.0}
    server = await start_server(digits=(folder / "digits.mar", settings))
    numbers, picture = (folder / "sample.json").read_bytes(), (folder / "sample.png").read_bytes()
    form = FormData()
    form.add_field("data", picture, filename="digit.png", content_type="image/png")
    answers = await asyncio.gather(
        post(server, numbers, JSON),
        post(server, b"[1, 2]", JSON),
        post(server, picture, {"Content-Type": "image/png", "Accept": "text/plain"}),
        post(server, b"no picture", {"Content-Type": "image/png"}),
        post(server, form, {}),
    )
    assert [size for _, _, size in answers] == ["5"] * 5
    good, short, text, broken, field = answers
    assert (good[0], json.loads(good[1])["digit"]) == (200, sample)
    assert (short[0], json.loads(short[1])["error"][:11]) == (400, "send a JSON")
    assert text[:2] == (200, f"{sample}\n")
    assert broken[:2] == (400, '{"error":"10 bytes that are no picture"}')
    assert (field[0], json.loads(field[1])["digit"]) == (200, sample)
    assert await server.metric("mms_service_digits_read_total", model="digits") == 3
    assert await server.metric("mms_service_digits_refused_total", model="digits") == 2
    assert await server.metric("mms_service_forward_time_seconds_count", model="digits") == 1
