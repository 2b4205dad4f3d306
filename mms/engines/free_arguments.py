"""Decide what becomes of a symbol's arguments that are neither inputs nor saved. Pure.

Module made every such argument, and left it zero. That is right for what only training needs
(labels), and for initial states; a weight that is missing would be a network that answers wrongly,
and an input that signature.json lacks would always be zero. So the graph is asked how each is used,
whatever it is called.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

#: Operators that compare their first input with a label, which they ignore otherwise.
_LABELLED = frozenset(
    (
        "SoftmaxOutput",
        "Softmax",
        "LinearRegressionOutput",
        "LogisticRegressionOutput",
        "MAERegressionOutput",
        "SVMOutput",
        "softmax_cross_entropy",
        "CTCLoss",
        "ctc_loss",
        "_contrib_CTCLoss",
        "_contrib_ctc_loss",
    )
)
#: Operators that make a loss of whatever was computed.
_LOSSES = frozenset(("MakeLoss", "make_loss"))
#: The inputs of layers that are parameters, from the first to the last of them.
_PARAMETERS = {
    "FullyConnected": (1, 2),
    "Convolution": (1, 2),
    "Deconvolution": (1, 2),
    "BatchNorm": (1, 4),
    "BatchNorm_v1": (1, 4),
    "LayerNorm": (1, 2),
    "InstanceNorm": (1, 2),
    "GroupNorm": (1, 2),
    "Embedding": (1, 1),
    "_contrib_SparseEmbedding": (1, 1),
    "LeakyReLU": (1, 1),
    "RNN": (1, 1),
}
#: From here on, the inputs of RNN are its initial states.
_FIRST_STATE = 2


class Graph:
    """A symbol's JSON document, asked for the use of its variables.

    Args:
        document: As parsed from ``...-symbol.json``.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._nodes: list[Mapping[str, Any]] = document["nodes"]
        self._number = {
            node["name"]: number for number, node in enumerate(self._nodes) if node["op"] == "null"
        }
        self._heads = {entry[0] for entry in document["heads"]}
        self._users: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, node in enumerate(self._nodes):
            for slot, entry in enumerate(node["inputs"]):
                self._users[entry[0]].append((number, slot))

    def layer_of(self, name: str) -> str:
        """Return the layer that has a variable as its parameter; "" if none has."""
        for user, slot in self._users[self._number[name]]:
            node = self._nodes[user]
            first, last = _PARAMETERS.get(node["op"], (1, 0))
            if first <= slot <= last:
                return str(node["name"])
        return ""

    def may_be_zero(self, name: str) -> bool:
        """Return whether a variable is a label, or an initial state."""
        if name not in self._number or self.layer_of(name):
            return False
        number = self._number[name]
        users = self._users[number]
        is_state = all(
            self._nodes[user]["op"] == "RNN" and slot >= _FIRST_STATE for user, slot in users
        )
        return (bool(users) and is_state) or self._is_declared_state(number) or self._is_label(name)

    def _is_declared_state(self, number: int) -> bool:
        """Whether it was declared as mx.rnn's cells do: a layout, and any number of rows."""
        node = self._nodes[number]
        attributes = node.get("attrs") or node.get("attr") or {}
        if "__layout__" not in attributes:
            return False
        try:
            shape = ast.literal_eval(attributes.get("__shape__", "()"))
        except (ValueError, SyntaxError):
            return False
        return isinstance(shape, tuple) and len(shape) > 1 and shape[0] == 0

    def _is_label(self, name: str) -> bool:
        """Whether every way from it to an output of the network ends in a loss."""
        todo = [self._number[name]]
        seen: set[int] = set()
        while todo:
            number = todo.pop()
            if number in seen:
                continue
            seen.add(number)
            if number in self._heads:
                return False
            for user, slot in self._users[number]:
                op = self._nodes[user]["op"]
                if op not in _LOSSES and not (op in _LABELLED and slot > 0):
                    todo.append(user)
        return True
