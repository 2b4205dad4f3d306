"""Wait for events: a condition with a limit, never a length of time."""

from __future__ import annotations

import asyncio
import inspect
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: How long anything that should happen may take. Generous: these machines are slow and noisy.
LIMIT_S = 120.0
#: Between two looks: at what this process knows, and at what a server has to be asked for, which
#: costs it more than a request does.
_POLL_S, _ASK_POLL_S = 0.01, 0.15


async def until(
    condition: Callable[[], Any], limit_s: float = LIMIT_S, what: str | None = None
) -> Any:
    """Wait until a condition, which may be a coroutine function, holds; return what it returned.

    Raises:
        AssertionError: It does not within the limit.
    """
    deadline = time.monotonic() + limit_s
    while True:
        holds, poll_s = condition(), _POLL_S
        if inspect.isawaitable(holds):
            holds, poll_s = await holds, _ASK_POLL_S
        if holds:
            return holds
        assert time.monotonic() < deadline, f"not within {limit_s:g} s: {what or condition}"
        await asyncio.sleep(poll_s)


async def waiting(folder: Path, count: int = 1) -> list[int]:
    """Wait until so many requests sit in a service's ``wait``, and return the workers' pids."""

    def pids() -> list[int]:
        return [int(name) for name in os.listdir(folder) if name.isdecimal()]

    await until(lambda: len(pids()) >= count)
    return pids()


def let_go(folder: Path) -> None:
    """End all ``wait`` of a folder."""
    (folder / "go").touch()
