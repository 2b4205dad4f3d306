"""Take a network out of its service as data: its graph, its parameters, and its inputs.

A network is traced by calling it with symbols instead of arrays, which also works for a plain
Block whose code asks for no values. The inputs' types and shapes come from recorded calls: what
signature.json says need not be what the network is called with.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from mms.archive.candidates import Port
from mms.archive.data_types import TABLE
from mms.convert.graph import Node, Traced
from mms.engines.error_text import reason_line
from mms.engines.imports import import_mxnet
from mms.engines.symbol_model import SymbolModel
from mms.engines.widen import for_inference
from mms.errors import ConversionFailed

mx = import_mxnet()

#: One call of a network: its arguments, NDArrays or NumPy arrays, or lists of them such as states.
Call = Sequence[Any]
_DATA_TYPES = {type_.numpy: type_.name for type_ in TABLE if type_.numpy != "O"}
#: Operators that take labels of rows, with the position of the labels among their inputs.
_LOOKUPS = {"Embedding": 0, "_contrib_SparseEmbedding": 0, "take": 1}


def trace_block(block: Any, calls: Sequence[Call]) -> Traced:
    """Trace a Gluon network.

    Args:
        block: A HybridBlock, or a Block whose code runs on symbols; initialized.
        calls: At least one recorded call.

    Returns:
        The network. Its inputs are ``data``, or ``data0`` and so on in the order of the arguments,
        as `HybridBlock.export` names them.

    Raises:
        ConversionFailed: The network's code does not run on symbols, or the calls differ in more
            than the sizes of their arguments.
    """
    flat = [list(_flattened(call)) for call in calls]
    ports = _ports(_names(len(flat[0])), flat)
    symbols = iter([mx.sym.var(port.name) for port in ports])
    arguments = [_replaced(argument, symbols) for argument in calls[0]]
    try:
        output = block(*arguments)
        symbol = mx.sym.Group(list(_flattened([output])))
    except Exception as error:  # user code, which may raise anything when it meets a symbol
        raise ConversionFailed(
            f"the code of {type(block).__name__} runs on arrays only, not on symbols, so its graph "
            f"is not known: {reason_line(str(error)) or type(error).__name__}"
        ) from error
    saved = {parameter.name: parameter for parameter in block.collect_params().values()}
    arrays = {
        name: saved[name].data(saved[name].list_ctx()[0])
        for name in (*symbol.list_arguments(), *symbol.list_auxiliary_states())
        if name in saved
    }
    return _traced(json.loads(symbol.tojson()), arrays, symbol.list_auxiliary_states(), ports)


def trace_symbol_model(model: SymbolModel, calls: Sequence[Call]) -> Traced:
    """Trace a symbol with parameters.

    Args:
        model: It, as loaded by a service.
        calls: At least one recorded call. All inputs are float32, to which the model casts them.

    Raises:
        ConversionFailed: The network has inputs that nobody sets and that are no labels, or runs
            as a Module or in int8.
    """
    block = model.block
    if not isinstance(block, mx.gluon.SymbolBlock):
        raise ConversionFailed("the network runs as a Module or in int8, which is not converted")
    flat = [[_as_float(array) for array in _flattened(call)] for call in calls]
    ports = _ports(model.data_names, flat)
    symbol = model.symbol
    arrays = {
        parameter.name: parameter.data(parameter.list_ctx()[0])
        for parameter in block.collect_params().values()
        if parameter.name not in model.data_names
    }
    document = for_inference(json.loads(symbol.tojson()))
    return _traced(document, arrays, symbol.list_auxiliary_states(), ports)


def _traced(
    document: Mapping[str, Any],
    arrays: Mapping[str, Any],
    auxiliary: Sequence[str],
    ports: Sequence[Port],
) -> Traced:
    nodes = used_nodes(document)
    names = {port.name for port in ports}
    variables = [node["name"] for node in nodes["nodes"] if node["op"] == "null"]
    for name in variables:
        if name not in arrays and name not in names:
            raise ConversionFailed(
                f"the network's input {name!r} is neither a parameter nor set by the service"
            )
    if not any(node["op"] != "null" for node in nodes["nodes"]):
        raise ConversionFailed("the network computes nothing")
    _make_names_unique(nodes["nodes"])
    return Traced(
        symbol=nodes,
        parameters={name: arrays[name].asnumpy() for name in variables if name in arrays},
        auxiliary=frozenset(auxiliary) & set(variables),
        inputs=tuple(_as_label(port, nodes["nodes"]) for port in ports),
        outputs=len(nodes["heads"]),
    )


def used_nodes(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a symbol's document without the nodes that none of its outputs needs."""
    nodes: list[Node] = document["nodes"]
    todo = [entry[0] for entry in document["heads"]]
    used: set[int] = set()
    while todo:
        number = todo.pop()
        if number not in used:
            used.add(number)
            todo += [entry[0] for entry in nodes[number]["inputs"]]
    number_of = {old: new for new, old in enumerate(sorted(used))}
    kept = [
        {
            **nodes[old],
            "inputs": [[number_of[i], *rest] for i, *rest in nodes[old]["inputs"]],
        }
        for old in sorted(used)
    ]
    return document_of(kept, [[number_of[i], *rest] for i, *rest in document["heads"]])


