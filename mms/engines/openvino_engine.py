"""Run converted networks, and ONNX models, with OpenVINO."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mms.archive.candidates import EngineName, Port, Precision
from mms.archive.onnx_graph import show_shape
from mms.engines.error_text import is_out_of_memory
from mms.engines.imports import import_openvino, installed_version
from mms.engines.network import Array, NetworkFile
from mms.engines.onnx_checks import check_external_files
from mms.engines.shape_check import ShapeCheck, check_none_missing, match_ports
from mms.errors import InferenceFailed, InvalidInputShape, ModelLoadFailed

_Shapes = tuple[tuple[int, ...], ...]

logger = logging.getLogger("mms.worker")

#: The V2 protocol's name of each of OpenVINO's types, where a name differs from the usual pattern.
_KINDS = {"boolean": "BOOL", "string": "BYTES"}
_LETTERS = {"f": "FP", "i": "INT", "u": "UINT"}
_INT32 = np.iinfo(np.int32)
#: Networks compiled for one shape each, of a model that cannot be compiled for all.
_MAX_SHAPES = 16
#: Sets of shapes that are remembered as fitting, some hundred bytes each.
_MAX_FITTING = 4096
#: Text around OpenVINO's reasons: files and lines of its own source, and headings.
_NOISE = re.compile(
    r"Exception from \S+:\d+:|Check '.*?' failed at \S+:\d+:|FrontEnd API failed with|"
    r"Loading input model|Model wasn't fully converted\.|Summary:|^-- |Available frontends:.*"
)
_ADVICE = {
    "no conversion rule": "export it with standard operators, run it on onnxruntime, or upgrade "
    "OpenVINO",
    "unable to read the model": "it is damaged, or in another format: fetch or export it again",
    "unsupported value_info": "run it on onnxruntime, which has sequences and maps",
}
_DEFAULT_ADVICE = "export it again, or upgrade OpenVINO"
_MAX_REASON_CHARS = 400


class OpenVINOEngine:
    """The engine OpenVINO; see `Engine`."""

    name: EngineName = "openvino"
    extra = "openvino"

    def version(self) -> str:
        """Return the installed version, without importing it; "" if it is not installed."""
        return installed_version("openvino", ("openvino", "openvino-nightly"))

    def open(self, file: NetworkFile) -> OpenVINONetwork:
        """Load a network.

        Raises:
            EngineMissing: OpenVINO is not installed.
            ModelLoadFailed: The file is damaged or foreign, or needs what OpenVINO lacks.
        """
        return OpenVINONetwork(file)


class OpenVINONetwork:
    """A network on OpenVINO, see `Network`.

    OpenVINO computes on integers of 64 bits in 32: inputs that do not fit are refused.

    Raises:
        EngineMissing: OpenVINO is not installed.
        ModelLoadFailed: The file cannot be run.
    """

    engine: EngineName = "openvino"

    def __init__(self, file: NetworkFile) -> None:
        self._file = file
        self.precision: Precision = file.precision
        #: With threads of its own, a forked network computes on one of them only.
        self.can_fork = file.forks or file.threads == 1
        self._model = read_model(file.model)
        source = file.model.name
        self.inputs = match_ports(file.inputs, _ports(self._model.inputs), "input", source)
        self.outputs = match_ports(file.outputs, _ports(self._model.outputs), "output", source)
        self._places = _places(self._model.inputs, self.inputs)
        self._fetched = _places(self._model.outputs, self.outputs)
        others = (i for i in range(len(self._model.inputs)) if i not in self._places)
        check_none_missing([self._model.inputs[i].get_any_name() for i in others], source)
        self._check = ShapeCheck(self.inputs)
        self._long = [i for i, port in enumerate(self.inputs) if port.data_type == "INT64"]
        self._tensor = import_openvino().Tensor
        #: Another view of the model, which is reshaped; weights are shared.
        self._reshaped = self._model.clone()
        #: Shapes of all inputs that fit each other.
        self._fitting: set[_Shapes] = set()
        #: Requests by the shapes of all inputs, the one used last at the end; see `_compile_all`.
        self._by_shape: OrderedDict[_Shapes, Any] = OrderedDict()
        self._compile_all(1 if file.forks else file.threads)

    def run(self, arrays: Sequence[Array]) -> list[Array]:
        """Run the network; see `Network.run`.

        Raises:
            InferenceFailed: OpenVINO fails.
        """
        arrays = self._check(arrays)
        for index in self._long:
            _check_int32(arrays[index], self.inputs[index])
        shapes = tuple(array.shape for array in arrays)
        if shapes not in self._fitting:
            self._reshape(shapes)
        try:
            request = self._request or self._request_for(shapes)
            for place, array in zip(self._places, arrays, strict=True):
                # OpenVINO does not borrow arrays that it must not write.
                request.set_input_tensor(
                    place, self._tensor(array, shared_memory=array.flags.writeable)
                )
            # Synchronously, on this thread: nothing else was seen to work after a fork.
            request.infer(share_outputs=True)
            # The next call overwrites OpenVINO's own.
            return [request.get_output_tensor(place).data.copy() for place in self._fetched]
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise InferenceFailed(
                f"OpenVINO cannot run {self._file.model.name}: {_reason(str(error))}"
            ) from error

    def after_fork(self) -> None:
        """Compile anew where this process computes on several threads."""
        if self._file.forks and self._file.threads != 1:
            self._compile_all(self._file.threads)

    def _compile_all(self, threads: int) -> None:
        """Compile for all shapes; if that fails, `run` compiles for each shape it meets.

        Some graphs, such as a BERT with a free time axis, compile for fixed shapes only.
        """
        self._threads = threads
        self._by_shape.clear()
        self._request: Any = None
        try:
            self._request = _compile(self._model, self._file, threads, self._file.cache)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            if not any(port.partial_shape.is_dynamic for port in self._model.inputs):
                raise _load_failed(self._file.model, error) from error
            logger.info(
                "%s is compiled for each shape, since OpenVINO cannot compile it for all: %s",
                self._file.model.name,
                _reason(str(error)),
            )

    def _reshape(self, shapes: _Shapes) -> None:
        """Have OpenVINO compute all shapes in the network, as it does not when it runs.

        Given shapes that do not fit each other, a compiled model returned empty arrays or crashed.
        It takes 2 ms for 500 operators, once for each shape.

        Raises:
            InvalidInputShape: The shapes do not fit each other.
        """
        ports = self._reshaped.inputs
        by_place = zip(self._places, shapes, strict=True)
        try:
            self._reshaped.reshape({ports[place]: list(shape) for place, shape in by_place})
        except RuntimeError as error:
            named = zip(self.inputs, shapes, strict=True)
            raise InvalidInputShape(
                f"{self._file.model.name} cannot run on inputs of these shapes: "
                f"{', '.join(f'{port.name} {show_shape(shape)}' for port, shape in named)}: "
                f"{_reason(str(error))}"
            ) from error
        if len(self._fitting) >= _MAX_FITTING:
            self._fitting.clear()
        self._fitting.add(shapes)

    def _request_for(self, shapes: _Shapes) -> Any:
        request = self._by_shape.pop(shapes, None)
        if request is None:
            self._reshape(shapes)
            request = _compile(self._reshaped, self._file, self._threads, "")
        self._by_shape[shapes] = request
        if len(self._by_shape) > _MAX_SHAPES:
            self._by_shape.popitem(last=False)
        return request


def read_model(path: Path) -> Any:
    """Return the openvino.Model of an ``.onnx`` or ``.xml`` file.

    Raises:
        EngineMissing: OpenVINO is not installed.
        ModelLoadFailed: It is damaged or foreign, its weights do not lie beside it, or OpenVINO
            lacks an operator or a type.
    """
    core = _core()
    weights = _check_files(path)
    try:
        model = core.read_model(path, weights) if weights else core.read_model(path)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise _load_failed(path, error) from error
    for port in (*model.inputs, *model.outputs):
        if _data_type(port) in ("", "BYTES"):
            type_ = port.element_type.get_type_name()
            raise ModelLoadFailed(
                f"{path.name}: {port.get_any_name()!r} is of type {type_}, which is not supported "
                "on OpenVINO; run it on onnxruntime"
            )
    return model


@functools.cache
def _core() -> Any:
    return import_openvino().Core()


def _check_files(path: Path) -> Path | None:
    """Check what OpenVINO would read; return the file with the weights of an ``.xml``.

    It gets no file that is neither: it would try all formats it knows, TensorFlow's included.

    Raises:
        ModelLoadFailed: The file is missing, foreign, or its weights do not lie beside it.
    """
    damaged = f"{path.name}: it is damaged, or not {{}}: fetch or export it again"
    if path.suffix != ".xml":
        if not check_external_files(path) or not path.stat().st_size:
            raise ModelLoadFailed(damaged.format("an ONNX model"))
        return None
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise ModelLoadFailed(f"{path}: cannot be read: {error.strerror}") from None
    if b"<net" not in head:
        raise ModelLoadFailed(damaged.format("a model of OpenVINO"))
    weights = path.with_suffix(".bin")
    if not weights.is_file() or os.path.dirname(os.path.realpath(weights)) != os.path.realpath(
        path.parent
    ):
        raise ModelLoadFailed(
            f"{path.name}: its weights must lie beside it in {weights.name}; put that file there, "
            "not a link to it"
        )
    return weights


def _compile(model: Any, file: NetworkFile, threads: int, cache: str) -> Any:
    """Return a request of the compiled model.

    Raises:
        RuntimeError: OpenVINO cannot compile it.
    """
    settings: dict[str, Any] = {
        # Its default on CPUs with matrix units is bf16, whatever the model's own type.
        "INFERENCE_PRECISION_HINT": "bf16" if file.precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        # With one thread, its default is CPU 0 for each process.
        "ENABLE_CPU_PINNING": False,
    }
    core = _core()
    if cache:
        try:
            compiled = core.compile_model(model, "CPU", {**settings, "CACHE_DIR": cache})
            return compiled.create_infer_request()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            logger.info("compiled networks cannot be kept in %s: %s", cache, _reason(str(error)))
    return core.compile_model(model, "CPU", settings).create_infer_request()


def _data_type(port: Any) -> str:
    """Return the V2 protocol's name of a port's element type; "" if it has none."""
    name = port.element_type.get_type_name()
    kind, bits = name[:1], name[1:]
    usual = kind in _LETTERS and bits in ("8", "16", "32", "64")
    return _KINDS.get(name) or (f"{_LETTERS[kind]}{bits}" if usual else "")


def _ports(ports: Iterable[Any]) -> dict[str, Port]:
    """Return ports by each of their names: tensors that were merged keep all of them."""
    return {
        name: Port(name, _data_type(port), partial_shape(port))
        for port in ports
        for name in port.get_names()
    }


def partial_shape(port: Any) -> tuple[int, ...]:
    """Return the size of each axis, 0 being any; () if the number of axes is open."""
    shape = port.partial_shape
    if shape.rank.is_dynamic:
        return ()
    return tuple(axis.get_length() if axis.is_static else 0 for axis in shape)


def _places(own: Sequence[Any], ports: Sequence[Port]) -> list[int]:
    """Return the index of each port among OpenVINO's."""
    by_name = {name: index for index, port in enumerate(own) for name in port.get_names()}
    return [by_name[port.name] for port in ports]


def _check_int32(array: Array, port: Port) -> None:
    if array.size and not _INT32.min <= int(array.min()) <= int(array.max()) <= _INT32.max:
        raise InvalidInputShape(
            f"input {port.name!r} has values beyond 32 bits, in which OpenVINO computes all "
            "integers; run the network on another engine, or send smaller ones"
        )


def _load_failed(path: Path, error: RuntimeError) -> ModelLoadFailed:
    reason = _reason(str(error))
    lower = reason.lower()
    advice = next((text for phrase, text in _ADVICE.items() if phrase in lower), _DEFAULT_ADVICE)
    version = OpenVINOEngine().version()
    return ModelLoadFailed(f"OpenVINO {version} cannot run {path.name}: {reason}; {advice}")


def _reason(message: str) -> str:
    """Return OpenVINO's reason on one line."""
    lines = (_NOISE.sub("", line).strip(" .;:") for line in message.splitlines())
    reason = ": ".join(line for line in lines if line)
    return reason if len(reason) <= _MAX_REASON_CHARS else f"{reason[:_MAX_REASON_CHARS]}..."
