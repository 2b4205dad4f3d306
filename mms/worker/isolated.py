"""Try something in a process of its own, so that nothing of it stays behind.

A service counts its calls, fills caches and draws random numbers; a crash or a loop without an end
must not become the model's. What is tried runs in a fork, and only its result comes back.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
import warnings
from collections.abc import Callable

from mms.worker.process import die_with

#: Less than a pipe holds, so that writing it never waits.
_RESULT_BYTES = 60_000
#: Longest that a try may take, seconds: a few forward passes, the first of which plans memory.
LIMIT_S = 60.0


def run_isolated(work: Callable[[], str], limit_s: float = LIMIT_S) -> str:
    """Run `work` in a fork of this process and return what it returns, cut to 60,000 bytes.

    Only for processes that `may_fork`.

    Args:
        work: Returns a text; must not raise.
        limit_s: When to kill it.

    Raises:
        OSError: It died, took too long, or could not be started.
    """
    receive, send = os.pipe()
    parent = os.getpid()
    with warnings.catch_warnings():
        # Python 3.12 warns of MXNet's engine threads, which stop and restart around a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            die_with(parent)
            os.write(send, work().encode(errors="replace")[:_RESULT_BYTES] + b"\0")
        finally:
            os._exit(0)
    os.close(send)
    try:
        return _receive(receive, limit_s)
    finally:
        os.close(receive)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _receive(descriptor: int, limit_s: float) -> str:
    deadline = time.monotonic() + limit_s
    text = b""
    while not text.endswith(b"\0"):
        ready, _, _ = select.select([descriptor], [], [], max(deadline - time.monotonic(), 0))
        if not ready:
            raise OSError(f"it did not end within {limit_s:g} seconds")
        data = os.read(descriptor, _RESULT_BYTES)
        if not data:
            raise OSError("it killed its process")
        text += data
    return text[:-1].decode(errors="replace")
