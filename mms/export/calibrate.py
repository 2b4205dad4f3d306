"""Quantize the network of an archive: ``python -m mms.export.calibrate FOLDER DATA PREFIX``.

Started by ``mxnet-model-export`` in a separate process. Runs the archive's service on the
calibration data, records the network's inputs, quantizes the network with them, and compares it
with the original on the same inputs. Prints one JSON line: the names of the files it wrote and the
agreement of the two networks.

The scheme is MXNet's "smart" mode with "naive" calibration (the range of each layer is the observed
range), which in measurements was as good as the entropy method.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mms.archive.signature import Signature
from mms.engines.imports import import_mxnet
from mms.engines.int8_net import QuantizedNet
from mms.engines.widen import for_inference, widen
from mms.errors import ExportError, MMSError
from mms.wire.messages import Dialect, LoadSpec, Request, RequestMeta
from mms.worker.failure import load_failure
from mms.worker.loader import make_service
from mms.worker.request import decode_inputs

mx = import_mxnet()

_BATCH = 16
_IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclass(frozen=True, slots=True)
class Report:
    """The files of the int8 network, and its agreement with the original.

    Attributes:
        symbol: Name of the symbol file.
        parameters: Name of the parameter file.
        samples: Number of rows compared.
        agreement: Fraction of rows whose largest output is the same; for networks that do not
            classify, the mean cosine similarity of the outputs.
        max_relative_error: Largest difference of any output, divided by the largest output.
    """

    symbol: str
    parameters: str
    samples: int
    agreement: float
    max_relative_error: float


def quantize(folder: Path, data: Path, prefix: Path) -> Report:
    """Quantize an unpacked archive's network and write it beside `prefix`.

    Raises:
        MMSError: The service does not load, the data does not match it, or the network cannot be
            quantized.
    """
    spec = LoadSpec(
        folder.name, "1", str(folder), "", "", True, None, 1, 1 << 30, logging.WARNING, 0, False
    )
    service, signature, _ = make_service(spec)
    recorder = _Recorder(*_network(service))
    for request in _requests(data, signature):
        inputs = decode_inputs(request, signature) if isinstance(request, Request) else request
        prepared = service._preprocess(inputs)
        service._inference(list(prepared) if isinstance(prepared, Iterator) else prepared)
    arrays = recorder.inputs()
    net = _quantized(recorder, arrays, prefix)
    expected = recorder.outputs()
    got = _run(net, arrays)
    return _compare(expected, got, prefix)


def _network(service: Any) -> tuple[Any, list[str] | None]:
    """Return the block that a service runs, and the names of its inputs if already known."""
    net = getattr(service, "net", None)
    if isinstance(net, mx.gluon.HybridBlock):
        return net, None
    model: Any = getattr(service, "mx_model", None)
    block = getattr(model, "block", None)
    if isinstance(block, mx.gluon.HybridBlock):
        return block, model.data_names
    raise ExportError(
        "only a HybridBlock (self.net) or a symbol (self.mx_model) can be quantized; this service "
        f"runs {type(net).__name__}"
    )


class _Recorder:
    """Records the inputs and outputs of a network while a service runs it.

    Args:
        net: The network.
        names: Names of its inputs; by default those that Gluon assigns when it exports a network.
            Inputs beyond them are for training (labels) and are left out.
    """

    def __init__(self, net: Any, names: list[str] | None) -> None:
        self.net = net
        self.names = names or []
        self.all_inputs: list[Any] = []
        self._calls: list[tuple[list[Any], list[Any]]] = []
        net.register_forward_hook(self._record)

    def _record(self, _: Any, inputs: Sequence[Any], outputs: Any) -> None:
        if not self.names:
            count = len(inputs)
            self.names = ["data"] if count == 1 else [f"data{index}" for index in range(count)]
        parts = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        self.all_inputs = list(inputs)
        kept = inputs[: len(self.names)]
        self._calls.append(([i.asnumpy() for i in kept], [o.asnumpy() for o in parts]))

    def inputs(self) -> list[Any]:
        """Return each input, joined along the batch axis.

        Raises:
            ExportError: The network was never run, or its inputs differ beyond the batch axis.
        """
        return self._joined(0)

    def outputs(self) -> list[Any]:
        """Return each output, joined along the batch axis."""
        return self._joined(1)

    def _joined(self, side: int) -> list[Any]:
        if not self._calls:
            raise ExportError("the network was never run on the calibration data")
        try:
            return [np.concatenate(c) for c in zip(*(c[side] for c in self._calls), strict=True)]
        except ValueError as error:
            raise ExportError(
                f"the network's inputs or outputs differ between requests ({error}); int8 needs "
                "calibration data of a single size"
            ) from None


def _requests(path: Path, signature: Signature) -> Iterator[Request | list[Any]]:
    """Return the calibration data as requests, or as lists of arrays that stand for them.

    Raises:
        ExportError: It is in no supported format, or empty.
    """
    if path.is_dir():
        files = sorted(f for f in path.rglob("*") if f.suffix.lower() in _IMAGES)
        if not files:
            raise ExportError(f"{path}: no images ({', '.join(_IMAGES)}) in this folder")
        for file in files:
            yield _request(file.read_bytes(), "image/jpeg")
        return
    if path.suffix in (".npz", ".npy"):
        yield from _arrays(path, signature)
        return
    if path.suffix not in (".json", ".jsonl"):
        raise ExportError(
            f"{path}: calibration data must be a .jsonl file with one request body per line, a "
            ".json file with a list of them, a .npz file with one array per input, or a folder of "
            "images"
        )
    text = path.read_bytes()
    try:
        if path.suffix == ".json":
            bodies = orjson.loads(text)
        else:
            bodies = [orjson.loads(line) for line in text.splitlines() if line.strip()]
    except orjson.JSONDecodeError as error:
        raise ExportError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(bodies, list) or not bodies:
        raise ExportError(f"{path}: expected a list of request bodies")
    for body in bodies:
        yield _request(orjson.dumps(body), "application/json")


def _arrays(path: Path, signature: Signature) -> Iterator[list[Any]]:
    loaded = np.load(path, allow_pickle=False)
    names = signature.input_names
    arrays = {names[0]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    for name in names:
        if name not in arrays:
            raise ExportError(f"{path}: no array for input {name!r}; it has {', '.join(arrays)}")
    rows = {len(arrays[name]) for name in names}
    if len(rows) != 1 or not rows - {0}:
        raise ExportError(f"{path}: the arrays must have the same number of rows, and at least one")
    for row in range(rows.pop()):
        yield [arrays[name][row : row + 1] for name in names]


def _request(body: bytes, content_type: str) -> Request:
    meta = RequestMeta("calibration", Dialect.PLAIN, content_type, "")
    return Request(meta, memoryview(body))


def _quantized(recorder: _Recorder, inputs: list[Any], prefix: Path) -> QuantizedNet:
    """Write the int8 network, and return it as a worker would load it."""
    from mxnet.contrib.quantization import quantize_net_v2

    wide = _widened(recorder, prefix)
    names = recorder.names
    rows = len(inputs[0])
    calibration = mx.io.NDArrayIter(
        data=dict(zip(names, inputs, strict=True)), batch_size=min(_BATCH, rows), label_name=None
    )
    try:
        quantized = quantize_net_v2(
            wide,
            quantized_dtype="auto",
            quantize_mode="smart",
            calib_data=calibration,
            calib_mode="naive",
            num_calib_examples=rows,
            ctx=mx.cpu(),
        )
        quantized(*[mx.nd.array(array[:1]) for array in inputs])
    except (mx.base.MXNetError, RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).strip().splitlines()[-1][:300]
        raise ExportError(f"the network cannot be quantized: {reason}") from error
    quantized.export(str(prefix), 0)
    return QuantizedNet(f"{prefix}-symbol.json", f"{prefix}-0000.params", names, mx.cpu())


def _widened(recorder: _Recorder, prefix: Path) -> Any:
    """Return the network for inference only, with one-dimensional signals turned into images."""
    net = recorder.net
    scratch = prefix.with_name(f"{prefix.name}-fp32")
    if not net._active:
        net.hybridize()
        net(*recorder.all_inputs)
    net.export(str(scratch), 0)
    symbol, parameters = Path(f"{scratch}-symbol.json"), Path(f"{scratch}-0000.params")
    graph, weights = widen(for_inference(json.loads(symbol.read_text())))
    values = mx.nd.load(str(parameters))
    for name in list(values):
        if name.split(":", 1)[-1] in weights:
            values[name] = values[name].expand_dims(2)
    symbol.write_text(json.dumps(graph))
    mx.nd.save(str(parameters), values)
    known = {name.split(":", 1)[-1] for name in values}
    free = {name for name in mx.sym.load(str(symbol)).list_arguments() if name not in known}
    if free != set(recorder.names):
        raise ExportError(
            f"the network has the inputs {', '.join(sorted(free))}; it was run with "
            f"{', '.join(recorder.names)}"
        )
    wide = mx.gluon.SymbolBlock.imports(str(symbol), recorder.names, str(parameters))
    symbol.unlink()
    parameters.unlink()
    return wide


def _run(net: QuantizedNet, inputs: list[Any]) -> list[Any]:
    rows = len(inputs[0])
    parts = []
    for start in range(0, rows, _BATCH):
        outputs = net(*[mx.nd.array(array[start : start + _BATCH]) for array in inputs])
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        parts.append([output.asnumpy() for output in outputs])
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _compare(expected: list[Any], got: list[Any], prefix: Path) -> Report:
    first, second = expected[0], got[0]
    rows = len(first)
    if first.ndim == 2 and first.shape[1] > 1:
        agreement = float(np.mean(first.argmax(axis=1) == second.argmax(axis=1)))
    else:
        agreement = float(np.mean([_cosine(a, b) for a, b in zip(first, second, strict=True)]))
    errors = [
        float(np.abs(a - b).max() / max(float(np.abs(a).max()), 1e-12))
        for a, b in zip(expected, got, strict=True)
    ]
    return Report(
        f"{prefix.name}-symbol.json", f"{prefix.name}-0000.params", rows, agreement, max(errors)
    )


def _cosine(a: Any, b: Any) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return 1.0 if norm == 0 else float(a @ b / norm)


def main() -> None:
    """Run the process; an error becomes the last line of standard error."""
    folder, data, prefix = (Path(argument) for argument in sys.argv[1:4])
    try:
        report = quantize(folder, data, prefix)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - user code raises anything
        failure = error if isinstance(error, MMSError) else load_failure(error, str(folder))
        if failure.detail and failure.detail.traceback and not isinstance(error, MMSError):
            print(failure.detail.traceback, file=sys.stderr)  # noqa: T201 - its output
        print(failure, file=sys.stderr)  # noqa: T201 - its output
        sys.stderr.flush()
        # Skips MXNet's teardown.
        os._exit(3)
    print(json.dumps(asdict(report)), flush=True)  # noqa: T201 - its output
    os._exit(0)


if __name__ == "__main__":
    main()
