"""A network taken out of its service: MXNet's graph as data, with its parameters. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from mms.archive.candidates import Port

Array = NDArray[Any]
#: A node of a symbol's JSON: ``op``, ``name``, ``inputs`` and, unless empty, ``attrs``.
Node = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Traced:
    """A network as a graph.

    Attributes:
        symbol: The JSON document of ``-symbol.json``.
        parameters: Array by name, without ``arg:`` and ``aux:``; of the types that MXNet computes
            in.
        auxiliary: The names of those that are auxiliary states.
        inputs: Its inputs in the order of the call, by their names in the graph, with the types
            that the service passes; an axis whose size differed between calls is 0, and so is the
            batch.
        outputs: Number of outputs.
    """

    symbol: Mapping[str, Any]
    parameters: Mapping[str, Array]
    auxiliary: frozenset[str]
    inputs: tuple[Port, ...]
    outputs: int
