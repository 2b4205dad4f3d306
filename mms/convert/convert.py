"""Convert a traced network to ONNX files, cut where that is needed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from mms.archive.candidates import Port, Tail
from mms.archive.data_types import TABLE
from mms.convert.cut import cut
from mms.convert.exporter import to_onnx, unconvertible
from mms.convert.graph import Traced
from mms.convert.trace import to_symbol
from mms.engines.imports import import_mxnet
from mms.errors import ConversionFailed

mx = import_mxnet()

#: A protobuf message, and so an ONNX file without external data, is no larger.
MAX_BYTES = (1 << 31) - 1
_ELEMENT_TYPES = {
    onnx.helper.np_dtype_to_tensor_dtype(np.dtype(type_.numpy)): type_.name
    for type_ in TABLE
    if type_.numpy != "O"
}
_ELEMENT_TYPE_OF = {name: number for number, name in _ELEMENT_TYPES.items()}


@dataclass(frozen=True, slots=True)
class Converted:
    """A converted network on disk.

    Attributes:
        model: Path of the ``.onnx``.
        inputs: The network's inputs, in the order of the call; all are inputs of the file, too.
        outputs: The file's outputs; without a tail they are the network's, in its order.
        tail: The part that stays on MXNet, with the names of its files, which are in the same
            folder; None if all was converted.
    """

    model: Path
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    tail: Tail | None


def convert(traced: Traced, folder: Path, prefix: str) -> Converted:
    """Write a network as ``PREFIX.onnx``, and what cannot be converted as ``PREFIX-tail-*``.

    Raises:
        ConversionFailed: The message names the operator that has no converter, or the size.
    """
    model, rest = _convert_head(traced)
    _add_unused_inputs(model, traced)
    path = folder / f"{prefix}.onnx"
    path.write_bytes(model.SerializeToString())
    tail = _write_tail(traced, rest, folder, prefix) if rest else None
    return Converted(path, traced.inputs, tuple(_port(value) for value in model.graph.output), tail)


def _convert_head(traced: Traced) -> tuple[Any, Traced | None]:
    """Convert what can be converted; what turns out to fail is cut off, too."""
    names = {node["name"] for node in traced.symbol["nodes"]}
    failed: set[str] = set()
    while True:
        head, rest = cut(traced, failed)
        size = sum(array.nbytes for array in head.parameters.values())
        if size > MAX_BYTES:
            raise ConversionFailed(
                f"the parameters take {size / 1e9:.1f} GB, and an ONNX file holds 2 GB at most"
            )
        try:
            return to_onnx(head), rest
        except ConversionFailed as error:
            if error.node in failed or error.node not in names:
                raise
            failed.add(error.node)


def _add_unused_inputs(model: Any, traced: Traced) -> None:
    """Declare inputs that the converted part does not read, so that all are given to it."""
    declared = {value.name for value in model.graph.input}
    for port in traced.inputs:
        if port.name not in declared:
            sizes = [size or f"{port.name}_{axis}" for axis, size in enumerate(port.shape)]
            type_ = _ELEMENT_TYPE_OF[port.data_type]
            model.graph.input.append(onnx.helper.make_tensor_value_info(port.name, type_, sizes))


def _write_tail(traced: Traced, rest: Traced, folder: Path, prefix: str) -> Tail:
    symbol, parameters = f"{prefix}-tail-symbol.json", f"{prefix}-tail-0000.params"
    to_symbol(rest.symbol)  # MXNet reads it: said now rather than in a worker
    (folder / symbol).write_text(json.dumps(rest.symbol, indent=2), encoding="utf-8")
    arrays = {
        f"{'aux' if name in rest.auxiliary else 'arg'}:{name}": mx.nd.array(a, dtype=a.dtype)
        for name, a in rest.parameters.items()
    }
    if arrays:
        mx.nd.save(str(folder / parameters), arrays)
    operators = [node["op"] for node in rest.symbol["nodes"] if node["op"] != "null"]
    refused = {node["op"] for node in unconvertible(traced.symbol)} or set(operators[:1])
    return Tail(
        symbol=symbol,
        parameters=parameters if arrays else "",
        inputs=tuple(port.name for port in rest.inputs),
        operators=tuple(dict.fromkeys(op for op in operators if op in refused)),
    )


def _port(value: Any) -> Port:
    tensor = value.type.tensor_type
    sizes = tuple(max(dim.dim_value, 0) for dim in tensor.shape.dim)
    return Port(value.name, _ELEMENT_TYPES.get(tensor.elem_type, "FP32"), sizes)
