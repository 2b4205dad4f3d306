"""Shadow traffic: a copy of each request for another version, whose responses are only compared."""

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

#: Maximum number of copies in flight; beyond it, requests are not copied, so that a slow shadow
#: costs nothing.
_MAX_COPIES = 100
#: Beginning of a response in the Open Inference Protocol V2: the model's name and version.
_V2_VERSION = re.compile(rb'\{"model_name":"[^"]*","model_version":"[^"]*"')


class Shadows:
    """The copies in flight, and the outcomes of earlier ones.

    Args:
        outcomes: As the attribute.
        budget: The budget of buffered bytes; copies have their own holds, since they outlive their
            originals.

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
        """Return the answer of `asking`; the copy runs in the background."""
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
        """Cancel the copies in flight."""
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
            # If this task is not cancelled: the original failed, or is too large to keep.
            if not answered.cancelled():
                raise
            outcome = "uncompared"
        finally:
            # Marked as done, so that `answer` counts no more bytes in the hold.
            answered.cancel()
            hold.release()
        self.outcomes[copy_to.name, copy_to.version, outcome] += 1


def _fits(hold: Hold, size: int) -> bool:
    """Count the bytes of a copy, and return whether the budget allows them."""
    try:
        hold.grow(size)
    except (BufferFull, PayloadTooLarge):
        return False
    return True


def _result(answer: Answer) -> Buffer:
    """Return an answer's body without the version at its start, which always differs."""
    match = _V2_VERSION.match(answer.body)
    return memoryview(answer.body)[match.end() :] if match else answer.body
