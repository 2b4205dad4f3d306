"""Urgent requests go first, and starve nobody."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mms.serving.queue.dispatcher import MAX_AHEAD
from tests.kit.archives import make_mar
from tests.kit.server import StartServer
from tests.kit.waiting import until

URGENT = {"X-Request-Priority": "high"}


@pytest.mark.parametrize("batch_size", [1, 4])
async def test_v11_plain_requests_get_one_place_in_four_beside_urgent_ones(
    start_server: StartServer, tmp_path: Path, batch_size: int
) -> None:
    archive = make_mar(tmp_path, "deadly", name="deadly")
    server = await start_server(
        deadly=(archive, {"batch_size": batch_size, "queue_size": 1000, "linger": 0})
    )
    notes = tmp_path / "notes"
    notes.mkdir()
    servable = server.servable("deadly")
    # Holds the only worker until all others wait.
    holder = asyncio.create_task(server.ask("deadly", ["wait", str(notes)]))
    await until(lambda: servable.in_flight == 1)
    ledger = str(tmp_path / "ledger")
    urgent = [
        asyncio.create_task(server.ask("deadly", ["record", ledger, "urgent"], URGENT))
        for _ in range(60)
    ]
    plain = [
        asyncio.create_task(server.ask("deadly", ["record", ledger, "plain"])) for _ in range(10)
    ]
    await until(lambda: servable.queue_depth == 70)
    (notes / "go").touch()
    answers = await asyncio.gather(holder, *urgent, *plain)
    assert {status for status, _ in answers} == {200}
    order = Path(ledger).read_text().split()
    # As long as both wait, each four in a row hold one plain request and three urgent ones.
    both_wait = order[: 10 * (MAX_AHEAD + 1)]
    assert both_wait == [*["urgent"] * MAX_AHEAD, "plain"] * 10
    assert set(order[len(both_wait) :]) == {"urgent"}
