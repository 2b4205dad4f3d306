"""Read an MXNet symbol: its inputs, outputs, and the shapes that its weights determine. Pure.

Nothing is computed: MXNet itself infers the rest in the worker.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from mms.errors import ArchiveError

#: Symbols of the deepest published networks take 2 MB.
MAX_SYMBOL_BYTES = 64 << 20
#: Operators that are for training: the label that they compare with is no input of a request.
_LOSSES = (
    *("SoftmaxOutput", "Softmax", "LinearRegressionOutput", "LogisticRegressionOutput"),
    *("MAERegressionOutput", "SVMOutput", "softmax_cross_entropy", "CTCLoss", "_contrib_CTCLoss"),
)
#: Operators that keep the shape of their first input.
_SAME_SHAPE = frozenset(
    (
        *("Activation", "BatchNorm", "BlockGrad", "CuDNNBatchNorm", "BatchNorm_v1", "Cast"),
        *("Dropout", "LeakyReLU", "_copy", "abs", "amp_cast", "cast", "clip", "exp", "identity"),
        *("log", "relu", "sigmoid", "sqrt", "square", "tanh", "LRN", "InstanceNorm"),
        *("_minus_scalar", "_plus_scalar", "_mul_scalar", "_div_scalar", "_rdiv_scalar"),
        *("_rminus_scalar", "_MinusScalar", "_PlusScalar", "_MulScalar", "_DivScalar"),
        *("_power_scalar", "_maximum_scalar", "_minimum_scalar"),
        *("broadcast_sub", "broadcast_minus", "broadcast_add", "broadcast_plus"),
        *("broadcast_mul", "broadcast_div"),
    )
)
_MAX_STEPS = 200
#: Of the deepest published networks, 5,000.
_MAX_NODES = 200_000

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Node:
    """One operator or variable.

    Attributes:
        op: Its operator; "null" for a variable.
        name: Its name.
        attrs: Its attributes, strings as in the file.
        inputs: Node and output number of each input.
    """

    op: str
    name: str
    attrs: Mapping[str, str]
    inputs: tuple[tuple[int, int], ...]

    @property
    def is_variable(self) -> bool:
        """Whether it is an input, a parameter or a label."""
        return self.op == "null"


@dataclass(frozen=True, slots=True)
class Symbol:
    """A graph of operators.

    Attributes:
        nodes: In an order in which each comes after its inputs.
        heads: Node and output number of each output.
        document: The JSON document that it was read from.
    """

    nodes: tuple[Node, ...]
    heads: tuple[tuple[int, int], ...]
    document: dict[str, Any] = field(repr=False)

    def inputs(self, parameters: Mapping[str, Shape]) -> list[str]:
        """Return the variables that neither the parameter file nor training provides."""
        labels = {
            self.nodes[source].name
            for node in self.nodes
            if node.op in _LOSSES
            for source, _ in node.inputs[1:]
        }
        states = {
            self.nodes[source].name
            for node in self.nodes
            if node.op.startswith(("BatchNorm", "CuDNNBatchNorm"))
            for source, _ in node.inputs[3:]
        }
        return [
            node.name
            for node in self.nodes
            if node.is_variable
            and node.name not in parameters
            and node.name not in labels | states
            and not node.name.endswith("label")
        ]

    def outputs(self) -> list[str]:
        """Return the names of the outputs, as MXNet lists them."""
        several: dict[int, set[int]] = {}
        for node, number in self.heads:
            several.setdefault(node, set()).add(number)
        return [
            self.nodes[node].name
            if self.nodes[node].is_variable
            else f"{self.nodes[node].name}_output{number if len(several[node]) > 1 else ''}"
            for node, number in self.heads
        ]

    def stated_shape(self, name: str) -> Shape | None:
        """Return the shape that a variable was declared with, if it was."""
        for node in self.nodes:
            if node.is_variable and node.name == name:
                shape = _tuple(node.attrs.get("__shape__", ""))
                return shape if shape and all(size >= 0 for size in shape) else None
        return None

    def first_layer(self, name: str) -> tuple[Node, int] | None:
        """Return the first operator with weights that an input reaches, and where it enters.

        Only operators that keep its shape may lie between.
        """
        at = next((i for i, n in enumerate(self.nodes) if n.is_variable and n.name == name), None)
        if at is None:
            return None
        for _ in range(_MAX_STEPS):
            users = [
                (i, node, place)
                for i, node in enumerate(self.nodes)
                for place, (source, _) in enumerate(node.inputs)
                if source == at
            ]
            layer = next((u for u in users if u[1].op not in _SAME_SHAPE), None)
            if layer is not None:
                return layer[1], layer[2]
            if not users:
                return None
            at = users[0][0]
        return None

    def known_shape(self, name: str, parameters: Mapping[str, Shape]) -> Shape | None:
        """Return what the weights of an input's first layer say of its shape; 0 is any size.

        Returns:
            None if not even the number of axes is known.
        """
        found = self.first_layer(name)
        if found is None or found[1] != 0:
            return None
        node, _ = found
        if node.op in ("Flatten", "flatten"):
            # Whatever the shape is, rows of the flattened length are accepted as well.
            after = next((n for n in self.nodes if self._first_input(n) is node), None)
            if after is None:
                return None
            node = after
        if node.op == "Embedding":
            return (0, 0) if len(node.inputs) > 1 else None
        weight = self._weight(node, parameters)
        if weight is None:
            return None
        if node.op == "FullyConnected" and len(weight) == 2:
            return (0, weight[1]) if node.attrs.get("flatten", "True") != "False" else None
        if node.op == "Convolution" and len(weight) >= 3:
            groups = _count(node, "num_group") or 1
            layout = node.attrs.get("layout", "None")
            if layout.endswith("C"):
                return (0, *(0 for _ in weight[2:]), weight[-1] * groups)
            return (0, weight[1] * groups, *(0 for _ in weight[2:]))
        if node.op == "Deconvolution" and len(weight) >= 3:
            return (0, weight[0], *(0 for _ in weight[2:]))
        return None

    def classes(self, head: int, parameters: Mapping[str, Shape]) -> int:
        """Return the number of classes of an output; 0 if the last layer does not say it."""
        node = self.nodes[self.heads[head][0]]
        for _ in range(_MAX_STEPS):
            if node.op == "FullyConnected":
                return _count(node, "num_hidden")
            if node.op == "Convolution":
                return _count(node, "num_filter")
            if not node.inputs or node.op not in (*_SAME_SHAPE, *_LOSSES, "softmax", "Flatten"):
                return 0
            node = self.nodes[node.inputs[0][0]]
        return 0

    def _first_input(self, node: Node) -> Node | None:
        return self.nodes[node.inputs[0][0]] if node.inputs else None

    def _weight(self, node: Node, parameters: Mapping[str, Shape]) -> Shape | None:
        names = [self.nodes[source].name for source, _ in node.inputs[1:]]
        return next((parameters[name] for name in names if name in parameters), None)


def read_symbol(path: Path) -> Symbol:
    """Return the symbol in a ``-symbol.json`` file.

    Raises:
        ArchiveError: It is not a symbol, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SYMBOL_BYTES + 1)
    except OSError as error:
        raise ArchiveError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_SYMBOL_BYTES:
        raise ArchiveError(f"{path}: larger than the {MAX_SYMBOL_BYTES} bytes allowed")
    try:
        return parse_symbol(orjson.loads(data))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise ArchiveError(
            f"{path}: not a symbol of MXNet, as Symbol.save and HybridBlock.export write it"
        ) from None


