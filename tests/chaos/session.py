"""Runs faults against an arena and keeps the record of each."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from tests.chaos.arena import Arena
from tests.chaos.faults import Fault, Skipped
from tests.chaos.load import Tally

#: Answers seen before and after each fault.
_CALM_ANSWERS = 20
#: Longest that one fault may take, seconds.
FAULT_LIMIT_S = 150.0


@dataclass(slots=True)
class Record:
    """What one kind of fault did, over all times it happened."""

    times: int = 0
    tally: Tally = field(default_factory=Tally)
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0


async def run_fault(arena: Arena, fault: Fault, record: Record) -> None:
    """Have a fault happen under load, and count.

    Raises:
        Skipped: The machine does not allow it.
    """
    load = arena.load
    started = time.monotonic()
    load.start()
    try:
        await load.flow(_CALM_ANSWERS)
        load.begin()
        try:
            note = await asyncio.wait_for(fault.inject(arena), FAULT_LIMIT_S)
            record.notes.append(note)
            await load.flow(_CALM_ANSWERS)
        except Skipped:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what this looks for
            record.problems.append(f"{type(error).__name__}: {error}")
    finally:
        await load.stop()
        tally = load.begin()
    record.times += 1
    record.seconds += time.monotonic() - started
    record.tally.add(tally)
    record.problems += _problems(tally, fault)


def _problems(tally: Tally, fault: Fault) -> list[str]:
    found = []
    if tally.lost or tally.pending:
        found.append(f"{tally.lost} lost, {tally.pending} pending: {dict(tally.reasons)}")
    if tally.refused and not fault.may_refuse:
        found.append(f"{tally.refused} refused: {dict(tally.reasons)}")
    return found
