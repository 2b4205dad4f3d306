"""Open ONNX models with onnxruntime."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mms.archive.onnx_graph import Graph, GraphValue
from mms.engines.error_text import is_out_of_memory
from mms.engines.imports import import_onnxruntime
from mms.engines.onnx_checks import check_external_files
from mms.errors import ModelLoadFailed

_CPU, _CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
#: onnxruntime's severity level for errors; its warnings are about issues that only the exporter
#: of a model can fix.
_LOG_ERRORS = 3
#: Advice by a phrase in onnxruntime's own message; the first match counts.
_ADVICE = {
    "external data path": "put the files with its weights beside it, as they were written",
    "external initializer": "fetch or export the files with its weights again",
    "protobuf": "it is damaged, or not an ONNX model: fetch or export it again",
    "no graph": "it is damaged, or not an ONNX model: fetch or export it again",
    "no op registered": "export it with standard operators, or upgrade onnxruntime",
    "not a registered function/op": "export it with standard operators, or upgrade onnxruntime",
    "find an implementation": "export it with other operators or types, or upgrade onnxruntime",
    "opset": "export it for an older opset, or upgrade onnxruntime",
    "ir version": "export it with an older ir_version, or upgrade onnxruntime",
}
_DEFAULT_ADVICE = "export it again, or upgrade onnxruntime"
#: Text that onnxruntime puts around its reasons: the error's number and name, the file, the line of
#: its own source and that function's signature.
_NOISE = re.compile(
    r"\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from .*? failed:\s*"
    r"|/\S*onnxruntime\S*:\d+ .*?\)(?: const)? (?=[\[A-Z])|\b\w+\.(?:cc|h):\d+ \w+ "
)
_MAX_REASON_CHARS = 400


def open_session(path: str, threads: int = 0, gpu: int | None = None) -> Any:
    """Open a model, ready to run.

    Args:
        path: The ``.onnx`` file.
        threads: Compute threads; 0 leaves their number to onnxruntime.
        gpu: Number of the GPU to run on; None is the CPU.

    Returns:
        An onnxruntime.InferenceSession.

    Raises:
        ModelLoadFailed: The model cannot be run; the message is one line with reason and advice.
        EngineMissing: onnxruntime is not installed.
    """
    ort = import_onnxruntime()
    is_whole = check_external_files(Path(path))
    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS
    options.intra_op_num_threads = threads
    # Operators run sequentially: workers, not operators, run in parallel.
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    # Spinning threads are no faster where cores are shared (measured: a small CNN on two cores took
    # 32 to 46 ms without spinning and 48 to 93 ms with), and take CPU time from other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A pattern is one large block for each set of shapes, kept for ever. Batches come in many
    # sizes: without patterns, a CNN was as fast and took 13 MB less after batches of 8 and 37 MB
    # less after 32. Without the arena it took less still, but ran up to 7 % longer.
    options.enable_mem_pattern = False
    try:
        session = ort.InferenceSession(path, options, providers=_providers(ort, gpu))
    except engine_errors() as error:
        if is_out_of_memory(error):
            raise
        raise ModelLoadFailed(
            f"onnxruntime {ort.__version__} cannot run {os.path.basename(path)}: "
            f"{_explain(str(error))}"
        ) from error
    if not is_whole:
        raise ModelLoadFailed(
            f"{os.path.basename(path)}: it has fields unknown to ONNX, so the files it reads "
            "cannot be determined; export it again"
        )
    if gpu is not None and _CUDA not in session.get_providers():
        raise ModelLoadFailed(
            f"onnxruntime {ort.__version__} cannot use GPU {gpu}: its own message above says why; "
            "fix the driver, CUDA or cuDNN, or serve on the CPU"
        )
    return session


def graph_of(session: Any) -> Graph:
    """Return the inputs and outputs of a session's graph."""
    return Graph(
        tuple(_value(argument) for argument in session.get_inputs()),
        tuple(_value(argument) for argument in session.get_outputs()),
        import_onnxruntime().__version__,
    )


def _value(argument: Any) -> GraphValue:
    return GraphValue(argument.name, argument.type, tuple(argument.shape or ()))


def _providers(ort: Any, gpu: int | None) -> list[Any]:
    if gpu is None:
        return [_CPU]
    if _CUDA not in ort.get_available_providers():
        raise ModelLoadFailed(
            f"GPU {gpu} was asked for, but this onnxruntime {ort.__version__} is built for the "
            "CPU; replace it: pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )
    return [(_CUDA, {"device_id": gpu}), _CPU]


def engine_errors() -> tuple[type[Exception], ...]:
    """Return the classes of onnxruntime's exceptions, which have no common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type)]
    return (RuntimeError, *(cls for cls in own if issubclass(cls, Exception)))


def _explain(message: str) -> str:
    """Return onnxruntime's reason on one line, with advice."""
    reason = _NOISE.sub("", " ".join(message.split())).strip(" .;")
    lower = reason.lower()
    advice = next((text for phrase, text in _ADVICE.items() if phrase in lower), _DEFAULT_ADVICE)
    if len(reason) > _MAX_REASON_CHARS:
        reason = f"{reason[:_MAX_REASON_CHARS]}..."
    return f"{reason}; {advice}"
