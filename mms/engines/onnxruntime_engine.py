"""Run converted networks with onnxruntime."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mms.archive.candidates import EngineName, Port, Precision
from mms.engines.error_text import is_out_of_memory, reason_line
from mms.engines.imports import installed_version
from mms.engines.network import Array, NetworkFile
from mms.engines.onnx_checks import is_quantized
from mms.engines.onnx_session import engine_errors, graph_of, open_session
from mms.engines.shape_check import ShapeCheck, check_none_missing, match_ports
from mms.errors import InferenceFailed, ModelLoadFailed

_DISTRIBUTIONS = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml")


class OnnxRuntimeEngine:
    """The engine onnxruntime; see `Engine`."""

    name: EngineName = "onnxruntime"
    extra = "onnx"

    def version(self) -> str:
        """Return the installed version, without importing it; "" if it is not installed."""
        return installed_version("onnxruntime", _DISTRIBUTIONS)

    def open(self, file: NetworkFile) -> OnnxRuntimeNetwork:
        """Load a network.

        Raises:
            EngineMissing: onnxruntime is not installed.
            ModelLoadFailed: The file is damaged or foreign, or asks for a precision other than its
                own.
        """
        return OnnxRuntimeNetwork(file)


class OnnxRuntimeNetwork:
    """A network on onnxruntime, see `Network`.

    Raises:
        EngineMissing: onnxruntime is not installed.
        ModelLoadFailed: The file cannot be run as asked.
    """

    def __init__(self, file: NetworkFile) -> None:
        self._file = file
        _check_precision(file)
        self.engine: EngineName = "onnxruntime"
        self.precision: Precision = file.precision
        self.can_fork = file.forks or file.threads == 1
        self._session = open_session(str(file.model), 1 if file.forks else file.threads)
        graph = graph_of(self._session)
        known = [
            {value.name: Port(value.name, value.data_type, value.shape) for value in values}
            for values in (graph.inputs, graph.outputs)
        ]
        source = file.model.name
        self.inputs = match_ports(file.inputs, known[0], "input", source)
        self.outputs = match_ports(file.outputs, known[1], "output", source)
        self._names = [port.name for port in self.inputs]
        self._fetched = [port.name for port in self.outputs]
        check_none_missing([name for name in known[0] if name not in self._names], source)
        self._check = ShapeCheck(self.inputs)
        self._errors = engine_errors()

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the network; see `Network.run`.

        Raises:
            InferenceFailed: onnxruntime fails.
        """
        feed = dict(zip(self._names, self._check(arrays), strict=True))
        try:
            # Its arrays are made anew in each run, so they belong to the caller.
            outputs: list[Any] = self._session.run(self._fetched, feed)
        except self._errors as error:
            if is_out_of_memory(error):
                raise
            raise InferenceFailed(
                f"onnxruntime cannot run {self._file.model.name}: {reason_line(str(error))}"
            ) from error
        return outputs

    def after_fork(self) -> None:
        """Open the file again where this process computes on several threads."""
        if self._file.forks and self._file.threads != 1:
            self._session = open_session(str(self._file.model), self._file.threads)


def _check_precision(file: NetworkFile) -> None:
    own: Precision = "int8" if is_quantized(file.model) else "f32"
    if file.precision != own:
        raise ModelLoadFailed(
            f"{file.model.name}: onnxruntime computes in the precision of the file, {own}; "
            f"{file.precision} was asked for"
        )
