"""The inputs and outputs of an ONNX graph, and whether a signature matches them. Pure.

`mms.engines.onnx_model` describes the graph by asking an engine; the exporter and the service
compare it with signature.json here, with the same messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from mms.archive.data_types import TABLE
from mms.archive.pictures import ImageLayout, image_layout, picture_layout
from mms.archive.signature import JSON_TYPE, Signature, TensorSpec
from mms.errors import SignatureError

#: The V2 protocol's name of each element type that a request can carry.
_DATA_TYPES = {type_.onnx: type_.name for type_ in TABLE}
_FLOATS = tuple(type_.name for type_ in TABLE if type_.is_float)
#: Element types of image inputs: pixels are scaled for the first three, and raw for the last.
_PIXEL_TYPES = (*_FLOATS, "UINT8")
_ANY_SHAPE = (0,)


@dataclass(frozen=True, slots=True)
class GraphValue:
    """One input or output of a graph.

    Attributes:
        name: Its name.
        type: In onnxruntime's notation: ``tensor(float)``, ``seq(map(int64,tensor(float)))``.
        dims: Size of each axis, or the name of a free axis, or None. Empty if the graph states no
            shape, and for a scalar: onnxruntime does not distinguish the two.
    """

    name: str
    type: str
    dims: tuple[int | str | None, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """Size of each axis; 0 is any size."""
        return tuple(size if isinstance(size, int) and size > 0 else 0 for size in self.dims)

    @property
    def data_type(self) -> str:
        """The V2 protocol's name of its element type; "" if JSON cannot represent the value."""
        return _DATA_TYPES.get(self.type.removeprefix("tensor(").removesuffix(")"), "")

    @property
    def is_rows_of_maps(self) -> bool:
        """Whether it is one map per row, as scikit-learn's classifiers return probabilities."""
        return self.type.startswith("seq(map(")


@dataclass(frozen=True, slots=True)
class Graph:
    """The inputs and outputs of a graph.

    Attributes:
        inputs: The inputs without a default.
        outputs: All outputs.
        runtime: Version of the engine that read it.
        engine: Name of that engine.
    """

    inputs: tuple[GraphValue, ...]
    outputs: tuple[GraphValue, ...]
    runtime: str
    engine: str = "onnxruntime"


def graph_document(graph: Graph) -> dict[str, Any]:
    """Return the JSON document that `parse_graph` reads."""
    return {
        "inputs": [[value.name, value.type, value.dims] for value in graph.inputs],
        "outputs": [[value.name, value.type, value.dims] for value in graph.outputs],
        "runtime": graph.runtime,
        "engine": graph.engine,
    }


def parse_graph(document: Any) -> Graph:
    """Return the graph described by a document of `graph_document`."""
    inputs, outputs = (
        tuple(GraphValue(name, type_, tuple(dims)) for name, type_, dims in document[key])
        for key in ("inputs", "outputs")
    )
    return Graph(inputs, outputs, document["runtime"], document["engine"])


def make_signature(graph: Graph, has_labels: bool, source: str) -> Signature:
    """Generate a signature from a graph.

    Args:
        graph: The graph.
        has_labels: Whether the archive has a synset.txt: a sole input that can be an image is then
            treated as one.
        source: The model's file, for messages.

    Raises:
        SignatureError: The graph does not state the shape of an input, or no request can carry it.
    """
    for value in graph.inputs:
        _check_type(value, source)
        if not value.dims:
            raise SignatureError(
                f"{source}: the graph does not state the shape of its input {value.name!r}; write "
                f"a signature.json with {_entry(TensorSpec(value.name, (0, 10)))} among its inputs"
            )
    inputs = tuple(_spec(value) for value in graph.inputs)
    if not inputs:
        raise SignatureError(f"{source}: the graph has no inputs, so it cannot be served")
    is_image = (
        has_labels
        and len(inputs) == 1
        and image_layout(inputs[0].shape) is not None
        and graph.inputs[0].data_type in _PIXEL_TYPES
    )
    for value in graph.outputs:
        _check_output_type(value, source)
    outputs = tuple(TensorSpec(value.name, value.shape or _ANY_SHAPE) for value in graph.outputs)
    return Signature(inputs, "image/jpeg" if is_image else JSON_TYPE, outputs, JSON_TYPE)


def check_inputs(signature: Signature, graph: Graph, source: str) -> None:
    """Check that the signature's inputs are the graph's, in any order.

    Args:
        signature: The signature.
        graph: The graph.
        source: Origin of the signature, for messages.

    Raises:
        SignatureError: The message names the input, the graph's value and the signature's.
    """
    values = {value.name: value for value in graph.inputs}
    for spec in signature.inputs:
        if spec.name not in values:
            raise SignatureError(
                f"{source}: the graph has no input {spec.name!r}; its inputs are "
                f"{_names(graph.inputs)}; use the graph's names"
            )
        value = values.pop(spec.name)
        _check_type(value, source)
        _check_shape("input", spec, value, source)
        if spec.data_type and spec.data_type != value.data_type:
            raise SignatureError(
                f"{source}: the input {spec.name!r} has the data_type {spec.data_type}, but the "
                f"graph has {value.data_type}"
            )
    for value in values.values():
        raise SignatureError(
            f"{source}: the graph's input {value.name!r} is missing; add {_entry(_spec(value))}"
        )


