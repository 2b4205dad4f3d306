"""Cut a network before the first nodes that cannot be converted.

What comes before runs on the engine; those nodes and all that depends on them stay on MXNet.
Detectors are such networks: their decoding has no converter, or one that is wrong, and nearly all
of their time is spent before it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from mms.archive.candidates import Port
from mms.convert.exporter import unconvertible
from mms.convert.graph import Node, Traced
from mms.convert.trace import document_of, used_nodes
from mms.errors import ConversionFailed

#: Output of a node: its number, which output, version (as in a symbol's JSON).
Entry = Sequence[int]


def cut(traced: Traced, failed: Collection[str] = ()) -> tuple[Traced, Traced | None]:
    """Separate what can be converted from the rest.

    Args:
        traced: The network.
        failed: Names of further nodes that cannot be converted, as trying has shown.

    Returns:
        The part to convert, and the rest; None if all can be converted. The rest's inputs are the
        first part's outputs in their order, named ``cut_0`` and so on, with types and shapes left
        open (FP32, no axes); behind them the inputs of the network that it reads as well.

    Raises:
        ConversionFailed: No layer comes before a node that cannot be converted; the message names
            its operator.
    """
    refused = {node["name"] for node in unconvertible(traced.symbol)} | set(failed)
    if not refused:
        return traced, None
    return _Cut(traced, refused).parts()


class _Cut:
    """One cut: which nodes are in the tail, and what the tail reads."""

    def __init__(self, traced: Traced, refused: set[str]) -> None:
        self._traced = traced
        self._nodes: list[Node] = traced.symbol["nodes"]
        self._refused = refused
        inputs = {port.name for port in traced.inputs}
        # By node: whether it stays on MXNet, and whether it depends on the network's inputs. What
        # does not, such as a constant, goes to whoever reads it.
        self._stays: list[bool] = []
        self._depends: list[bool] = []
        for node in self._nodes:
            before = [entry[0] for entry in node["inputs"]]
            is_refused = node["name"] in refused and node["op"] != "null"
            self._stays.append(is_refused or any(self._stays[i] for i in before))
            self._depends.append(node["name"] in inputs or any(self._depends[i] for i in before))
        self._crossings: list[tuple[int, int]] = []

    def parts(self) -> tuple[Traced, Traced]:
        tail = self._tail()
        if not self._crossings:
            raise self._failure()
        document = used_nodes({**self._traced.symbol, "heads": [[*e, 0] for e in self._crossings]})
        head = self._part(document, self._traced.inputs)
        if not head.parameters or not head.inputs:
            raise self._failure()
        return head, tail

    def _failure(self) -> ConversionFailed:
        first = next(node for node in self._nodes if node["name"] in self._refused)
        return ConversionFailed(
            f"the operator {first['op']} ({first['name']}) cannot be converted, and no layer comes "
            "before it that could run on another engine"
        )

    def _tail(self) -> Traced:
        """Return the tail's graph, and find what crosses the cut."""
        needed = self._needed_by_tail()
        renumbered: list[Node] = []
        number_of: dict[int, int] = {}
        crossing_of: dict[tuple[int, int], int] = {}
        for entry in self._entries(needed):
            key = (entry[0], entry[1])
            if key[0] not in needed and key not in crossing_of:
                crossing_of[key] = len(renumbered)
                self._crossings.append(key)
                name = self._name(len(crossing_of) - 1)
                renumbered.append({"op": "null", "name": name, "inputs": []})

        def moved(entry: Entry) -> list[int]:
            key = (entry[0], entry[1])
            if key in crossing_of:
                return [crossing_of[key], 0, 0]
            return [number_of[entry[0]], *entry[1:]]

        for number in sorted(needed):
            node = self._nodes[number]
            number_of[number] = len(renumbered)
            renumbered.append({**node, "inputs": [moved(entry) for entry in node["inputs"]]})
        heads = [moved(entry) for entry in self._traced.symbol["heads"]]
        ports = [Port(self._name(index), "FP32", ()) for index in range(len(self._crossings))]
        return self._part(
            document_of(renumbered, heads), (*ports, *self._traced.inputs), len(ports)
        )

    def _needed_by_tail(self) -> set[int]:
        """Return the nodes of the tail, with the parameters, inputs and constants that it reads."""
        needed = {number for number, stays in enumerate(self._stays) if stays}
        todo = [entry[0] for number in needed for entry in self._nodes[number]["inputs"]]
        todo += [entry[0] for entry in self._traced.symbol["heads"]]
        while todo:
            number = todo.pop()
            is_input = self._nodes[number]["op"] == "null"
            if number not in needed and (is_input or not self._depends[number]):
                needed.add(number)
                todo += [entry[0] for entry in self._nodes[number]["inputs"]]
        return needed

    def _entries(self, needed: set[int]) -> Iterator[Entry]:
        for number in sorted(needed):
            yield from self._nodes[number]["inputs"]
        yield from self._traced.symbol["heads"]

    def _name(self, index: int) -> str:
        taken = {node["name"] for node in self._nodes}
        name = f"cut_{index}"
        while name in taken:
            name += "_"
        return name

    def _part(
        self, document: Mapping[str, Any], ports: Sequence[Port], crossings: int = 0
    ) -> Traced:
        names = {node["name"] for node in document["nodes"] if node["op"] == "null"}
        whole = self._traced
        return Traced(
            symbol=document,
            parameters={n: a for n, a in whole.parameters.items() if n in names},
            auxiliary=whole.auxiliary & names,
            inputs=(*ports[:crossings], *(p for p in ports[crossings:] if p.name in names)),
            outputs=len(document["heads"]),
        )
