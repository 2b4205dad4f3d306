"""Break ONNX graphs on purpose, in the ways that converters get wrong.

Each function changes a copy of a model and returns where it did; None if the model has nothing of
its kind. Where there is a choice, the given generator chooses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

Array = NDArray[Any]
Mutation = Callable[["Model", np.random.Generator], str | None]

_PASSING_ON = (
    *("Identity", "Reshape", "Transpose", "Unsqueeze", "Squeeze", "Cast"),
    *("Concat", "Slice", "Split"),
)


class Model:
    """An ONNX graph, asked for its nodes and its stored arrays."""

    def __init__(self, proto: Any) -> None:
        self.proto = onnx.ModelProto()
        self.proto.CopyFrom(proto)
        self.graph = self.proto.graph
        self._stored = {tensor.name: tensor for tensor in self.graph.initializer}

    def nodes(self, *kinds: str) -> list[Any]:
        """Return the nodes of these kinds."""
        return [node for node in self.graph.node if node.op_type in kinds]

    def array(self, name: str) -> Array | None:
        """Return a stored array, also behind nodes that pass it on; None if it is computed."""
        tensor = self._tensor(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def store(self, name: str, array: Array) -> None:
        """Replace a stored array."""
        tensor = self._tensor(name)
        tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), tensor.name))

    def _tensor(self, name: str) -> Any:
        if name in self._stored:
            return self._stored[name]
        for node in self.nodes(*_PASSING_ON):
            if name in node.output:
                return self._tensor(node.input[0])
        return None

    def weights(self, *kinds: str) -> Iterator[tuple[Any, str, Array]]:
        """Return nodes of these kinds, each with a stored array of two or more axes."""
        for node in self.nodes(*kinds):
            for name in node.input:
                array = self.array(name)
                if array is not None and array.ndim > 1 and array.dtype.kind == "f":
                    yield node, name, array
                    break


def attribute(node: Any, name: str) -> Any:
    """Return an attribute's message; None if the node leaves it out."""
    return next((each for each in node.attribute if each.name == name), None)


def _set(node: Any, name: str, value: Any) -> None:
    if (old := attribute(node, name)) is not None:
        node.attribute.remove(old)
    node.attribute.append(onnx.helper.make_attribute(name, value))


def _choose(items: list[Any], rng: np.random.Generator) -> Any:
    return items[int(rng.integers(len(items)))] if items else None


def flip_gamma(model: Model, rng: np.random.Generator) -> str | None:
    """Take 1 for a stored gamma, or a gamma for the 1 of fix_gamma."""
    node = _choose(model.nodes("BatchNormalization", "InstanceNormalization"), rng)
    if node is None:
        return None
    gamma = model.array(node.input[1])
    if gamma is None:
        return None
    is_fixed = bool((gamma == 1).all())
    other = rng.uniform(0.5, 1.5, gamma.shape) if is_fixed else np.ones_like(gamma)
    model.store(node.input[1], other.astype(gamma.dtype))
    return str(node.name or node.op_type)


def swap_mean_and_variance(model: Model, rng: np.random.Generator) -> str | None:
    """Read the running mean as the variance and the other way round."""
    node = _choose(model.nodes("BatchNormalization"), rng)
    if node is None:
        return None
    node.input[3], node.input[4] = node.input[4], node.input[3]
    return str(node.name)


def grow_epsilon(model: Model, rng: np.random.Generator) -> str | None:
    """Multiply a BatchNorm's epsilon by 100."""
    node = _choose(model.nodes("BatchNormalization", "InstanceNormalization"), rng)
    if node is None:
        return None
    old = attribute(node, "epsilon")
    _set(node, "epsilon", 100 * (old.f if old is not None else 1e-5))
    return str(node.name or node.op_type)


def permute_slope(model: Model, rng: np.random.Generator) -> str | None:
    """Roll the slopes of a PReLU by one channel."""
    for node in model.nodes("PRelu"):
        slope = model.array(node.input[1])
        if slope is not None and slope.size > 1:
            model.store(node.input[1], np.roll(slope.ravel(), 1).reshape(slope.shape))
            return str(node.name)
    return None


