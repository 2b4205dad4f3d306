from __future__ import annotations

from pathlib import Path

from tests.kit.archives import make_archive
from tests.kit.server import StartServer


async def test_a_model_answers_what_its_service_returns(
    start_server: StartServer, tmp_path: Path
) -> None:
    server = await start_server(echo=make_archive(tmp_path, "echo"))
    assert await server.ask("echo", [1, "two", None]) == (200, [1, "two", None])
