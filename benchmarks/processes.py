"""The processes of a run: started so that none outlives it, and looked at from outside."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import click
import psutil

ROOT = Path(__file__).parent.parent
_PR_SET_PDEATHSIG = 1
_STOP_LIMIT_S = 60.0
_LIBC = ctypes.CDLL(None, use_errno=True)


class BenchmarkError(click.ClickException):
    """The run cannot go on; says why."""


def start(
    module: str,
    *args: str,
    stdin: int = subprocess.DEVNULL,
    stdout: int | IO[bytes] = subprocess.PIPE,
    stderr: IO[bytes] | None = None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start ``python -m module`` of this checkout.

    In a session of its own, since Ctrl-C in the terminal is for the run as a whole to act on; and
    the kernel kills it should the run be killed.
    """
    return subprocess.Popen(
        [sys.executable, "-m", module, *args],
        # Unbuffered: `read_line` waits for what is in the pipe, not for what has been read ahead.
        bufsize=0,
        cwd=ROOT,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        # Workers do not look into the folder that they are started in, and must run the same code.
        env={**os.environ, "PYTHONPATH": str(ROOT), **(environment or {})},
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)


@contextlib.contextmanager
def stopping(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Stop a process at the end: gracefully if that works, in any case."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(_STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(
                f"{_name(process)} did not stop within {_STOP_LIMIT_S:g} s and was killed"
            ) from None
        finally:
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream:
                    stream.close()


def read_line(process: subprocess.Popen[bytes], limit_s: float) -> str:
    """Return the next line that a process prints; it prints one at a time.

    Raises:
        BenchmarkError: It ends or takes too long instead.
    """
    assert process.stdout is not None  # noqa: S101 - it was started with a pipe
    ready, _, _ = select.select([process.stdout], [], [], limit_s)
    line = process.stdout.readline() if ready else b""
    if not line:
        how = "ended" if ready else f"printed nothing for {limit_s:g} s"
        raise BenchmarkError(f"{_name(process)} {how}")
    return line.decode().strip()


def _name(process: subprocess.Popen[bytes]) -> str:
    assert isinstance(process.args, list)  # noqa: S101 - `start` gave a list
    return " ".join(process.args[2:])


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the processor time that processes have used so far, all their threads together.

    By the clock of each process, which counts nanoseconds; /proc/PID/stat has a grain of 10 ms.

    Raises:
        BenchmarkError: One of them is gone.
    """
    total = 0.0
    for pid in pids:
        clock = ctypes.c_int()
        if _LIBC.clock_getcpuclockid(pid, ctypes.byref(clock)):
            raise BenchmarkError(f"process {pid} ended during the measurement")
        total += time.clock_gettime(clock.value)
    return total


@dataclass(frozen=True, slots=True)
class Memory:
    """Megabytes of one or more processes.

    Attributes:
        resident_mb: With every page in full, shared or not.
        proportional_mb: With every shared page divided by those who share it.
        private_mb: What would be free without the process.
    """

    resident_mb: float
    proportional_mb: float
    private_mb: float


def memory(pid: int) -> Memory:
    """Return the memory of a process as it is now."""
    info = psutil.Process(pid).memory_full_info()
    return Memory(info.rss / 1e6, info.pss / 1e6, info.uss / 1e6)
