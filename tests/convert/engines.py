"""Run a converted network on each engine as its own library does, without the server's code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.archive.candidates import EngineName, Port, Precision
from mms.archive.data_types import TABLE
from mms.convert.convert import Converted
from mms.engines.cut_network import CutNetwork
from mms.engines.network import Network

Array = NDArray[Any]
_TYPES = {type_.name: type_.numpy for type_ in TABLE}
ENGINES: tuple[EngineName, ...] = ("onnxruntime", "openvino")


class Plain:
    """A `Network` of one of the two libraries."""

    precision: Precision = "f32"
    can_fork = True

    def __init__(self, engine: EngineName, model: bytes, converted: Converted) -> None:
        self.engine = engine
        self.inputs, self.outputs = converted.inputs, converted.outputs
        open_ = _onnxruntime if engine == "onnxruntime" else _openvino
        self._infer = open_(model, self.outputs)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run it on arrays in the order of the inputs."""
        return self._infer(
            {
                port.name: np.ascontiguousarray(array, _TYPES[port.data_type])
                for port, array in zip(self.inputs, arrays, strict=True)
            }
        )

    def after_fork(self) -> None:
        """Do nothing."""


def open_network(engine: EngineName, converted: Converted, model: bytes | None = None) -> Network:
    """Open a converted network, with its tail; `model` instead of the file if given."""
    head = Plain(engine, model or converted.model.read_bytes(), converted)
    return CutNetwork(head, converted.model.parent, converted.tail) if converted.tail else head


def _onnxruntime(model: bytes, outputs: Sequence[Port]) -> Callable[[Any], list[Array]]:
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [port.name for port in outputs]
    return lambda inputs: list(session.run(names, inputs))


def _openvino(model: bytes, outputs: Sequence[Port]) -> Callable[[Any], list[Array]]:
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # refuses it
    import openvino

    settings = {
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model, b""), "CPU", settings)
    request = compiled.create_infer_request()

    def infer(inputs: Any) -> list[Array]:
        request.infer(inputs)
        return [np.array(request.get_tensor(port.name).data) for port in outputs]

    return infer
