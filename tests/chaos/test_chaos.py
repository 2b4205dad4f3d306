"""Each fault once, in a short form, under load."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.chaos.arena import Arena
from tests.chaos.faults import FAULTS, Fault, Skipped
from tests.chaos.session import Record, run_fault

_SEED = 20_260_131


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def arena(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Arena]:
    found = Arena(Path(tmp_path_factory.mktemp("chaos")), _SEED, is_short=True)
    try:
        await found.start()
        yield found
    finally:
        await found.stop()
    assert not found.server.bugs()


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("fault", FAULTS, ids=[fault.name for fault in FAULTS])
async def test_fault_loses_and_swaps_no_answer(arena: Arena, fault: Fault) -> None:
    record = Record()
    try:
        await run_fault(arena, fault, record)
    except Skipped as reason:
        pytest.skip(str(reason))
    assert not record.problems, "\n".join([*record.problems, arena.server.log()[-3000:]])
    assert record.tally.answered > 0
