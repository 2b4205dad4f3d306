"""Child processes of the server: start them, watch for their exit, read their output."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mms.log import emit_worker_line
from mms.wire.frames import SOCKET_BUFFER_BYTES

_PR_SET_CHILD_SUBREAPER = 36
#: The socket's file descriptor in the child.
_CHILD_FD = 3
_READ_BYTES = 64 << 10
#: Number of reads that empty a pipe without writers. Its capacity is 64 KiB, or 1 MiB if a process
#: has raised it to the maximum.
_LAST_READS = 16
#: Longer lines are split at this size: a model may print without ever ending a line.
_MAX_LINE_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class ExitStatus:
    """The end of a process: its exit code, or the signal that killed it."""

    code: int | None
    signal: int | None

    def __str__(self) -> str:
        if self.signal is None:
            # MXNet's own signal handler turns a crash into this code, if it precedes ours.
            hint = " (a crash in native code?)" if self.code == 255 else ""
            return f"exited with code {self.code}{hint}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            # Only the first and last real-time signals have names.
            name = f"signal {self.signal}"
        hint = " (out of memory?)" if self.signal == signal.SIGKILL else ""
        return f"was killed by {name}{hint}"


#: Processes that a `Child` waits for.
_watched: set[int] = set()


class Child:
    """A process watched through its pidfd, so that no other wait can collect its exit status."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[ExitStatus] = self._loop.create_future()
        self._pidfd = os.pidfd_open(pid)
        _watched.add(pid)
        self._loop.add_reader(self._pidfd, self._on_exit)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended yet."""
        return not self._exited.done()

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Call a function once the process has ended."""
        self._exited.add_done_callback(lambda _: callback())

    async def wait(self) -> ExitStatus:
        """Wait for the process to end; may be called any number of times."""
        return await asyncio.shield(self._exited)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal, unless the process has ended."""
        if self.is_alive:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def _on_exit(self) -> None:
        result = os.waitid(os.P_PIDFD, self._pidfd, os.WEXITED | os.WNOHANG)
        if result is None:
            return
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        _watched.discard(self.pid)
        # Processes that it has started must not outlive it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        if result.si_code == os.CLD_EXITED:
            self._exited.set_result(ExitStatus(result.si_status, None))
        else:
            self._exited.set_result(ExitStatus(None, result.si_status))


class OutputReader:
    """Forwards, line by line, the output of a process and of everything forked from it.

    Workers forked from a loader print into its pipe, and may outlive it. Ends when the last of them
    has ended, and at the latest with its last user: processes that a service leaves behind in the
    background are read no longer than the workers themselves.
    """

    def __init__(self, descriptor: int, model: str) -> None:
        self._descriptor = descriptor
        self._model = model
        self._rest = b""
        self._users = 0
        self.is_open = True
        self._loop = asyncio.get_running_loop()
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._on_readable)

    def acquire(self) -> None:
        """Add a user: a worker or loader that prints here."""
        self._users += 1

    def release(self) -> None:
        """Remove a user; with the last, read the remaining output and stop."""
        self._users -= 1
        if self._users == 0:
            self.close()

    def close(self) -> None:
        """Read the remaining output, and stop."""
        if not self.is_open:
            return
        with contextlib.suppress(BlockingIOError):
            # Bounded: a process may be writing faster than this reads.
            for _ in range(_LAST_READS):
                if not self._read():
                    break
        self._close()

    def _on_readable(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if not self._read():
                self._close()

    def _read(self) -> bool:
        data = os.read(self._descriptor, _READ_BYTES)
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE_BYTES:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            emit_worker_line(line, self._model)
        return bool(data)

    def _close(self) -> None:
        if self.is_open:
            self.is_open = False
            if self._rest:
                emit_worker_line(self._rest, self._model)
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)


def become_subreaper() -> None:
    """Become the parent of workers when the loader's helper process between them exits."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans() -> None:
    """Reap processes that nothing waits for.

    Processes started by workers, and forks that died before they were known, are reparented to this
    process, the subreaper, and would stay zombies as long as it lives.
    """
    while True:
        try:
            # Without reaping: a worker's exit status is collected by its `Child`.
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if ended is None or ended.si_pid in _watched:
            return
        os.waitid(os.P_PID, ended.si_pid, os.WEXITED | os.WNOHANG)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected stream sockets with large buffers."""
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in pair:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER_BYTES)
    return pair


def spawn(environment: Mapping[str, str], model: str) -> tuple[Child, socket.socket, OutputReader]:
    """Start ``python -m mms.worker``, which inherits only one end of a socket pair.

    Raises:
        OSError: The system refuses another process or file.
    """
    ours, theirs = socket_pair()
    read_end, write_end = os.pipe()
    try:
        pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "mms.worker", str(_CHILD_FD)],
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, write_end, 1),
                (os.POSIX_SPAWN_DUP2, write_end, 2),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), _CHILD_FD),
            ],
            setsigmask=(),
            # A process group of its own: processes that the service starts are killed with it, and
            # Ctrl-C in the terminal reaches the server only.
            setpgroup=0,
        )
    except OSError:
        ours.close()
        os.close(read_end)
        raise
    finally:
        theirs.close()
        os.close(write_end)
    return Child(pid), ours, OutputReader(read_end, model)


def worker_environment(
    base: Mapping[str, str], threads: int, is_hidden: Callable[[str], bool]
) -> dict[str, str]:
    """Return the environment of a worker.

    Args:
        base: The server's own.
        threads: Compute threads; libraries read these variables once, when they are imported.
        is_hidden: Whether a variable must not reach user code.
    """
    environment = {name: value for name, value in base.items() if not is_hidden(name)}
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
    ):
        environment[name] = str(threads)
    # The folder the server was started in must not shadow installed modules.
    environment["PYTHONSAFEPATH"] = "1"
    # A service's output appears immediately, not when a buffer is full.
    environment["PYTHONUNBUFFERED"] = "1"
    # Since 1.29, onnxruntime sends telemetry to its vendor by default, from a thread that also
    # prevents forking.
    environment.setdefault("ORT_DISABLE_TELEMETRY", "1")
    return environment
