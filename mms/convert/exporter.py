"""MXNet's own exporter to ONNX, made to work with today's onnx, between two passes of repairs."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from mms.archive.candidates import Port
from mms.archive.data_types import TABLE
from mms.convert.draft import Draft, is_true, sizes
from mms.convert.graph import Node, Traced
from mms.convert.onnx_repairs import IR_VERSION, OPSET, repair_model
from mms.convert.operators import CONVERTERS, is_convertible
from mms.convert.symbol_repairs import DEFAULTS, REPAIRS
from mms.engines.error_text import reason_line
from mms.engines.imports import import_mxnet
from mms.engines.widen import for_inference
from mms.errors import ConversionFailed

mx = import_mxnet()

_NUMPY = {type_.name: np.dtype(type_.numpy) for type_ in TABLE if type_.numpy != "O"}
#: Operators that the exporter converts wrongly, or in a way that depends on ties between scores.
_DENIED = frozenset(
    (
        *("_contrib_box_nms", "_contrib_MultiBoxPrior", "topk"),
        *("_contrib_MultiBoxTarget", "_contrib_MultiBoxDetection", "_contrib_Proposal"),
        *("_contrib_MultiProposal", "_contrib_ROIAlign", "ROIPooling", "Custom", "Crop"),
        *("_random_normal", "_random_uniform", "_random_uniform_like", "_sample_multinomial"),
        *("SVMOutput", "argsort"),
    )
)
#: Training outputs, for which their inference form stands in.
_OUTPUTS = ("SoftmaxOutput", "LinearRegressionOutput", "MAERegressionOutput",
            "LogisticRegressionOutput")  # fmt: skip
#: Size of an open axis while the exporter infers shapes; any will do.
_SOME_SIZE = 5
_MAX_REASON_CHARS = 200


def to_onnx(traced: Traced) -> Any:
    """Convert a network whose operators all have converters.

    Args:
        traced: It; see `unconvertible`.

    Returns:
        An onnx.ModelProto of opset 13. Its inputs are those of `traced` that the network reads, its
        outputs ``output_0`` and so on in the network's order. Axes of size 0 have names there.

    Raises:
        ConversionFailed: A node cannot be converted; the message names it and its operator.
    """
    draft = Draft(replace(traced, symbol=for_inference(traced.symbol)))
    for repair in REPAIRS:
        repair(draft)
    repaired = draft.finished()
    net = mx.sym.load_json(json.dumps(repaired.symbol))
    used = set(net.list_inputs())
    ports = [port for port in traced.inputs if port.name in used]
    # In the graph's order, in which the exporter takes shapes and types.
    order = {name: index for index, name in enumerate(net.list_inputs())}
    ports.sort(key=lambda port: order[port.name])
    arrays = {
        name: mx.nd.array(array, dtype=array.dtype)
        for name, array in repaired.parameters.items()
        if name in used
    }
    with _exporter() as graph:
        try:
            made = graph().create_onnx_graph_proto(
                net,
                arrays,
                [tuple(size or _SOME_SIZE for size in port.shape) for port in ports],
                [onnx.helper.np_dtype_to_tensor_dtype(_NUMPY[port.data_type]) for port in ports],
                opset_version=OPSET,
                dynamic=True,
                dynamic_input_shapes=[_open_shape(port) for port in ports],
            )
        except ConversionFailed:
            raise
        except Exception as error:
            # The exporter raises anything, at places of its own.
            raise ConversionFailed(f"MXNet's exporter fails: {_shortened(error)}") from error
    model = onnx.helper.make_model(
        made, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    repair_model(model, traced.outputs)
    return model


def unconvertible(symbol: Mapping[str, Any]) -> list[Node]:
    """Return the nodes of a symbol that have no converter that is right."""
    with _exporter() as graph:
        known = {op for version in graph.registry_.values() for op in version}
    return [
        node
        for node in symbol["nodes"]
        if node["op"] not in ("null", *_OUTPUTS) and not _is_convertible(node, known)
    ]


def _is_convertible(node: Node, known: set[str]) -> bool:
    op = node["op"]
    found = {**DEFAULTS.get(op, {}), **(node.get("attrs") or node.get("attr") or {})}
    if op in _DENIED or op not in known or not is_convertible(op, found):
        return False
    if op == "BatchNorm":
        return found["axis"] == "1" and not is_true(found.get("output_mean_var", "False"))
    if op == "Pooling":
        padded = found["pool_type"] == "avg" and any(sizes(found.get("pad", "()")))
        return (
            found["pool_type"] != "sum"
            and found["pooling_convention"] != "same"
            and (found["pooling_convention"] != "full" or not padded
                 or not is_true(found["count_include_pad"])
                 or len(sizes(found.get("kernel", "()"))) in (2, 3))
        )  # fmt: skip
    if op in ("Reshape", "reshape"):
        return not {-3, -4} & set(sizes(found.get("shape", "()"))) and not is_true(
            found.get("reverse", "False")
        )
    if op == "UpSampling":
        return found.get("sample_type") == "nearest" and len(node["inputs"]) == 1
    return True


def _open_shape(port: Port) -> tuple[int | str, ...]:
    """Return a shape with names for open axes; the batch of all inputs has the same one."""
    return tuple(
        size or ("batch" if axis == 0 else f"{port.name}_{axis}")
        for axis, size in enumerate(port.shape)
    )


def _shortened(error: BaseException) -> str:
    text = reason_line(str(error)) or type(error).__name__
    return text if len(text) <= _MAX_REASON_CHARS else f"{text[:_MAX_REASON_CHARS]}..."


@contextlib.contextmanager
def _exporter() -> Iterator[Any]:
    """Provide the exporter's class, in an onnx as it was when the exporter was written.

    ``onnx.mapping`` is gone since onnx 1.19; the exporter asks for the newest opset, though it
    writes operators of 13, and checks them by the newest rules.
    """
    mapping = _mapping()
    checker = onnx.checker.DEFAULT_CONTEXT
    version, imports = onnx.defs.onnx_opset_version, checker.opset_imports
    before = sys.modules.get("onnx.mapping")
    sys.modules["onnx.mapping"] = mapping
    held: dict[str, Any] = vars(onnx)
    old = held.get("mapping")
    held["mapping"] = mapping
    onnx.defs.onnx_opset_version = lambda: OPSET
    checker.opset_imports = {"": OPSET}
    level = logging.getLogger().level
    try:
        from mxnet.onnx.mx2onnx._export_onnx import MXNetGraph

        with _own_converters(MXNetGraph):
            yield MXNetGraph
    finally:
        logging.getLogger().setLevel(level)
        onnx.defs.onnx_opset_version = version
        checker.opset_imports = imports
        if old is None:
            del held["mapping"]
        else:
            held["mapping"] = old
        if before is None:
            del sys.modules["onnx.mapping"]
        else:
            sys.modules["onnx.mapping"] = before


@contextlib.contextmanager
def _own_converters(graph: Any) -> Iterator[None]:
    """Put our converters before the exporter's, and the node's name into its errors."""
    registry = graph.registry_.setdefault(OPSET, {})
    before = dict(registry)
    convert_layer = graph.convert_layer

    def named(node: Mapping[str, Any], **state: Any) -> Any:
        try:
            return convert_layer(node, **state)
        except Exception as error:
            # Converters raise anything when attributes are not as they expect.
            failure = ConversionFailed(
                f"the operator {node['op']} ({node['name']}) cannot be converted: "
                f"{_shortened(error)}"
            )
            failure.node = node["name"]
            raise failure from error

    registry.update(CONVERTERS)
    graph.convert_layer = staticmethod(named)
    try:
        yield
    finally:
        graph.convert_layer = staticmethod(convert_layer)
        registry.clear()
        registry.update(before)


def _mapping() -> types.ModuleType:
    """Return what ``onnx.mapping`` was: the types of ONNX by NumPy's, and the reverse."""
    module = types.ModuleType("onnx.mapping")
    types_: Sequence[np.dtype[Any]] = list(_NUMPY.values())
    by_numpy = {type_: onnx.helper.np_dtype_to_tensor_dtype(type_) for type_ in types_}
    module.NP_TYPE_TO_TENSOR_TYPE = by_numpy  # type: ignore[attr-defined]
    module.TENSOR_TYPE_TO_NP_TYPE = {  # type: ignore[attr-defined]
        number: type_ for type_, number in by_numpy.items()
    }
    return module