def change_slope(model: Model, rng: np.random.Generator) -> str | None:
    """Take ONNX's default for a leaky slope."""
    node = _choose(model.nodes("LeakyRelu"), rng)
    if node is None:
        return None
    _set(node, "alpha", 0.01)
    return str(node.name)


_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def permute_weight(model: Model, rng: np.random.Generator) -> str | None:
    """Roll a weight along its longest axis by one."""
    chosen = _choose(list(model.weights(*_LAYERS, "Gather")), rng)
    if chosen is None:
        return None
    node, name, array = chosen
    model.store(name, np.roll(array, 1, axis=int(np.argmax(array.shape))))
    return str(node.name or node.op_type)


def mirror_kernel(model: Model, rng: np.random.Generator) -> str | None:
    """Convolve where MXNet correlates."""
    chosen = _choose([w for w in model.weights("Conv", "ConvTranspose") if w[2].shape[-1] > 1], rng)
    if chosen is None:
        return None
    node, name, array = chosen
    model.store(name, array[..., ::-1])
    return str(node.name)


def shift_pad(model: Model, rng: np.random.Generator) -> str | None:
    """Move one pixel of padding from the end to the beginning, or pad where nothing was."""
    found = [n for n in model.nodes("Conv", "AveragePool", "MaxPool") if attribute(n, "pads")]
    node = _choose(found, rng)
    if node is None:
        return None
    pads = list(attribute(node, "pads").ints)
    half = len(pads) // 2
    pads[half - 1] += 1
    if pads[-1]:
        pads[-1] -= 1
    _set(node, "pads", pads)
    return str(node.name)


def shift_stride(model: Model, rng: np.random.Generator) -> str | None:
    """Stride by one more, or by one less."""
    node = _choose(model.nodes("Conv", "MaxPool", "AveragePool", "ConvTranspose"), rng)
    old = attribute(node, "strides") if node is not None else None
    if old is None:
        return None
    _set(node, "strides", [*old.ints[:-1], old.ints[-1] - 1 or 2])
    return str(node.name)


def drop_bias(model: Model, rng: np.random.Generator) -> str | None:
    """Forget the bias of a layer."""
    found = [n for n in model.nodes("Conv", "Gemm", "ConvTranspose") if len(n.input) > 2]
    adds = [
        (node, name)
        for node in model.nodes("Add")
        for name in node.input
        if (a := model.array(name)) is not None and a.size > 1
    ]
    if found:
        node = _choose(found, rng)
        del node.input[2:]
        return str(node.name)
    if not adds:
        return None
    node, name = _choose(adds, rng)
    model.store(name, np.zeros_like(model.array(name)))
    return str(node.name or node.op_type)


def swap_outputs(model: Model, rng: np.random.Generator) -> str | None:
    """Exchange the first two outputs."""
    if len(model.graph.output) < 2:
        return None
    first, second = (value.name for value in model.graph.output[:2])
    names = {first: second, second: first}
    for node in model.graph.node:
        for side in (node.input, node.output):
            for index, name in enumerate(side):
                side[index] = names.get(name, name)
    return str(first)


def change_norm_bias(model: Model, rng: np.random.Generator) -> str | None:
    """Take another bias for a local response normalisation."""
    node = _choose(model.nodes("LRN"), rng)
    if node is None:
        return None
    _set(node, "bias", 1.0)
    return str(node.name)


def flip_pad_counted(model: Model, rng: np.random.Generator) -> str | None:
    """Count the padding of an average pooling, or leave it out."""
    for node in model.nodes("AveragePool"):
        pads = attribute(node, "pads")
        if pads is not None and any(pads.ints):
            old = attribute(node, "count_include_pad")
            _set(node, "count_include_pad", 0 if old is not None and old.i else 1)
            return str(node.name)
    return None


def flip_rounding(model: Model, rng: np.random.Generator) -> str | None:
    """Round the size of a pooling's output up where it was down, or down."""
    node = _choose(model.nodes("AveragePool", "MaxPool"), rng)
    if node is None:
        return None
    old = attribute(node, "ceil_mode")
    _set(node, "ceil_mode", 0 if old is not None and old.i else 1)
    return str(node.name)


