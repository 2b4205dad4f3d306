"""A symbol's graph while it is rewritten. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mms.convert.graph import Array, Node, Traced

#: Output of a node: the node's number, which output, version (as in a symbol's JSON).
Entry = list[int]
#: Adds what stands in a node's place; returns the entries of its outputs, or None to keep it.
Rewrite = Callable[["Draft", Node], "Sequence[Entry] | None"]


class Draft:
    """A copy of a network's graph that may be changed.

    Args:
        traced: The network.

    Attributes:
        nodes: The nodes in an order in which each comes after its inputs.
        heads: The entries that are the network's outputs.
        parameters: Array by name.
    """

    def __init__(self, traced: Traced) -> None:
        self._traced = traced
        self.nodes: list[Node] = [_copied(node) for node in traced.symbol["nodes"]]
        self.heads: list[Entry] = [list(entry) for entry in traced.symbol["heads"]]
        self.parameters: dict[str, Array] = dict(traced.parameters)

    def finished(self) -> Traced:
        """Return the network as it is now."""
        document = {
            **self._traced.symbol,
            "nodes": self.nodes,
            "arg_nodes": [i for i, node in enumerate(self.nodes) if node["op"] == "null"],
            "heads": self.heads,
        }
        # Counts the outputs of each node, which MXNet works out itself if it is missing.
        document.pop("node_row_ptr", None)
        return replace(
            self._traced, symbol=document, parameters=self.parameters, outputs=len(self.heads)
        )

    def of(self, *operators: str) -> list[Node]:
        """Return the nodes of some operators."""
        return [node for node in self.nodes if node["op"] in operators]

    def parameter(self, entry: Entry) -> str | None:
        """Return the name of the parameter that an entry is; None if it is something else."""
        node = self.nodes[entry[0]]
        name: str = node["name"]
        return name if node["op"] == "null" and name in self.parameters else None

    def add(
        self,
        op: str,
        name: str,
        inputs: Sequence[Entry] = (),
        attributes: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Add a node; return the entry of its first output."""
        node: Node = {"op": op, "name": name, "inputs": [list(entry) for entry in inputs]}
        if attributes:
            node["attrs"] = {key: str(value) for key, value in attributes.items()}
        self.nodes.append(node)
        return [len(self.nodes) - 1, 0, 0]

    def add_parameter(self, name: str, array: Array) -> Entry:
        """Add a parameter."""
        self.parameters[name] = array
        return self.add("null", name)

    def rewrite(self, operators: Sequence[str], make: Rewrite) -> None:
        """Put other nodes in the place of those of some operators.

        Args:
            operators: Their names.
            make: Called with each, its inputs renumbered, after what it reads was added again.
        """
        old, self.nodes = self.nodes, []
        outputs: list[Sequence[Entry] | int] = []

        def moved(entry: Entry) -> Entry:
            place = outputs[entry[0]]
            return [place, *entry[1:]] if isinstance(place, int) else list(place[entry[1]])

        for node in old:
            node["inputs"] = [moved(entry) for entry in node["inputs"]]
            made = make(self, node) if node["op"] in operators else None
            if made is None:
                self.nodes.append(node)
                outputs.append(len(self.nodes) - 1)
            else:
                outputs.append(made)
        self.heads = [moved(entry) for entry in self.heads]


def attributes(node: Node) -> dict[str, str]:
    """Return the attributes of a node, which may be changed."""
    found: dict[str, str] = node.setdefault("attrs", {})
    return found


def is_true(text: str) -> bool:
    """Return whether an attribute is set, in any of the spellings that MXNet reads."""
    return text in ("True", "true", "1")


def sizes(text: str) -> list[int]:
    """Return the numbers of an attribute such as ``(3, 3)``, ``[3,3]`` or ``3``; none for None."""
    parts = text.strip("()[] ").split(",")
    return [int(float(part)) for part in parts if part.strip() not in ("", "None")]


def _copied(node: Node) -> Node:
    copy: Node = {"op": node["op"], "name": node["name"]}
    copy["inputs"] = [list(entry) for entry in node["inputs"]]
    # Files of before 2017 call them "attr" or "param".
    found = node.get("attrs") or node.get("attr") or node.get("param")
    if found:
        copy["attrs"] = dict(found)
    return copy
