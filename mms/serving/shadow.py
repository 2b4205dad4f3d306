"""Shadow traffic: a copy of each request for another version, whose answers are only compared."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Sequence

from mms.errors import BufferFull, MMSError, PayloadTooLarge
from mms.serving.budget import Budget, Hold
from mms.serving.servable import Servable
from mms.serving.tasks import Tasks
from mms.wire.frames import Buffer
from mms.wire.messages import Answer

#: Copies under way at once; beyond it, requests are not copied. A slow shadow must cost nothing.
_MAX_COPIES = 100
#: What an answer in the Open Inference Protocol V2 begins with: a name, and a version.
_V2_VERSION = re.compile(rb'\{"model_name":"[^"]*","model_version":"[^"]*"')


class Shadows:
    """Copies under way, and what came of those before.

    Args:
        outcomes: As the attribute.
        budget: Bytes that may be held; copies count apart, since they outlive their originals.

    Attributes:
        outcomes: Number of copies by (model, version, same | different | failed | uncompared |
            skipped).
    """

    def __init__(self, outcomes: Counter[tuple[str, str, str]], budget: Budget) -> None:
        self.outcomes = outcomes
        self._budget = budget
        self._tasks = Tasks()

    async def answer(
        self,
        asking: Awaitable[Answer],
        copy_to: Servable,
        meta: bytes,
        chunks: Sequence[Buffer],
        size: int,
    ) -> Answer:
        """Return the answer of `asking`; the copy runs beside it and is waited for by nobody."""
        answered: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        hold = Hold(self._budget)
        if len(self._tasks) < _MAX_COPIES and _fits(hold, size):
            self._tasks.start(self._copy(answered, hold, copy_to, meta, chunks, size))
        else:
            answered.cancel()
            self.outcomes[copy_to.name, copy_to.version, "skipped"] += 1
        try:
            answer = await asking
        except BaseException:
            answered.cancel()
            raise
        if not answered.done():
            if _fits(hold, len(answer.body)):
                answered.set_result(answer)
            else:
                answered.cancel()
        return answer

    async def stop(self) -> None:
        """Give up the copies under way."""
        await self._tasks.cancel()

    async def _copy(
        self,
        answered: asyncio.Future[Answer],
        hold: Hold,
        copy_to: Servable,
        meta: bytes,
        chunks: Sequence[Buffer],
        size: int,
    ) -> None:
        outcome = "failed"
        try:
            copy = await copy_to.infer(meta, chunks, size)
            original = await answered
            is_same = copy.status == original.status and _result(copy) == _result(original)
            outcome = "same" if is_same else "different"
        except MMSError:
            pass
        except asyncio.CancelledError:
            # Not ours: the original failed or is too large to keep: nothing to compare with.
            if not answered.cancelled():
                raise
            outcome = "uncompared"
        finally:
            # What is done is counted no more: see `answer`.
            answered.cancel()
            hold.release()
        self.outcomes[copy_to.name, copy_to.version, outcome] += 1


def _fits(hold: Hold, size: int) -> bool:
    """Count bytes that a copy holds, if the budget allows it."""
    try:
        hold.grow(size)
    except (BufferFull, PayloadTooLarge):
        return False
    return True


def _result(answer: Answer) -> Buffer:
    """Return an answer's body without the version that it may begin with, which always differs."""
    match = _V2_VERSION.match(answer.body)
    return memoryview(answer.body)[match.end() :] if match else answer.body
