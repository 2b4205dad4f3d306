"""Process control of workers: tie their life to the server's, fork, survive signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
import warnings

import numpy as np

from mms.wire.messages import LoadSpec

_PR_SET_PDEATHSIG = 1
_REPARENT_POLL_S = 0.0005
_REPARENT_LIMIT_S = 5.0


def ignore_stop_signals() -> None:
    """Leave stopping to the server: Ctrl-C and service managers signal the whole group.

    This installs a handler that does nothing, not SIG_IGN, which child programs would inherit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)


def die_with(server_pid: int) -> None:
    """Make the kernel kill this process when the server, its parent, dies.

    End of file on the socket would not reach a process that hangs in native code.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    if os.getppid() != server_pid:
        # The server died before the line above, so the signal would never come.
        os._exit(1)


def may_fork(spec: LoadSpec) -> bool:
    """Return whether workers may be forked from this process now.

    They may not if the service started threads, whose locks a child could inherit while held, nor
    on a GPU: CUDA does not survive a fork.
    """
    return (
        spec.may_fork
        and spec.gpu is None
        and sys.platform == "linux"
        and threading.active_count() == 1
    )


def fork_worker(server_pid: int) -> int:
    """Fork a worker that is a child of the server, not of this process.

    It forks twice: when the intermediate process exits, the kernel reparents the worker to the
    server, which is a child subreaper. So the server sees its exit status, and the worker outlives
    this loader.

    Returns:
        The worker's pid here, 0 in the worker.

    Raises:
        OSError: The system refuses to create another process.
    """
    receive, send = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of MXNet's engine threads, which stop and restart around a fork.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            between = os.getpid()
            try:
                worker = os.fork()
            except OSError:
                os._exit(1)
            if worker:
                os.write(send, worker.to_bytes(8, "little"))
                os._exit(0)
            os.close(receive)
            os.close(send)
            _become_worker(between, server_pid)
            return 0
    os.close(send)
    pid = int.from_bytes(os.read(receive, 8), "little")
    os.close(receive)
    os.waitpid(child, 0)
    if pid == 0:
        raise OSError("the worker could not be forked")
    return pid


def _become_worker(between: int, server_pid: int) -> None:
    # Not the loader's group: the server kills a group together with its leader.
    os.setpgid(0, 0)
    limit = time.monotonic() + _REPARENT_LIMIT_S
    while os.getppid() == between:
        if time.monotonic() > limit:
            os._exit(1)
        time.sleep(_REPARENT_POLL_S)
    die_with(server_pid)
    # All workers share the loader's random state, and would draw the same numbers.
    np.random.seed()
    if "mxnet" in sys.modules:
        sys.modules["mxnet"].random.seed(int.from_bytes(os.urandom(4), "little") >> 1)
