"""Open small networks for the tests of engines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from mms.archive.candidates import EngineName, Port
from mms.engines.network import Network, NetworkFile
from mms.engines.registry import engine
from tests.kit.onnx_models import FLOAT, constant, linear, make_model, value

ENGINES: tuple[EngineName, ...] = ("onnxruntime", "openvino")


def port(name: str, *shape: int, type_: str = "FP32") -> Port:
    return Port(name, type_, shape)


LINEAR_INPUTS = (port("x", 0, 3),)
LINEAR_OUTPUTS = (port("y", 0, 2), port("rows", 0, 3))


def write(folder: Path, model: onnx.ModelProto | bytes, name: str = "net.onnx") -> Path:
    path = folder / name
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def linear_file(path: Path, **options: Any) -> NetworkFile:
    """Describe a file of `linear`, which is written if `path` is a folder."""
    model = write(path, linear()) if path.is_dir() else path
    return NetworkFile(
        model,
        **{"precision": "f32", "inputs": LINEAR_INPUTS, "outputs": LINEAR_OUTPUTS, **options},
    )


def open_network(
    name: EngineName,
    folder: Path,
    model: onnx.ModelProto,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
) -> Network:
    file = NetworkFile(write(folder, model), "f32", tuple(inputs), tuple(outputs))
    return engine(name).open(file)


def quantized() -> onnx.ModelProto:
    """y = x W on (N, 4) -> (N, 4) with x and W rounded to multiples of 1/8 and 1/64."""
    weights = np.random.default_rng(3).integers(-100, 100, (4, 4)).astype(np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "step", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "step", "zero"], ["d"]),
        helper.make_node("DequantizeLinear", ["w", "fine", "zero"], ["dw"]),
        helper.make_node("MatMul", ["d", "dw"], ["y"]),
    ]
    constants = [
        constant("step", 1 / 8),
        constant("fine", 1 / 64),
        numpy_helper.from_array(np.array(0, np.int8), "zero"),
        numpy_helper.from_array(weights, "w"),
    ]
    return make_model(
        nodes, [value("x", FLOAT, ["N", 4])], [value("y", FLOAT, ["N", 4])], constants
    )