def document_of(nodes: Sequence[Node], heads: Sequence[Sequence[int]]) -> dict[str, Any]:
    """Return the document of ``-symbol.json`` for nodes in topological order."""
    return {
        "nodes": list(nodes),
        "arg_nodes": [number for number, node in enumerate(nodes) if node["op"] == "null"],
        # One output per node, whatever it has: MXNet counts the outputs itself.
        "node_row_ptr": list(range(len(nodes) + 1)),
        "heads": [list(entry) for entry in heads],
        "attrs": {"mxnet_version": ["int", 10901]},
    }


def _make_names_unique(nodes: Sequence[Node]) -> None:
    """Rename nodes whose name another one has: a layer that is called twice makes such."""
    seen = {node["name"] for node in nodes if node["op"] == "null"}
    for node in nodes:
        if node["op"] == "null":
            continue
        name, count = node["name"], 0
        while node["name"] in seen:
            count += 1
            node["name"] = f"{name}_call{count}"
        seen.add(node["name"])


def _as_label(port: Port, nodes: Sequence[Node]) -> Port:
    """Return an input as int32 if all it does is to select rows of tables.

    In bf16 a whole number above 256 is not exact: a language model whose labels came as floats
    gave 4 % other words.
    """
    if port.data_type not in ("FP32", "FP64", "FP16"):
        return port
    number = next((i for i, node in enumerate(nodes) if node["name"] == port.name), None)
    users = [
        _LOOKUPS.get(node["op"]) == slot
        for node in nodes
        for slot, entry in enumerate(node["inputs"])
        if entry[0] == number
    ]
    return Port(port.name, "INT32", port.shape) if users and all(users) else port


def _names(count: int) -> list[str]:
    return ["data"] if count == 1 else [f"data{index}" for index in range(count)]


def _ports(names: Sequence[str], calls: Sequence[Sequence[Any]]) -> tuple[Port, ...]:
    if any(len(call) != len(names) for call in calls):
        raise ConversionFailed("the network was called with different numbers of inputs")
    columns = [[call[index] for call in calls] for index in range(len(names))]
    shapes = [[tuple(array.shape) for array in column] for column in columns]
    for name, sizes in zip(names, shapes, strict=True):
        if len({len(shape) for shape in sizes}) != 1:
            raise ConversionFailed(f"the input {name!r} differs in its number of axes")
    # Of an RNN's (T, N, C) and its states (layers, N, units) the batch is the second axis.
    is_first = all(len({shape[:1] for shape in call}) == 1 for call in zip(*shapes, strict=True))
    return tuple(
        Port(name, _data_type(name, column), _free_axes(sizes, is_first))
        for name, column, sizes in zip(names, columns, shapes, strict=True)
    )


def _free_axes(shapes: Sequence[tuple[int, ...]], is_batch_first: bool) -> tuple[int, ...]:
    """Return the shape with 0 for axes that differ between calls, and for the batch."""
    return tuple(
        0 if len(set(sizes)) > 1 or (axis == 0 and is_batch_first) else sizes[0]
        for axis, sizes in enumerate(zip(*shapes, strict=True))
    )


def _data_type(name: str, arrays: Sequence[Any]) -> str:
    types = {np.dtype(array.dtype) for array in arrays}
    known = _DATA_TYPES.get(f"{(type_ := types.pop()).kind}{type_.itemsize}")
    if types or known is None:
        raise ConversionFailed(f"the input {name!r} is of a type that no engine takes, or of two")
    return known


def _as_float(array: Any) -> Any:
    return array.astype(np.float32)


def _flattened(value: Any) -> Iterator[Any]:
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _flattened(part)
    elif value is not None:
        yield value


def _replaced(value: Any, symbols: Iterator[Any]) -> Any:
    """Return the same nest of lists with symbols for its arrays."""
    if isinstance(value, (list, tuple)):
        return [_replaced(part, symbols) for part in value]
    return None if value is None else next(symbols)


def to_symbol(document: Mapping[str, Any]) -> Any:
    """Return the MXNet symbol of a document."""
    return mx.sym.load_json(json.dumps(document))


def as_block(traced: Traced) -> Any:
    """Return a traced network as a SymbolBlock, to run it on MXNet as it is."""
    inputs = [mx.sym.var(port.name) for port in traced.inputs]
    with warnings.catch_warnings():
        # For input types that the symbol leaves open; the call sets them.
        warnings.simplefilter("ignore", UserWarning)
        block = mx.gluon.SymbolBlock(to_symbol(traced.symbol), inputs)
    block.collect_params().load_dict(
        {name: mx.nd.array(array, dtype=array.dtype) for name, array in traced.parameters.items()},
        cast_dtype=True,
        dtype_source="saved",
    )
    return block
