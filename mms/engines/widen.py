"""Turn one-dimensional convolutions into two-dimensional ones of height 1. Pure.

oneDNN's int8 convolution supports images only. A text or signal of shape (N, C, W) is an image of
shape (N, C, 1, W), and the result is the same to the last bit. Parts of the graph that can work on
images stay images throughout, so that int8 values flow from one convolution to the next.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping
from typing import Any

#: The added axis.
HEIGHT_AXIS = 2
#: Operators that work the same on an image of height 1, with the number of their data inputs (the
#: others are parameters); None means all.
_TRANSPARENT: dict[str, int | None] = {
    "Activation": 1,
    "BatchNorm": 1,
    "Dropout": 1,
    "LeakyReLU": 1,
    "_copy": 1,
    "clip": 1,
    "relu": 1,
    "sigmoid": 1,
    "tanh": 1,
    "elemwise_add": None,
    "elemwise_mul": None,
}
#: Operators to which the height makes no difference: they return (N, features) either way.
_FLATTENING = ("Flatten", "flatten", "FullyConnected")
_REGRESSION_OUTPUTS = {
    "LinearRegressionOutput": "_copy",
    "MAERegressionOutput": "_copy",
    "LogisticRegressionOutput": "sigmoid",
}
_SPATIAL = {"kernel": 1, "stride": 1, "dilate": 1, "pad": 0}

Node = dict[str, Any]


def widen(graph: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Rewrite a symbol's JSON document.

    Args:
        graph: As parsed from ``...-symbol.json``.

    Returns:
        The new document, and the names of the weights of (filters, channels, width) that need a new
        axis at `HEIGHT_AXIS`. Without anything to rewrite, the document is unchanged and there are
        no names.
    """
    if not any(_is_one_dimensional(node) for node in graph["nodes"]):
        return dict(graph), []
    return _Widening(graph).run()


def for_inference(graph: Mapping[str, Any]) -> dict[str, Any]:
    """Replace training outputs, which compare themselves with a label, by their inference form.

    The label's variable is then unused, and so no longer an input of the network.
    """
    document = copy.deepcopy(dict(graph))
    for node in document["nodes"]:
        attributes = node.get("attrs", {})
        if node["op"] == "SoftmaxOutput":
            is_multi = attributes.get("multi_output") in ("True", "1")
            keeps_shape = attributes.get("preserve_shape") in ("True", "1")
            node["op"] = "softmax"
            node["attrs"] = {"axis": "-1" if keeps_shape and not is_multi else "1"}
        elif node["op"] in _REGRESSION_OUTPUTS:
            node["op"] = _REGRESSION_OUTPUTS[node["op"]]
            node.pop("attrs", None)
        else:
            continue
        node["inputs"] = node["inputs"][:1]
    return document


class _Widening:
    """One walk over a graph, in its topological order."""

    def __init__(self, graph: Mapping[str, Any]) -> None:
        self._graph = graph
        self._nodes: list[Node] = []
        # By old node: its new index, and whether its outputs are images now.
        self._number: list[int] = []
        self._is_image: list[bool] = []
        self._adapted: dict[tuple[int, int, bool], int] = {}
        self._weights: list[str] = []

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """Rewrite every node, then the graph's outputs and tables."""
        for node in self._graph["nodes"]:
            self._add(copy.deepcopy(node))
        heads = [self._input(entry, as_image=False) for entry in self._graph["heads"]]
        document = {
            **self._graph,
            "nodes": self._nodes,
            "arg_nodes": [i for i, node in enumerate(self._nodes) if node["op"] == "null"],
            "heads": heads,
            # One output per node, which holds for networks used for serving; MXNet reads it so.
            "node_row_ptr": list(range(len(self._nodes) + 1)),
        }
        return document, self._weights

    def _add(self, node: Node) -> None:
        inputs, op = node["inputs"], node["op"]
        count: int | None = 0
        if _is_one_dimensional(node):
            count = 1
            _widen_attributes(node)
            if op == "Convolution":
                weight = self._nodes[self._number[inputs[1][0]]]
                # The shape it was created with, which no longer applies.
                weight.get("attrs", {}).pop("__shape__", None)
                self._weights.append(weight["name"])
        elif op in _TRANSPARENT and any(self._is_image[entry[0]] for entry in inputs):
            count = _TRANSPARENT[op]
        elif op in _FLATTENING:
            node["inputs"] = [[self._number[i], out, *rest] for i, out, *rest in inputs]
            self._append(node, is_image=False)
            return
        images = len(inputs) if count is None else count
        node["inputs"] = [
            self._input(entry, as_image=index < images) for index, entry in enumerate(inputs)
        ]
        self._append(node, is_image=images > 0)

    def _append(self, node: Node, is_image: bool) -> None:
        self._number.append(len(self._nodes))
        self._is_image.append(is_image)
        self._nodes.append(node)

    def _input(self, entry: list[int], as_image: bool) -> list[int]:
        """Return an input in the new graph, with an axis added or removed where needed."""
        old, output, *rest = entry
        if self._is_image[old] == as_image:
            return [self._number[old], output, *rest]
        key = (old, output, as_image)
        if key not in self._adapted:
            name = f"{self._graph['nodes'][old]['name']}_{'widened' if as_image else 'narrowed'}"
            self._adapted[key] = len(self._nodes)
            self._nodes.append(
                {
                    "op": "expand_dims" if as_image else "squeeze",
                    "name": f"{name}{output or ''}",
                    "attrs": {"axis": str(HEIGHT_AXIS)},
                    "inputs": [[self._number[old], output, *rest]],
                }
            )
        return [self._adapted[key], 0, *rest]


def _is_one_dimensional(node: Mapping[str, Any]) -> bool:
    if node["op"] not in ("Convolution", "Pooling"):
        return False
    return len(_tuple(node.get("attrs", {}).get("kernel", "()"))) == 1


def _widen_attributes(node: Node) -> None:
    attributes = node["attrs"]
    for key, neutral in _SPATIAL.items():
        if values := _tuple(attributes.get(key, "()")):
            attributes[key] = f"({neutral}, {values[0]})"
    if attributes.get("layout") == "NCW":
        attributes["layout"] = "NCHW"


def _tuple(text: str) -> tuple[int, ...]:
    value = ast.literal_eval(text) if text not in ("None", "") else ()
    return value if isinstance(value, tuple) else (value,)
