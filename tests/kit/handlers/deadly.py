"""Does on command what kills a worker, or what keeps its death from being noticed."""

import ctypes
import json
import os
import pathlib
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time

from mms.worker.channel import Channel


def handle(data, context):
    """Run the command that each request names: ``[command, argument, ...]``."""
    if data is None:
        return None
    # In a list each: a bare text would be answered as text, not as JSON.
    return [[globals()[f"do_{command}"](*args)] for command, *args in map(_parse, data)]


def _parse(row):
    body = row.get("body") or row.get("data")
    return body if isinstance(body, list) else json.loads(bytes(body))


def do_echo(value):
    return value


def do_pid(*_):
    return os.getpid()


def do_segfault(*_):
    ctypes.string_at(0)


def do_exit(*_):
    os._exit(3)


def do_kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def do_abort(*_):
    os.abort()


def do_bad_alloc(*_):
    """End as C++ does when memory is gone and nobody catches std::bad_alloc."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (1 << 20, hard))
    try:
        bytearray(1 << 30)
    except MemoryError:
        os.abort()


def do_allocate(size, *_):
    """Use so much memory for the time of this request."""
    return len(b"x" * size)


kept = []


def do_leak(size):
    """Use so much memory and keep it."""
    kept.append(b"x" * size)
    return os.getpid()


def do_limits():
    """Return what bounds this process."""
    status = pathlib.Path("/proc/self/status").read_text()
    (no_new_privs,) = re.findall(r"^NoNewPrivs:\s*(\d)", status, re.MULTILINE)
    return {
        "core": resource.getrlimit(resource.RLIMIT_CORE)[0],
        "data": resource.getrlimit(resource.RLIMIT_DATA),
        "no_new_privs": int(no_new_privs),
        "program": subprocess.run(["echo", "ran"], check=True, capture_output=True).stdout.decode(),
    }


def do_sleep(seconds, *_):
    time.sleep(seconds)
    return "slept"


def do_record(path, text):
    """Append a line to a file, so that it shows in which order requests were run."""
    with open(path, "a") as file:
        file.write(f"{text}\n")


def do_stop(folder):
    """Stop this process, as a debugger or a frozen container would."""
    _note(folder)
    os.kill(os.getpid(), signal.SIGSTOP)
    return "went on"


def do_wait(folder, *_):
    """Note the worker's pid in a folder, and wait there for a file called go."""
    _note(folder)
    while not os.path.exists(f"{folder}/go"):
        time.sleep(0.005)
    return "went"


def do_die_unless(folder, *_):
    """Note the worker's pid in a folder, and die unless a file called good is there."""
    _note(folder)
    if not os.path.exists(f"{folder}/good"):
        os._exit(3)
    return "lived"


def do_daemon(folder, seconds=120):
    """Leave a child in a session of its own, with all that a fork at the C level inherits."""
    if ctypes.PyDLL(None).fork() == 0:
        os.setsid()
        _note(folder, f"daemon-{os.getpid()}")
        end = time.monotonic() + seconds
        while time.monotonic() < end and os.path.exists(folder):
            time.sleep(0.02)
        os._exit(0)
    return os.getpid()


def do_fork(folder, seconds=120):
    """Leave such a child as Python forks it, and tell which files it has."""
    if os.fork() == 0:
        os.setsid()
        _note(folder, f"daemon-{os.getpid()}")
        end = time.monotonic() + seconds
        while time.monotonic() < end and os.path.exists(folder):
            time.sleep(0.02)
        os._exit(0)
    return os.getpid()


def do_chatter(folder):
    """Leave a child that prints without end."""
    if os.fork() == 0:
        os.setsid()
        _note(folder, f"daemon-{os.getpid()}")
        while os.path.exists(folder):
            print("still here", flush=True)
        os._exit(0)
    return os.getpid()


def do_list_files_of_program():
    """Return what a program started without close_fds has open."""
    command = ["ls", "-l", "/proc/self/fd"]
    return subprocess.run(command, check=True, capture_output=True, close_fds=False).stdout.decode()


def do_return_twice(folder):
    """Go on in parent and child, as a service does that forgets where a fork ends."""
    pid = os.getpid()
    if os.fork() == 0:
        _note(folder, f"daemon-{os.getpid()}")
    return pid


def do_answer_and_die(folder, value, times=1):
    """End as soon as the answer has been written."""
    with tempfile.NamedTemporaryFile(dir=folder, delete=False):
        pass
    sendmsg = socket.socket.sendmsg

    def send_and_die(self, buffers):
        pending = b"".join(buffers)
        while pending:
            pending = pending[sendmsg(self, [pending]) :]
        os._exit(0)

    Channel.send = lambda self, buffers: send_and_die(self._sock, buffers)
    return value * times


def _note(folder, name=None):
    with open(f"{folder}/{name or os.getpid()}", "w"):
        pass