def change_activation(model: Model, rng: np.random.Generator) -> str | None:
    """Take another function of the same shape."""
    others = {"Relu": "Sigmoid", "Tanh": "Softsign", "Sigmoid": "HardSigmoid", "Softplus": "Relu"}
    node = _choose(model.nodes(*others), rng)
    if node is None:
        return None
    node.op_type = others[node.op_type]
    return str(node.name or node.op_type)


def drop_softmax(model: Model, rng: np.random.Generator) -> str | None:
    """Return scores instead of probabilities."""
    node = _choose(model.nodes("Softmax"), rng)
    if node is None:
        return None
    node.op_type = "Identity"
    del node.attribute[:]
    return str(node.name)


_RECURRENT = ("LSTM", "GRU", "RNN")


def swap_gates(model: Model, rng: np.random.Generator) -> str | None:
    """Read a recurrent layer's weights in another order of the gates, or of the units."""
    chosen = _choose(list(model.weights(*_RECURRENT)), rng)
    if chosen is None:
        return None
    node, name, array = chosen
    axis = int(np.argmax(array.shape))
    model.store(name, np.roll(array, max(1, array.shape[axis] // 4), axis=axis))
    return str(node.name or node.op_type)


def turn_direction(model: Model, rng: np.random.Generator) -> str | None:
    """Run a recurrent layer from the last step to the first."""
    found = [
        node
        for node in model.nodes(*_RECURRENT)
        if (old := attribute(node, "direction")) is None or old.s == b"forward"
    ]
    node = _choose(found, rng)
    if node is None:
        return None
    _set(node, "direction", "reverse")
    return str(node.name or node.op_type)


def flip_reset(model: Model, rng: np.random.Generator) -> str | None:
    """Apply a GRU's reset gate before the multiplication instead of after it."""
    node = _choose(model.nodes("GRU"), rng)
    if node is None:
        return None
    old = attribute(node, "linear_before_reset")
    _set(node, "linear_before_reset", 0 if old is not None and old.i else 1)
    return str(node.name or node.op_type)


def drop_state(model: Model, rng: np.random.Generator) -> str | None:
    """Begin a recurrent layer at zero instead of at the state that it is given."""
    inputs = {value.name for value in model.graph.input}
    feeds = {name: node for node in model.graph.node for name in node.output}

    def is_given(name: str) -> bool:
        node = feeds.get(name)
        return name in inputs or (node is not None and any(is_given(n) for n in node.input[:1]))

    for node in model.nodes(*_RECURRENT):
        if len(node.input) > 5 and node.input[5] and is_given(node.input[5]):
            del node.input[5:]
            return str(node.name or node.op_type)
    return None


def swap_concatenated(model: Model, rng: np.random.Generator) -> str | None:
    """Concatenate computed arrays in another order."""
    for node in model.nodes("Concat"):
        if len(set(node.input)) > 1 and all(model.array(name) is None for name in node.input):
            node.input[0], node.input[1] = node.input[1], node.input[0]
            return str(node.name)
    return None


def turn_axes(model: Model, rng: np.random.Generator) -> str | None:
    """Exchange the last two axes that a transposition leaves."""
    node = _choose([n for n in model.nodes("Transpose") if attribute(n, "perm")], rng)
    if node is None:
        return None
    perm = list(attribute(node, "perm").ints)
    _set(node, "perm", [*perm[:-2], perm[-1], perm[-2]])
    return str(node.name)


def change_constant(model: Model, rng: np.random.Generator) -> str | None:
    """Change a scalar that the graph computes with by a tenth."""
    for node in model.nodes("Mul", "Div", "Sub"):
        for name in node.input:
            array = model.array(name)
            if array is not None and array.size == 1 and array.dtype.kind == "f" and array.any():
                model.store(name, array * np.asarray(1.1, array.dtype))
                return str(node.name)
    return None


MUTATIONS: tuple[Mutation, ...] = (
    flip_gamma,
    swap_mean_and_variance,
    grow_epsilon,
    permute_slope,
    change_slope,
    permute_weight,
    mirror_kernel,
    shift_pad,
    shift_stride,
    drop_bias,
    swap_outputs,
    change_norm_bias,
    flip_pad_counted,
    flip_rounding,
    change_activation,
    drop_softmax,
    swap_gates,
    turn_direction,
    flip_reset,
    drop_state,
    swap_concatenated,
    turn_axes,
    change_constant,
)
