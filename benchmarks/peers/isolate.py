"""Run this program once more, in namespaces of its own: no network but loopback, own processes.

Some peers listen on all addresses and leave processes behind. In a network namespace nobody else
can reach them, no port is taken, and with the process namespace everything in it ends. Needs
``unshare`` (util-linux) and a kernel that lets users make namespaces; root is not needed.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile

#: Set for the program inside.
_INSIDE = "PEERS_ISOLATED"
_UNSHARE = (
    *("unshare", "--map-root-user", "--net", "--pid", "--fork", "--mount-proc"),
    "--kill-child",
)
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 0x1


def is_isolated() -> bool:
    """Tell whether this is the program inside."""
    return _INSIDE in os.environ


def can_isolate() -> bool:
    """Tell whether this machine lets us make namespaces."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_UNSHARE, "true"], capture_output=True, check=False).returncode == 0


def run_isolated(arguments: list[str]) -> int:
    """Run ``python -m benchmarks.peers`` inside and return its exit status.

    An exception here (SystemExit, KeyboardInterrupt) ends everything inside.
    """
    command = [*_UNSHARE, sys.executable, "-m", "benchmarks.peers", *arguments]
    # Whatever is inside may be killed before it has tidied up.
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as scratch:
        environment = {**os.environ, _INSIDE: "1", "TMPDIR": scratch}
        return subprocess.run(command, env=environment, check=False).returncode


def raise_loopback() -> None:
    """Switch the new network's only interface on."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        # struct ifreq: the interface's name, and its flags as a short.
        request = struct.pack("16sH14x", b"lo", 0)
        flags = struct.unpack("16sH14x", fcntl.ioctl(sock, _SIOCGIFFLAGS, request))[1]
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP))
