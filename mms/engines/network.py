"""What every engine gives: a network that takes and gives NumPy arrays. Imports no engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from mms.archive.candidates import EngineName, Port, Precision

Array = NDArray[Any]


class Network(Protocol):
    """A loaded network, ready to run in this process. Not for several threads at once.

    Attributes:
        engine: Name of the engine.
        precision: What it computes in.
        inputs: Its inputs, in the order in which `run` takes them.
        outputs: Its outputs, in the order in which `run` returns them.
        can_fork: Whether a process that is forked from this one may run it.
    """

    engine: EngineName
    precision: Precision
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    can_fork: bool

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the network.

        Args:
            arrays: One per input, C-contiguous, cast to the input's type if they are of another;
                axis 0 is the batch and may have any size.

        Returns:
            One array per output, which belongs to the caller.

        Raises:
            InvalidInputShape: The number, a shape or a type does not match. Nothing has run: an
                engine itself may answer a wrong shape with nonsense.
            MMSError: The engine cannot run it.
        """

    def after_fork(self) -> None:
        """Make what a forked process needs anew, such as threads."""


@dataclass(frozen=True, slots=True)
class NetworkFile:
    """A network on disk, for one engine.

    Attributes:
        model: Path of the ``.onnx`` or ``.xml``.
        precision: What to compute in.
        inputs: Its inputs, in the order in which they will be given.
        outputs: The outputs to return, in order; by name, since files keep no order of ours.
        threads: Threads to compute on.
        cache: Folder for the compiled network; "" to compile it at each start.
        forks: Whether others are forked from this process, which then never serves: it computes on
            one thread whatever `threads` says, since threads do not survive a fork.
    """

    model: Path
    precision: Precision
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    threads: int = 1
    cache: str = ""
    forks: bool = False


class Engine(Protocol):
    """One engine. Its methods import it when they are first called, and not before.

    Attributes:
        name: Its name in settings and manifests.
        extra: The extra of this package that installs it.
    """

    name: EngineName
    extra: str

    def version(self) -> str:
        """Return the installed version, without importing the engine; "" if it is not installed."""

    def open(self, file: NetworkFile) -> Network:
        """Load a network.

        Raises:
            EngineMissing: The engine is not installed; the message names the extra.
            ModelLoadFailed: The file is damaged, foreign, or needs what the engine lacks; one line.
        """