def check_outputs(signature: Signature, graph: Graph, source: str) -> None:
    """Check that the signature's outputs are some of the graph's, in any order.

    Args:
        signature: The signature.
        graph: The graph.
        source: Origin of the signature, for messages.

    Raises:
        SignatureError: The message names the output, the graph's value and the signature's.
    """
    values = {value.name: value for value in graph.outputs}
    for spec in signature.outputs:
        if spec.name not in values:
            raise SignatureError(
                f"{source}: the graph has no output {spec.name!r}; its outputs are "
                f"{_names(graph.outputs)}; name the ones to return"
            )
        value = values[spec.name]
        _check_output_type(value, source)
        # As the signature of a graph that does not state its shape, which onnxruntime infers.
        if value.data_type and spec.shape != _ANY_SHAPE:
            _check_shape("output", spec, value, source)


def check_images(signature: Signature, graph: Graph, source: str) -> tuple[ImageLayout, ...]:
    """Check that the inputs can be images, and return their layouts; call `check_inputs` first.

    Args:
        signature: The signature.
        graph: The graph.
        source: Origin of the signature, for messages.

    Raises:
        SignatureError: The message names the input that cannot.
    """
    values = {value.name: value for value in graph.inputs}
    layouts = []
    for spec in signature.inputs:
        value = values[spec.name]
        shape = request_shape(spec, value)
        layouts.append(picture_layout(spec.name, shape, spec.preprocess, source))
        if value.data_type not in _PIXEL_TYPES or shape[0] not in (0, 1):
            raise SignatureError(
                f"{source}: the input {spec.name!r} of shape {show_shape(shape)} and type "
                f"{value.type} cannot be an image: that has a batch axis of any size or 1, and "
                f"consists of floats or uint8; set input_type to {JSON_TYPE}, or override "
                "_preprocess in a service"
            )
        how = spec.preprocess
        if value.data_type not in _FLOATS and how is not None and not how.is_raw:
            raise SignatureError(
                f"{source}: the graph's input {spec.name!r} is a {value.type} and takes pixels "
                "from 0 to 255; remove scale, mean and std from its preprocess"
            )
    return tuple(layouts)


def check_labels(signature: Signature, graph: Graph, label_count: int, source: str) -> None:
    """Check that there is a label for each class; call `check_outputs` first.

    Args:
        signature: The signature.
        graph: The graph.
        label_count: Number of lines in synset.txt.
        source: Origin of the signature, for messages.

    Raises:
        SignatureError: An output has more classes than there are labels.
    """
    values = {value.name: value for value in graph.outputs}
    for spec in signature.outputs:
        classes = math.prod(values[spec.name].shape[1:])
        if classes > label_count:
            raise SignatureError(
                f"{source}: the output {spec.name!r} has {classes} classes, but synset.txt names "
                f"only {label_count}; add the others, one class per line"
            )


def request_shape(spec: TensorSpec, value: GraphValue) -> tuple[int, ...]:
    """Return the shape that a request's input must have; 0 is any size.

    The batch axis is free unless the graph fixes it: the signature's size there is ignored, as in
    v0.4. The signature may fix other axes that the graph leaves free.
    """
    if not value.dims:
        return (0, *spec.shape[1:])
    rest = [a or b for a, b in zip(spec.shape[1:], value.shape[1:], strict=True)]
    return (value.shape[0], *rest)


def can_batch(inputs: Sequence[GraphValue], outputs: Sequence[GraphValue]) -> bool:
    """Return whether requests may be joined along axis 0.

    They may not if that axis has a fixed size, if the inputs name it differently (a sequence axis
    may then come first), or if an output does not have one row per input row.
    """
    axes = [value.dims[0] for value in inputs if value.dims]
    if any(isinstance(axis, int) and axis > 0 for axis in axes):
        return False
    if len({axis for axis in axes if isinstance(axis, str)}) > 1:
        return False
    return all(
        value.is_rows_of_maps or (value.data_type and not (value.shape and value.shape[0]))
        for value in outputs
    )


def show_shape(shape: Sequence[int]) -> str:
    """Return a shape as text, with ``?`` for any size."""
    return "(" + ", ".join("?" if size == 0 else str(size) for size in shape) + ")"


def _check_type(value: GraphValue, source: str) -> None:
    if not value.data_type:
        raise SignatureError(
            f"{source}: the graph's input {value.name!r} is a {value.type}, which no request can "
            "carry; write a service that builds it in its _preprocess, and a signature.json with "
            "the service's own inputs"
        )


def _check_output_type(value: GraphValue, source: str) -> None:
    if not value.data_type and not value.type.startswith(("seq(", "map(")):
        raise SignatureError(
            f"{source}: the graph's output {value.name!r} is a {value.type}, which no answer can "
            "carry; write a signature.json whose outputs leave it out, or cast it in the graph"
        )


def _check_shape(what: str, spec: TensorSpec, value: GraphValue, source: str) -> None:
    # A graph that states no shape accepts any.
    fits = not value.dims or (
        len(spec.shape) == len(value.shape)
        and all(
            0 in pair or pair[0] == pair[1] for pair in zip(spec.shape, value.shape, strict=True)
        )
    )
    if not fits:
        raise SignatureError(
            f"{source}: the {what} {spec.name!r} has the shape {show_shape(spec.shape)}, but the "
            f"graph has {show_shape(value.shape)} (? is any size)"
        )


def _spec(value: GraphValue) -> TensorSpec:
    data_type = "" if value.data_type in _FLOATS else value.data_type
    return TensorSpec(value.name, value.shape or (0,), data_type)


def _entry(spec: TensorSpec) -> str:
    document: dict[str, Any] = {"data_name": spec.name, "data_shape": spec.shape}
    if spec.data_type:
        document["data_type"] = spec.data_type
    return orjson.dumps(document).decode()


def _names(values: Sequence[GraphValue]) -> str:
    return ", ".join(repr(value.name) for value in values) or "none"