def parse_symbol(document: Any) -> Symbol:
    """Return the symbol of a JSON document.

    Raises:
        ValueError, KeyError, TypeError, IndexError, AttributeError: It is not one.
    """
    nodes: list[Node] = []
    if len(document["nodes"]) > _MAX_NODES:
        raise ValueError("too many nodes")
    for index, entry in enumerate(document["nodes"]):
        # Before version 1.0, attributes were split between these.
        attrs = {**entry.get("param", {}), **entry.get("attr", {}), **entry.get("attrs", {})}
        inputs = tuple((int(link[0]), int(link[1])) for link in entry["inputs"])
        if any(not 0 <= source < index for source, _ in inputs):
            raise ValueError("a node comes before its input")
        nodes.append(Node(str(entry["op"]), str(entry["name"]), _strings(attrs), inputs))
    heads = tuple((int(head[0]), int(head[1])) for head in document["heads"])
    if not heads or any(not 0 <= node < len(nodes) for node, _ in heads):
        raise ValueError("no such head")
    return Symbol(tuple(nodes), heads, document)


def _count(node: Node, key: str) -> int:
    """Return a number of an operator's attributes; 0 if there is none."""
    text = node.attrs.get(key, "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 10 else 0


def _strings(attrs: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in attrs.items()}


def _tuple(text: str) -> Shape:
    if len(text) > 200:
        return ()
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ()
    is_shape = isinstance(value, (tuple, list)) and all(type(size) is int for size in value)
    return tuple(value) if is_shape else ()
