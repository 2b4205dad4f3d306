"""Converters of our own, for operators that MXNet's exporter lacks.

Each has the exporter's own signature: a node of the symbol and the exporter's state in, ONNX nodes
out, the last of which has the node's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.helper import make_node, make_tensor_value_info, np_dtype_to_tensor_dtype

from mms.convert.draft import is_true, sizes
from mms.convert.rnn import is_plain

#: What converts one node.
Converter = Callable[..., Any]


class _Place:
    """One node that is being converted."""

    def __init__(self, node: Mapping[str, Any], state: Mapping[str, Any]) -> None:
        self.name: str = node["name"]
        self.attributes: Mapping[str, str] = node.get("attrs", {})
        self._state = state
        lookup = state["outputs_lookup"]
        self.entries = [lookup[entry[0]][entry[1]] for entry in node["inputs"]]
        self.inputs = [entry.name for entry in self.entries]
        self.nodes: list[Any] = []

    @property
    def dtype(self) -> Any:
        """NumPy's type of the first input."""
        return self.entries[0].dtype

    def constant(self, suffix: str, value: Any, dtype: Any = np.int64) -> str:
        """Add a constant; return its name."""
        name = f"{self.name}_{suffix}"
        self._state["initializer"].append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def scalar(self, suffix: str, value: float) -> str:
        """Add a constant of the first input's type; return its name."""
        return self.constant(suffix, value, self.dtype)

    def add(self, op: str, inputs: list[str], suffix: str = "", **attributes: Any) -> str:
        """Add a node; return the name of its output, which without suffix is the result."""
        name = f"{self.name}_{suffix}" if suffix else self.name
        self.nodes.append(make_node(op, inputs, [name], name=name, **attributes))
        return name


def _unary(op: str) -> Converter:
    def convert(node: Mapping[str, Any], **state: Any) -> Any:
        place = _Place(node, state)
        place.add(op, place.inputs)
        return place.nodes

    return convert


