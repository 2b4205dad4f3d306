"""docs/v2.md: its commands and programs do what it says, and its tables are complete."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from mms.grpc.errors import CODES
from tests.kit.server import RunningServer
from tests.kit.waiting import LIMIT_S
from tests.management.stores import Traces

pytestmark = pytest.mark.asyncio(loop_scope="package")

TEXT = (Path(__file__).parents[2] / "docs" / "v2.md").read_text()
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


async def output_of(language: str, program: str, folder: Path) -> list[str]:
    """Run a program and return the lines it printed."""
    command = ["bash", "-ec"] if language == "sh" else [sys.executable, "-c"]
    process = await asyncio.create_subprocess_exec(
        *command, program, cwd=folder, stdout=asyncio.subprocess.PIPE, env=dict(os.environ)
    )
    output, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0
    return output.decode(errors="replace").splitlines()


@pytest.mark.parametrize(("language", "program"), BLOCKS)
async def test_every_example_prints_what_stands_below_it(
    server: RunningServer, tmp_path: Path, image: bytes, language: str, program: str
) -> None:
    traces = Traces(server)
    (tmp_path / "cat.jpg").write_bytes(image)
    for documented, port in (
        (8080, server.port),
        (8081, server.management_port),
        (8001, server.grpc_port),
    ):
        program = program.replace(f"127.0.0.1:{documented}", f"127.0.0.1:{port}")
    expected = [line[2:] for line in program.splitlines() if line.startswith("# ")]
    assert expected
    assert await output_of(language, program, tmp_path) == expected
    await traces.clean()


async def test_there_are_examples_of_every_kind() -> None:
    assert [language for language, _ in BLOCKS].count("python") == 2
    assert [language for language, _ in BLOCKS].count("sh") >= 3


async def test_every_code_that_a_request_can_meet_is_in_the_table() -> None:
    documented = set(re.findall(r"^\| `([A-Z_]+)` \|", TEXT, re.MULTILINE))
    # A token is asked for, and a conflict can happen, on the management port only.
    elsewhere = {"UNAUTHENTICATED", "FAILED_PRECONDITION"}
    assert {code.name for code in CODES.values()} - elsewhere == documented


async def test_every_route_is_in_the_reference_of_this_protocol(server: RunningServer) -> None:
    _, document = await server.get("/")
    for route in document["routes"]:
        method, _, path = route.partition(" ")
        if path.startswith("/v2") and "/versions/" not in path:
            assert f"`{method} {path}`" in TEXT
