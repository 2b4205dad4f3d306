"""Limits that a worker process sets for itself and its children.

The memory limit is RLIMIT_DATA: private writable memory, which grows with requests. RLIMIT_AS
would also count every reservation and mapped file: a process with MXNet that uses 160 MB has
1.1 GB of addresses. Even so, libraries reserve private memory that they never touch (MXNet 1.9.1:
270 MB), so the kernel's limit is set that much above the configured one.
"""

from __future__ import annotations

import ctypes
import os
import resource
import sys

from mms.errors import OutOfMemory

_PR_SET_NO_NEW_PRIVS = 38
#: Private memory that libraries may reserve untouched while the model loads, beyond the limit.
_LOAD_RESERVE_BYTES = 1 << 30
#: Threads that MXNet's engine, onnxruntime and the like start besides the compute threads.
_ENGINE_THREADS = 16
#: glibc's stack size for a thread if RLIMIT_STACK is unlimited.
_DEFAULT_STACK_BYTES = 2 << 20

_limit = 0


def limit_hint() -> str:
    """Return a suffix for messages about memory: the limit and its option, if one is set."""
    if not _limit:
        return ""
    return (
        f"; the worker may use {_limit} bytes, start the server with a higher "
        "--worker-memory-limit to allow more"
    )


def confine(limit: int) -> None:
    """Restrict this process before it loads user code.

    No new privileges (setuid programs run without them), no core dumps unless the service raises
    its own limit, and an approximate memory limit; `confine_loaded` makes that exact.

    Args:
        limit: Bytes it may allocate; 0 is no limit.
    """
    global _limit
    _limit = limit
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    # One crash per request of a flood would fill the disk. The hard limit stays unchanged.
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, hard))
    if limit:
        _limit_data(limit + _LOAD_RESERVE_BYTES)


def confine_loaded() -> None:
    """Limit the memory that a process with a loaded model may allocate from now on.

    Raises:
        OutOfMemory: The model alone exceeds the limit.
    """
    if not _limit:
        return
    used, reserved = _private_bytes()
    if used > _limit:
        raise OutOfMemory(
            f"the model takes {used} bytes of memory, more than worker_memory_limit ({_limit}); "
            "start the server with a higher --worker-memory-limit"
        )
    _limit_data(_limit + reserved + _stacks_bytes())


def _limit_data(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if hard == resource.RLIM_INFINITY or wanted < hard:
        resource.setrlimit(resource.RLIMIT_DATA, (wanted, wanted))


def _private_bytes() -> tuple[int, int]:
    """Return this process's private memory: bytes in use, and bytes reserved beyond that."""
    sizes = {}
    with open("/proc/self/status", "rb") as file:
        for line in file:
            name, _, value = line.partition(b":")
            if name in (b"VmData", b"RssAnon"):
                sizes[name] = int(value.split()[0]) * 1024
    # Kernels that do not report it are older than the limit itself (Linux 4.7).
    used = sizes.get(b"RssAnon", 0)
    return used, max(sizes.get(b"VmData", 0) - used, 0)


def _stacks_bytes() -> int:
    """Return the stack memory of threads started later: a forked worker starts its own."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    if stack == resource.RLIM_INFINITY:
        stack = _DEFAULT_STACK_BYTES
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    return stack * (_ENGINE_THREADS + (int(threads) if threads.isdecimal() else 1))
