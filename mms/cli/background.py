"""Run the server behind its starter, as MMS 1.x's ``--start`` does, and end it by ``--stop``.

The number of the server's process is in `.model_server.pid` in the temporary folder, as in 1.x.
That folder is anybody's: the file counts only if it is this user's own, and the process only if it
carries the mark.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from mms.cli.options import own_command
from mms.errors import ConfigError

#: A word in the arguments of the server's process. SageMaker's toolkits find the server by it: it
#: is the name of 1.x's main class in Java.
MARK = "com.amazonaws.ml.mms.ModelServer"
#: Seconds until a server that was asked to stop is asked again, and then killed: as long as its
#: requests may take to finish by default, and some.
_STOP_S = (60.0, 10.0)
#: Seconds that the starter waits for the server to serve, so that it can tell of a failure; and
#: between looks.
_START_S, _POLL_S = 20.0, 0.1
#: The second line of the file, once the server serves. 1.x reads the first one only.
_READY = "ready"


def run_in_background(arguments: Sequence[str]) -> int:
    """Start the server in a session of its own, and return its process id.

    Returns once it serves, or after a while: a model may take minutes to load.

    Raises:
        ConfigError: One runs already.
        SystemExit: It has ended, having said why; with its status.
    """
    refuse_second()
    process = subprocess.Popen(_marked(arguments), stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        _write(process.pid)
    except BaseException:
        process.terminate()
        raise
    deadline = time.monotonic() + _START_S
    while not _is_ready() and time.monotonic() < deadline:
        with contextlib.suppress(subprocess.TimeoutExpired):
            raise SystemExit(process.wait(_POLL_S))
    return process.pid


def run_in_foreground(arguments: Sequence[str]) -> None:
    """Replace this process with the marked server.

    Raises:
        ConfigError: One runs already.
    """
    refuse_second()
    _write(os.getpid())
    os.execv(_marked(arguments)[0], _marked(arguments))


def refuse_second() -> None:
    """Refuse to start while another server runs, as 1.x does.

    Raises:
        ConfigError: One runs already.
    """
    running = _running()
    if running:
        raise ConfigError(
            f"a server runs already, as process {running.pid}; end it with --stop, as in 1.x"
        )
    _path().unlink(missing_ok=True)


def note_ready() -> None:
    """Tell the starter that this process serves."""
    if _read() == os.getpid():
        with contextlib.suppress(OSError), _path().open("a") as file:
            file.write(f"\n{_READY}\n")


@contextlib.contextmanager
def noted() -> Iterator[None]:
    """Remove the file at the end, if it is about this process."""
    try:
        yield
    finally:
        if _read() == os.getpid():
            _path().unlink(missing_ok=True)


def stop() -> str:
    """End the server and its children, wait for their end, and return what was done."""
    process = _running()
    if process is None:
        _path().unlink(missing_ok=True)
        return "no server runs that was started as in 1.x, with --start or --foreground"
    children = process.children(recursive=True)
    for seconds in _STOP_S:
        # The second time, requests that still run are given up.
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
        if psutil.wait_procs([process], timeout=seconds)[0]:
            break
    left = [child for child in [process, *children] if child.is_running()]
    for child in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(left, timeout=_STOP_S[-1])
    _path().unlink(missing_ok=True)
    return f"process {process.pid} and its workers have ended, as by 1.x's --stop"


def _marked(arguments: Sequence[str]) -> list[str]:
    return [*own_command(), MARK, *arguments]


def _path() -> Path:
    return Path(tempfile.gettempdir()) / ".model_server.pid"


def _running() -> psutil.Process | None:
    """Return the server that the file names, if it runs."""
    pid = _read()
    if pid is None:
        return None
    try:
        process = psutil.Process(pid)
        is_server = process.status() != psutil.STATUS_ZOMBIE and MARK in process.cmdline()
    except psutil.Error:
        return None
    return process if is_server else None


def _is_ready() -> bool:
    return _lines()[1:] == [_READY]


def _read() -> int | None:
    """Return the number in the file, if the file is this user's."""
    first = "".join(_lines()[:1]).strip()
    return int(first) if first.isascii() and first.isdecimal() else None


def _lines() -> list[str]:
    try:
        descriptor = os.open(_path(), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return []
    with os.fdopen(descriptor, errors="replace") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            return []
        return file.read(40).splitlines()


def _write(pid: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    try:
        descriptor = os.open(_path(), flags, 0o600)
    except OSError as error:
        raise ConfigError(
            f"{_path()} cannot be written: {error.strerror}; 1.x's --start keeps the number of "
            "the server's process there"
        ) from None
    with os.fdopen(descriptor, "w") as file:
        file.write(str(pid))
