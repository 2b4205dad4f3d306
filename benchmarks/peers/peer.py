"""What the runner needs to know of a server: how to install, start and ask it."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from benchmarks.client import Request

#: What peers written in Python run the network on; the same engine as ours.
MXNET = ("mxnet==1.9.1", "numpy==1.26.4")
#: Most requests in one forward pass, for every server.
BATCH_SIZE = 8
SERVICES = Path(__file__).parent / "services"


class Workload(Enum):
    """What is served, and how many clients ask at a time, in turn.

    A peer that waits for a batch to fill makes a lone client wait, too, and one that does not
    batch serves a crowd slowly. So each is set up for one client and again for many, at its best
    both times. Ours has one setting per model.
    """

    NOOP_ONE = "noop", (1,)
    NOOP_MANY = "noop", (16, 64)
    CREPE_ONE = "crepe", (1,)
    CREPE_MANY = "crepe", (16, 64)

    def __init__(self, model: str, connections: tuple[int, ...]) -> None:
        self.model = model
        self.connections = connections

    @property
    def title(self) -> str:
        """Its name in the report."""
        return f"{self.model} for {'one client' if self.connections == (1,) else 'many'}"

    @property
    def is_noop(self) -> bool:
        """Whether nothing is computed."""
        return self.model == "noop"

    @property
    def batch_size(self) -> int:
        """Most requests in one forward pass of a peer; 1 is batching off."""
        return 1 if self.connections == (1,) else BATCH_SIZE


class PeerUnavailable(Exception):
    """The peer does not run here; the message says why, and what would help."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where a server runs and what it is given.

    Attributes:
        folder: Empty at the start, removed after the stop. Its path is short: peers put sockets
            there, whose paths may have some 100 characters.
        bin: Commands of the server's own environment.
        assets: The network; see ``assets.py``.
        workers: Processes that run the model, each with one thread.
    """

    folder: Path
    bin: Path
    assets: Path
    workers: int

    def write(self, name: str, text: str) -> Path:
        """Write a file of settings into the folder."""
        path = self.folder / name
        path.write_text(text)
        return path


@dataclass(frozen=True, slots=True)
class Call:
    """A request, and where it is sent."""

    url: str
    request: Request


@dataclass(frozen=True, slots=True)
class Launch:
    """How a server is started for a workload, and how it is asked.

    Attributes:
        command: Arguments, the program first.
        call: The request; the server is ready once it gives the right answer to it.
        settings: What was set, for the report.
        environment: Variables beside those that every server gets.
        configure: Called until it succeeds (no OSError) before the first request, for what can
            only be said over the server's own API.
    """

    command: tuple[str, ...]
    call: Call
    settings: str
    environment: Mapping[str, str] = field(default_factory=dict)
    configure: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A server to compare with.

    Attributes:
        name: Also the name of its folder below ``build/peers``.
        title: With version, for the report.
        packages: What pip installs, pinned.
        launch: Writes settings into the site and says how to start.
        needs: Programs that pip does not install, and what does.
        is_loopback_only: Whether it listens on 127.0.0.1 only. Others are run only where they
            get a network of their own.
    """

    name: str
    title: str
    packages: tuple[str, ...]
    launch: Callable[[Site, Workload], Launch]
    needs: Mapping[str, str] = field(default_factory=dict)
    is_loopback_only: bool = True

    def check(self, is_isolated: bool) -> None:
        """Look whether this machine has what the peer needs.

        Raises:
            PeerUnavailable: It has not.
        """
        for program, install in self.needs.items():
            if shutil.which(program) is None:
                raise PeerUnavailable(f"needs {program}: {install}")
        if not self.is_loopback_only and not is_isolated:
            raise PeerUnavailable(
                "listens on all addresses, so it is run only in a network namespace, and "
                "unshare makes none here"
            )


def free_port() -> int:
    """Return a port that nothing listens on, below those that outgoing connections take.

    Raises:
        PeerUnavailable: There is none.
    """
    # multi-model-server refuses ports above 32767.
    for port in random.sample(range(20000, 32768), 100):
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port
    raise PeerUnavailable("no free port between 20000 and 32767")