def convert_parameter(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert a variable: an input, or a parameter, whose bytes are taken as they are.

    The exporter makes a Python list of each parameter's numbers: 49 s for 530 MB.
    """
    name = node["name"]
    if state["is_input"]:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(state["in_type"])
        return [make_tensor_value_info(name, state["in_type"], state["in_shape"])], (dtype,)
    array = np.ascontiguousarray(state["weights"][name])
    state["initializer"].append(numpy_helper.from_array(array, name))
    type_ = np_dtype_to_tensor_dtype(array.dtype)
    return [make_tensor_value_info(name, type_, array.shape)], (array.dtype,)


def convert_group_norm(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert GroupNorm: an instance normalisation of each group.

    MXNet 1.9.1 has one gamma and beta per group, later versions one per channel.
    """
    place = _Place(node, state)
    data, gamma, beta = place.inputs
    groups = int(place.attributes.get("num_groups", "1"))
    epsilon = float(place.attributes.get("eps", "1e-5"))
    weights = state["weights"]
    per_group = weights[gamma].size == groups
    shape = place.add("Shape", [data], "shape")
    grouped = place.add("Reshape", [data, place.constant("groups", [0, groups, -1])], "grouped")
    scale = gamma if per_group else place.constant("ones", np.ones(groups), place.dtype)
    shift = beta if per_group else place.constant("zeros", np.zeros(groups), place.dtype)
    normal = place.add("InstanceNormalization", [grouped, scale, shift], "normal", epsilon=epsilon)
    if not per_group:
        channels = weights[gamma].size
        wide = place.constant("channels", [0, channels, -1])
        column = place.constant("column", [channels, 1])
        normal = place.add("Reshape", [normal, wide], "wide")
        factor = place.add("Reshape", [gamma, column], "gamma")
        term = place.add("Reshape", [beta, column], "beta")
        normal = place.add("Add", [place.add("Mul", [normal, factor], "scaled"), term], "shifted")
    place.add("Reshape", [normal, shape])
    return place.nodes


def convert_softmax_activation(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert SoftmaxActivation: over the channels, or over all of a row."""
    place = _Place(node, state)
    data = place.inputs[0]
    if place.attributes.get("mode", "instance") == "channel":
        place.add("Softmax", [data], axis=1)
        return place.nodes
    shape = place.add("Shape", [data], "shape")
    flat = place.add("Flatten", [data], "flat", axis=1)
    place.add("Reshape", [place.add("Softmax", [flat], "softmax", axis=1), shape])
    return place.nodes


def convert_reverse(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert a reversal of axes, as a slice that goes backwards: for any sizes."""
    place = _Place(node, state)
    axes = sizes(place.attributes["axis"])
    last = np.full(len(axes), np.iinfo(np.int64).min)
    bounds = [
        place.constant("start", np.full(len(axes), -1)),
        place.constant("end", last),
        place.constant("axes", axes),
        place.constant("step", np.full(len(axes), -1)),
    ]
    place.add("Slice", [place.inputs[0], *bounds])
    return place.nodes


def convert_rsqrt(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert rsqrt: the reciprocal of the root."""
    place = _Place(node, state)
    place.add("Reciprocal", [place.add("Sqrt", place.inputs, "root")])
    return place.nodes


def convert_mod_scalar(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert the remainder of a division by a number, which has that number's sign."""
    place = _Place(node, state)
    scalar = place.scalar("scalar", float(place.attributes["scalar"]))
    if np.dtype(place.dtype).kind != "f":
        place.add("Mod", [place.inputs[0], scalar])
        return place.nodes
    whole = place.add("Floor", [place.add("Div", [place.inputs[0], scalar], "share")], "whole")
    place.add("Sub", [place.inputs[0], place.add("Mul", [whole, scalar], "multiple")])
    return place.nodes


def convert_l2_normalization(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert L2Normalization: x / sqrt(sum(x²) + eps), over a row, the channels or the places."""
    place = _Place(node, state)
    data = place.inputs[0]
    mode = place.attributes.get("mode", "instance")
    epsilon = place.scalar("eps", float(place.attributes.get("eps", "1e-10")))
    shape = place.add("Shape", [data], "shape")
    if mode == "instance":
        work = place.add("Flatten", [data], "flat", axis=1)
        axis = 1
    elif mode == "spatial":
        work = place.add("Reshape", [data, place.constant("places", [0, 0, -1])], "flat")
        axis = 2
    else:
        work, axis = data, 1
    square = place.add("Mul", [work, work], "square")
    total = place.add("ReduceSum", [square, place.constant("axes", [axis])], "total", keepdims=1)
    length = place.add("Sqrt", [place.add("Add", [total, epsilon], "sum")], "length")
    place.add("Reshape", [place.add("Div", [work, length], "normal"), shape])
    return place.nodes


def convert_adaptive_pooling(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert AdaptiveAvgPooling2D to size 1, which is a global average."""
    return _unary("GlobalAveragePool")(node, **state)


def convert_comparison(op: str, *, negated: bool = False) -> Converter:
    """Return a converter of a comparison with a number, which gives 0 and 1 of the input's type."""

    def convert(node: Mapping[str, Any], **state: Any) -> Any:
        place = _Place(node, state)
        scalar = place.scalar("scalar", float(place.attributes["scalar"]))
        result = place.add(op, [place.inputs[0], scalar], "compared")
        if negated:
            result = place.add("Not", [result], "negated")
        place.add("Cast", [result], to=np_dtype_to_tensor_dtype(np.dtype(place.dtype)))
        return place.nodes

    return convert


def convert_rnn(node: Mapping[str, Any], **state: Any) -> Any:
    """Convert one layer of an RNN in one direction, see `mms.convert.rnn`.

    The exporter computes the weights in the graph, from the vector in which MXNet keeps them.
    """
    place = _Place(node, state)
    mode, size = place.attributes["mode"], int(place.attributes["state_size"])
    op, order = _RECURRENT[mode]
    rows = len(order) * size
    packed = state["weights"][place.inputs[1]]
    width = (packed.size - 2 * rows) // rows - size
    ends = np.cumsum([rows * width, rows * size, rows])
    read, kept, *biases = np.split(packed, ends)

    def ordered(array: Any, columns: int) -> Any:
        return array.reshape(len(order), size * columns)[order].reshape(1, -1)

    inputs = [
        place.inputs[0],
        place.constant("W", ordered(read, width).reshape(1, rows, width), packed.dtype),
        place.constant("R", ordered(kept, size).reshape(1, rows, size), packed.dtype),
        place.constant("B", np.hstack([ordered(bias, 1) for bias in biases]), packed.dtype),
        "",
    ]
    for entry, source in zip(place.inputs[2:], node["inputs"][2:], strict=True):
        # Zeros are what ONNX starts from; MXNet's have no batch until an RNN reads them.
        inputs.append("" if state["mx_graph"][source[0]]["op"] == "_zeros" else entry)
    outputs = [f"{place.name}_all", *(f"{place.name}{i}" for i in range(1, len(inputs) - 4))]
    extra: dict[str, Any] = {"linear_before_reset": 1} if op == "GRU" else {}
    if op == "RNN":
        extra = {"activations": ["Relu" if mode == "rnn_relu" else "Tanh"]}
    place.nodes.append(
        make_node(op, inputs, outputs, name=f"{place.name}_{op}", hidden_size=size, **extra)
    )
    place.add("Squeeze", [outputs[0], place.constant("axis", [1])])
    return place.nodes, (place.dtype,) * len(outputs)


#: Operator of ONNX by mode, and the order of its gates among MXNet's: input, forget, cell and
#: output of an LSTM; reset, update and new of a GRU.
#: https://github.com/onnx/onnx/blob/main/docs/Operators.md#LSTM
_RECURRENT: dict[str, tuple[str, list[int]]] = {
    "lstm": ("LSTM", [0, 3, 1, 2]),
    "gru": ("GRU", [1, 0, 2]),
    "rnn_tanh": ("RNN", [0]),
    "rnn_relu": ("RNN", [0]),
}


def is_convertible(op: str, found: Mapping[str, str]) -> bool:
    """Return whether one of these converters fits the attributes of a node."""
    if op == "RNN":
        return is_plain(found)
    if op == "_contrib_AdaptiveAvgPooling2D":
        return found.get("output_size", "None") in ("None", "()", "1", "(1,)", "(1, 1)", "[1]")
    if op == "GroupNorm":
        return not is_true(found.get("output_mean_var", "False"))
    return True


CONVERTERS: dict[str, Converter] = {
    "null": convert_parameter,
    "RNN": convert_rnn,
    "GroupNorm": convert_group_norm,
    "SoftmaxActivation": convert_softmax_activation,
    "L2Normalization": convert_l2_normalization,
    "_contrib_AdaptiveAvgPooling2D": convert_adaptive_pooling,
    "erf": _unary("Erf"),
    "sign": _unary("Sign"),
    "softsign": _unary("Softsign"),
    "reverse": convert_reverse,
    "rsqrt": convert_rsqrt,
    "sinh": _unary("Sinh"),
    "cosh": _unary("Cosh"),
    "_mod_scalar": convert_mod_scalar,
    "_greater_equal_scalar": convert_comparison("GreaterOrEqual"),
    "_lesser_equal_scalar": convert_comparison("LessOrEqual"),
    "_not_equal_scalar": convert_comparison("Equal", negated=True),
}
