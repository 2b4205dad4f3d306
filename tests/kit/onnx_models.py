"""Build tiny ONNX models for the tests, each a folder that is ready to export."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.kit.archives import source_of

FLOAT, INT64, STRING, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.STRING,
    TensorProto.UINT8,
)
#: What every onnxruntime that the package allows can read.
_OPSET, _IR_VERSION, _ML_OPSET = 17, 8, 3

Dims = Sequence[int | str | None] | None


def value(name: str, type_: int, dims: Dims) -> onnx.ValueInfoProto:
    """Describe an input or output; dims None leaves its shape unsaid."""
    return helper.make_tensor_value_info(name, type_, dims)


def constant(name: str, values: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, dtype=np.float32), name)


def make_model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[onnx.TensorProto] = (),
    opset: int = _OPSET,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, list(constants))
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", _ML_OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)


def write_model(
    folder: Path,
    model: onnx.ModelProto | bytes,
    signature: dict[str, Any] | None = None,
    labels: Sequence[str] = (),
    service: str = "",
) -> Path:
    """Write ``net.onnx`` and what goes with it into a new folder.

    The service is given as its text or as the name of one of ``tests/kit/services``.
    """
    folder.mkdir(parents=True)
    data = model if isinstance(model, bytes) else model.SerializeToString()
    (folder / "net.onnx").write_bytes(data)
    if signature is not None:
        (folder / "signature.json").write_text(json.dumps(signature))
    if labels:
        (folder / "synset.txt").write_text("\n".join(labels))
    if service:
        (folder / "service.py").write_text(source_of(service))
    return folder


def linear(batch: int | str | None = "N", tells_rows: bool = False) -> onnx.ModelProto:
    """y = x W + b on (N, 3) -> (N, 2): the first entry, and ten plus the rest.

    A second output of (N, 3) holds ones; or, `tells_rows`, the number of rows that ran together.
    """
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["y"]),
        helper.make_node("Mul", ["x", "zero"], ["zeros"]),
        helper.make_node("Add", ["zeros", "one"], ["ones"]),
        helper.make_node("ReduceSum", ["ones", "axis"], ["count"], keepdims=1),
        helper.make_node("Add", ["zeros", "count" if tells_rows else "one"], ["rows"]),
    ]
    constants = [
        constant("w", [[1, 0], [0, 1], [0, 1]]),
        constant("b", [0, 10]),
        constant("zero", [0]),
        constant("one", [1]),
        numpy_helper.from_array(np.array([0]), "axis"),
    ]
    outputs = [value("y", FLOAT, [batch, 2]), value("rows", FLOAT, [batch, 3])]
    return make_model(nodes, [value("x", FLOAT, [batch, 3])], outputs, constants)


def identity(type_: int, dims: Dims) -> onnx.ModelProto:
    """y = x."""
    node = helper.make_node("Identity", ["x"], ["y"])
    return make_model([node], [value("x", type_, dims)], [value("y", type_, dims)])


def types() -> onnx.ModelProto:
    """Four inputs of types that are no float32, each given back: whole, half, flags, texts."""
    shapes: list[tuple[str, int, Dims]] = [
        ("whole", INT64, ["N", None]),
        ("half", TensorProto.FLOAT16, ["N"]),
        ("flags", TensorProto.BOOL, ["N"]),
        ("texts", STRING, ["N"]),
    ]
    return make_model(
        [helper.make_node("Identity", [name], [f"same_{name}"]) for name, _, _ in shapes],
        [value(*shape) for shape in shapes],
        [value(f"same_{name}", type_, dims) for name, type_, dims in shapes],
    )


def arithmetic() -> onnx.ModelProto:
    """(N, 2) float32 left, (N, 2) int64 right -> their sum, and their product of unsaid shape."""
    nodes = [
        helper.make_node("Cast", ["right"], ["other"], to=FLOAT),
        helper.make_node("Add", ["left", "other"], ["sum"]),
        helper.make_node("Mul", ["left", "other"], ["product"]),
    ]
    inputs = [value("left", FLOAT, ["N", 2]), value("right", INT64, ["N", 2])]
    return make_model(nodes, inputs, [value("sum", FLOAT, ["N", 2]), value("product", FLOAT, None)])


def classifier() -> onnx.ModelProto:
    """(N, 2) scores -> the same as a map from class to score per row, as scikit-learn's are."""
    node = helper.make_node(
        "ZipMap", ["x"], ["maps"], domain="ai.onnx.ml", classlabels_int64s=[7, 8]
    )
    row = helper.make_map_type_proto(INT64, helper.make_tensor_type_proto(FLOAT, []))
    output = helper.make_value_info("maps", helper.make_sequence_type_proto(row))
    return make_model([node], [value("x", FLOAT, [None, 2])], [output])


def colours() -> onnx.ModelProto:
    """(N, 3, 4, 6) float32 image -> (N, 3): the mean of each channel."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["scores"]),
    ]
    image = value("image", FLOAT, ["N", 3, 4, 6])
    return make_model(nodes, [image], [value("scores", FLOAT, ["N", 3])])


def brightness() -> onnx.ModelProto:
    """(N, H, W, 1) uint8 image -> (N, 2): the shares of white and black, which sum up to 1."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["means"], axes=[1, 2], keepdims=0),
        helper.make_node("Div", ["means", "full"], ["white"]),
        helper.make_node("Sub", ["one", "white"], ["black"]),
        helper.make_node("Concat", ["white", "black"], ["shares"], axis=1),
    ]
    image = value("image", UINT8, ["N", "H", "W", 1])
    constants = [constant("full", [255]), constant("one", [1])]
    return make_model(nodes, [image], [value("shares", FLOAT, ["N", 2])], constants)


def unsupported() -> onnx.ModelProto:
    """A model with an operator that nobody knows."""
    node = helper.make_node("Frobnicate", ["x"], ["y"])
    return make_model([node], [value("x", FLOAT, ["N"])], [value("y", FLOAT, ["N"])])


def write_external(folder: Path, location: str = "net.onnx.data") -> Path:
    """Write `linear` with its weights in a file of their own."""
    folder.mkdir(parents=True)
    (folder / location).parent.mkdir(exist_ok=True)
    onnx.save_model(
        linear(),
        str(folder / "net.onnx"),
        save_as_external_data=True,
        location=location,
        size_threshold=50,
    )
    return folder


def convolutions(size: int = 24, channels: int = 32, layers: int = 4) -> onnx.ModelProto:
    """(N, channels, size, size) -> scores (N, 10): enough work for more than one thread."""
    random = np.random.default_rng(7)
    nodes, constants, last = [], [], "image"
    for layer in range(layers):
        weight = random.normal(0, 0.1, (channels, channels, 3, 3))
        constants.append(constant(f"w{layer}", weight))
        names = [last, f"w{layer}"]
        nodes.append(helper.make_node("Conv", names, [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]))
        last = f"r{layer}"
    constants.append(constant("dense", random.normal(0, 0.1, (channels, 10))))
    nodes += [
        helper.make_node("GlobalAveragePool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense"], ["scores"]),
    ]
    image = value("image", FLOAT, ["N", channels, size, size])
    return make_model(nodes, [image], [value("scores", FLOAT, ["N", 10])], constants)
