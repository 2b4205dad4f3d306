"""Run calls that block, on the network or a disk, beside the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class BlockingThread:
    """A thread of its own that runs calls one after another; a context manager.

    It is a daemon. The threads of the loop's executor are waited for when the loop ends, and a name
    server, a service or a disk that hangs would keep the server from stopping.

    Attributes:
        held: What the calls have opened. Closed in the thread after the last call; if the caller is
            cancelled, without waiting for that.
    """

    def __init__(self) -> None:
        self.held = contextlib.ExitStack()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    async def __aenter__(self) -> BlockingThread:
        threading.Thread(target=self._run, name="fetch", daemon=True).start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        closed = self._submit(self.held.close)
        self._calls.put(None)
        if not isinstance(error, asyncio.CancelledError):
            await closed

    async def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Return what a call returns, or raise what it raises.

        If the caller is cancelled, the call still runs to its end; the next one waits for it.
        """
        return await self._submit(partial(function, *args, **kwargs))

    def _submit(self, function: Callable[[], T]) -> asyncio.Future[T]:
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(done.set_result, function())
            except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets it
                settle = partial(done.set_exception, error)
            # A closed loop raises: nobody waits any more.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(lambda: None if done.done() else settle())

        self._calls.put(run)
        return done

    def _run(self) -> None:
        while (call := self._calls.get()) is not None:
            call()
