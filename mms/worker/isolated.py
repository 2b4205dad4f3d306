"""Run a trial in a separate process, so that it leaves no side effects.

A service counts its calls, fills caches and draws random numbers, and a crash or an endless loop
must not affect the model. The trial runs in a fork, and only its result comes back.
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

#: Less than a pipe buffers, so that writing it never blocks.
_RESULT_BYTES = 60_000
#: Time limit of a trial, seconds: a few forward passes, the first of which plans memory.
LIMIT_S = 60.0


def run_isolated(work: Callable[[], str], limit_s: float = LIMIT_S) -> str:
    """Run `work` in a fork of this process and return its result, cut to 60,000 bytes.

    Only for processes that `may_fork`.

    Args:
        work: Returns a string; must not raise.
        limit_s: Seconds after which it is killed.

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
