"""What is put right in the ONNX graph that MXNet's exporter has written."""

from __future__ import annotations

from typing import Any

import onnx

from mms.errors import ConversionFailed

#: The exporter writes operators of this version; newer ones moved their attributes to inputs.
OPSET = 13
#: The format of the file that goes with it; old onnxruntimes read it.
IR_VERSION = 7


def repair_model(model: Any, outputs: int) -> None:
    """Put a model right, in place.

    Args:
        model: onnx.ModelProto.
        outputs: Number of outputs that it has to have, ``output_0`` and so on.

    Raises:
        ConversionFailed: An output was lost, or the graph is not valid.
    """
    drop_parameters_from_inputs(model.graph)
    drop_duplicates(model.graph)
    drop_unused_parameters(model.graph)
    order_outputs(model.graph, outputs)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())[:200]
        raise ConversionFailed(f"MXNet's exporter wrote an invalid graph: {reason}") from error


def drop_parameters_from_inputs(graph: Any) -> None:
    """Declare parameters as constants only, not as inputs with a default.

    With them among the inputs onnxruntime folds nothing: mobilenet ran at 0.7 times MXNet's speed
    instead of 2.2 times.
    """
    parameters = {value.name for value in graph.initializer}
    kept = [value for value in graph.input if value.name not in parameters]
    del graph.input[:]
    graph.input.extend(kept)


def drop_duplicates(graph: Any) -> None:
    """Keep one of the parameters of a name: shared ones are written once per use (yolo3)."""
    kept = list({value.name: value for value in reversed(graph.initializer)}.values())[::-1]
    if len(kept) < len(graph.initializer):
        copies = [type(value).FromString(value.SerializeToString()) for value in kept]
        del graph.initializer[:]
        graph.initializer.extend(copies)


def drop_unused_parameters(graph: Any) -> None:
    """Leave out parameters that no node reads, such as those that were rewritten."""
    read = {name for node in graph.node for name in node.input}
    read |= {value.name for value in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in read:
            del graph.initializer[index]


def order_outputs(graph: Any, outputs: int) -> None:
    """Put the outputs into the network's order; the exporter writes them in the graph's."""
    by_name = {value.name: value for value in graph.output}
    names = [f"output_{index}" for index in range(outputs)]
    lost = [name for name in names if name not in by_name]
    if lost:
        raise ConversionFailed(f"MXNet's exporter loses {', '.join(lost)} of the network")
    ordered = [by_name[name] for name in names]
    copies = [type(value).FromString(value.SerializeToString()) for value in ordered]
    del graph.output[:]
    graph.output.extend(copies)
