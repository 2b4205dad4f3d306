"""Open ONNX models on onnxruntime or OpenVINO; ``python -m`` it with FILE to describe one.

The service opens its model here, in the worker; the exporter runs this module as a process.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import orjson

from mms.archive.candidates import Port, Precision
from mms.archive.onnx_file import read_graph
from mms.archive.onnx_graph import Graph, GraphValue, graph_document
from mms.engines.imports import is_installed
from mms.engines.network import Network, NetworkFile
from mms.engines.onnx_checks import is_quantized
from mms.engines.onnx_session import graph_of, open_session
from mms.engines.openvino_engine import OpenVINOEngine, partial_shape, read_model
from mms.errors import ArchiveError, EngineMissing, ModelLoadFailed
from mms.wire.messages import EngineWish

_Name = Literal["onnxruntime", "openvino"]


@dataclass(frozen=True, slots=True)
class OnnxModel:
    """An open ONNX model.

    Attributes:
        engine: What runs it.
        precision: What it computes in.
        graph: Its inputs and outputs.
        session: The onnxruntime.InferenceSession; None on OpenVINO.
        file: What OpenVINO opens.
    """

    engine: _Name
    precision: Precision
    graph: Graph
    session: Any
    file: NetworkFile

    def network(self, inputs: Sequence[GraphValue], outputs: Sequence[GraphValue]) -> Network:
        """Return the network on OpenVINO; onnxruntime's is its session.

        Args:
            inputs: All of the graph's, in the order in which the network shall take them.
            outputs: What it shall return, in order.

        Raises:
            ModelLoadFailed: OpenVINO cannot run it.
        """
        ports = [
            tuple(Port(value.name, value.data_type, value.shape) for value in values)
            for values in (inputs, outputs)
        ]
        return OpenVINOEngine().open(replace(self.file, inputs=ports[0], outputs=ports[1]))


def open_model(path: Path, wish: EngineWish, threads: int = 0, gpu: int | None = None) -> OnnxModel:
    """Open a model on the engine that is asked for, else on onnxruntime if it is installed.

    Args:
        path: The ``.onnx`` file.
        wish: Engine and precision; bf16 must be asked for by name, since nothing was compared.
        threads: Compute threads; 0 leaves their number to the engine.
        gpu: Number of the GPU to run on, which onnxruntime can; None is the CPU.

    Raises:
        ModelLoadFailed: The model cannot be run as asked; the message is one line.
        EngineMissing: No engine that can run it is installed.
    """
    engine = _choose(path, wish, gpu)
    own: Precision = "int8" if is_quantized(path) else "f32"
    precision: Precision = own if wish.precision == "auto" else wish.precision  # type: ignore[assignment] # checked with the settings
    if precision != own and (precision, engine) != ("bf16", "openvino"):
        other = "; bf16 needs OpenVINO" if precision == "bf16" else ""
        raise ModelLoadFailed(
            f"{path.name}: {precision} was asked for, but the file computes in {own}{other}"
        )
    file = NetworkFile(path, precision, (), (), threads, wish.cache)
    if engine == "openvino":
        return OnnxModel(engine, precision, _graph_on_openvino(path), None, file)
    session = open_session(str(path), threads, gpu)
    return OnnxModel(engine, precision, graph_of(session), session, file)


def _choose(path: Path, wish: EngineWish, gpu: int | None) -> _Name:
    if wish.engine == "mxnet":
        raise ModelLoadFailed(
            f"{path.name}: an ONNX model does not run on mxnet; set the model's engine to "
            "onnxruntime, openvino or auto"
        )
    if wish.engine == "openvino" and gpu is not None:
        raise ModelLoadFailed(
            f"{path.name}: openvino was asked for, and runs on the CPU only; set the model's "
            "engine to onnxruntime, or serve it without a GPU"
        )
    if wish.engine != "auto":
        return wish.engine  # type: ignore[return-value] # checked with the settings
    if is_installed("onnxruntime") and (wish.precision != "bf16" or gpu is not None):
        return "onnxruntime"
    if is_installed("openvino") and gpu is None:
        return "openvino"
    if is_installed("onnxruntime"):
        return "onnxruntime"
    raise EngineMissing(
        "an ONNX model needs onnxruntime or OpenVINO, and neither is installed; run: "
        "pip install 'mxnet-model-server[onnx]', or pip install 'mxnet-model-server[openvino]'"
    )


def _graph_on_openvino(path: Path) -> Graph:
    """Return a model's graph: the names of its axes from the file, missing shapes from OpenVINO.

    Raises:
        ModelLoadFailed: OpenVINO cannot run it.
    """
    inferred = {
        name: partial_shape(port) for port in read_model(path).outputs for name in port.get_names()
    }
    try:
        graph = read_graph(path)
    except ArchiveError as error:
        raise ModelLoadFailed(str(error)) from error
    outputs = (
        replace(value, dims=value.dims or inferred.get(value.name, ())) for value in graph.outputs
    )
    return replace(
        graph, outputs=tuple(outputs), runtime=OpenVINOEngine().version(), engine="openvino"
    )


def main(path: str) -> None:
    """Print the graph of a model, or the reason why it cannot be opened, as JSON."""
    try:
        document = graph_document(open_model(Path(path), EngineWish(), threads=1).graph)
    except EngineMissing as error:
        document = {"missing": str(error)}
    except ModelLoadFailed as error:
        document = {"error": str(error)}
    sys.stdout.buffer.write(orjson.dumps(document))


if __name__ == "__main__":
    main(sys.argv[1])
