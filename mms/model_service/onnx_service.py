"""PUBLIC: services for ONNX models, run by onnxruntime or OpenVINO. Never imports mxnet."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.archive.data_types import TABLE
from mms.archive.onnx_graph import (
    GraphValue,
    can_batch,
    check_images,
    check_inputs,
    check_labels,
    check_outputs,
    request_shape,
    show_shape,
)
from mms.archive.pictures import Preprocess
from mms.archive.signature import Signature, TensorSpec, parse_signature
from mms.archive.text import read_labels
from mms.engines.onnx_model import open_model
from mms.engines.pictures import picture_array, softmax
from mms.engines.selection import wish
from mms.errors import InvalidInputShape, InvalidRequest, ModelLoadFailed
from mms.model_service.model_service import SingleNodeService
from mms.model_service.pictures import Pictures, labels_of, overrides
from mms.utils.mxnet.ndarray import top_probability

Array = NDArray[Any]

#: NumPy's type for each of the V2 protocol's names; strings stay Python objects.
_DTYPES: dict[str, np.dtype[Any]] = {type_.name: np.dtype(type_.numpy) for type_ in TABLE}
_KINDS = {"b": "booleans", "u": "integers", "i": "integers", "f": "numbers", "O": "strings"}
#: What is done without a declaration, by the number of channels: ImageNet's mean and standard
#: deviation in RGB order, as model zoos use.
_USUAL = {
    1: Preprocess(scale=1 / 255),
    3: Preprocess(scale=1 / 255, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
}
#: Tolerance for the sum of probabilities due to rounding; half precision needs all of it.
_SUM_TOLERANCE = 5e-3


class OnnxBaseService(SingleNodeService):
    """Serves an ONNX model: nested lists or arrays in, arrays out.

    A subclass that overrides `_preprocess` or `_postprocess` may use any names for inputs or
    outputs in signature.json; otherwise they must be the graph's.

    Attributes:
        session: The onnxruntime.InferenceSession; None where OpenVINO runs the model.
        input_names: The graph's inputs, in the order in which `_inference` takes them: the
            signature's order if it names them, else the graph's.
        output_names: The graph's outputs that `_inference` returns, likewise; those that the
            signature leaves out are not computed.
        ctx: Always None; the engine knows its device.
        labels: Lines of synset.txt; absent if the archive has none.
    """

    array_stages = ("_preprocess", "_postprocess")

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, gpu)
        self.model_name = model_name
        model = manifest["Model"]
        if not model.get("Symbol"):
            raise ModelLoadFailed(
                f"{type(self).__name__} needs an ONNX model: the manifest's Model.Symbol names none"
            )
        path = os.path.join(model_dir, model["Signature"])
        with open(path, encoding="utf-8-sig") as file:
            self._signature_document: dict[str, Any] = json.load(file)
        signature = parse_signature(self._signature_document, model["Signature"])
        synset = os.path.join(model_dir, "synset.txt")
        if os.path.isfile(synset):
            self.labels = read_labels(synset)
        self._threads = _worker_threads()
        symbol = Path(model_dir, model["Symbol"])
        self._model = open_model(symbol, wish(), self._threads, gpu)
        self.session = self._model.session
        self._graph = self._model.graph
        self._plan(signature, model["Signature"])

    def ping(self) -> str:
        """Return the version of the engine."""
        return self._graph.runtime

    @property
    def signature(self) -> dict[str, Any]:
        """signature.json as a dict."""
        return self._signature_document

    @property
    def can_fork(self) -> bool:
        """Whether workers may be forked from this process.

        An engine's threads do not survive a fork: as measured, it then computes on one thread, and
        onnxruntime does not guarantee that it never waits for the others. For a single thread, an
        engine has none of its own that compute.
        """
        return self._threads == 1

    @property
    def can_batch(self) -> bool:
        """Whether requests may be joined in one forward pass."""
        return self._can_batch

    def _plan(self, signature: Signature, source: str) -> None:
        """Determine the graph's inputs and outputs to use, and their order.

        Raises:
            SignatureError: The signature does not match the graph.
        """
        graph = self._graph
        self._inputs = _in_order(graph.inputs, signature.input_names)
        if len(self._inputs) < len(graph.inputs):
            self._inputs = list(graph.inputs)
        if overrides(type(self), "_preprocess"):
            self._shapes = [value.shape for value in self._inputs]
        else:
            check_inputs(signature, graph, source)
            self._shapes = [
                request_shape(spec, value)
                for spec, value in zip(signature.inputs, self._inputs, strict=True)
            ]
        if not overrides(type(self), "_postprocess"):
            check_outputs(signature, graph, source)
        outputs = _in_order(graph.outputs, [spec.name for spec in signature.outputs])
        self.input_names = [value.name for value in self._inputs]
        self.output_names = [value.name for value in outputs]
        self._can_batch = can_batch(self._inputs, outputs)
        if self.session is None:
            self._network = self._model.network(self._inputs, outputs)

    def _preprocess(self, data: list[Any]) -> Any:
        """Return each input, a nested list or an array, as an array of the graph's type.

        Raises:
            InvalidRequest: An input is ragged, or contains values that its type cannot hold.
        """
        return [
            _to_array(value, target, shape)
            for value, target, shape in zip(data, self._inputs, self._shapes, strict=True)
        ]

    def _inference(self, data: Any) -> list[Any]:
        """Check the shapes and run the graph.

        Args:
            data: One array per input, in the order of `input_names`, of the graph's types; a bare
                array is accepted if there is one input.

        Returns:
            One array per output, in the order of `output_names`. A sequence of maps is an object
            array of one dict per row; other sequences and maps are lists and dicts.

        Raises:
            InvalidInputShape: The message names the input, the expected and the actual shape.
        """
        arrays = data if isinstance(data, (list, tuple)) else [data]
        if len(arrays) != len(self._inputs):
            raise InvalidInputShape(
                f"the graph takes {len(self._inputs)} inputs, got {len(arrays)}"
            )
        for array, value, shape in zip(arrays, self._inputs, self._shapes, strict=True):
            _check_shape(array, value, shape)
        if self.session is None:
            return list(self._network.run(arrays))
        feed = dict(zip(self.input_names, arrays, strict=True))
        return [_as_rows(output) for output in self.session.run(self.output_names, feed)]

    def _postprocess(self, data: Any) -> Any:
        """Return each output as a JSON value, with the keys of maps as strings."""
        return [_answer(output) for output in data]


class OnnxVisionService(OnnxBaseService):
    """Encoded images in, the five most probable labels out, unless signature.json declares more.

    Each image is decoded with its EXIF orientation applied, and resized with Pillow's bilinear
    filter to the input's shape, (N, C, H, W) or (N, H, W, C); where height or width is free there,
    the image keeps its own. Floats are scaled to 0..1, and colours normalised with ImageNet's mean
    and standard deviation; an input of type uint8 gets the raw pixels. Outputs that are not
    probabilities go through a softmax. The archive needs a synset.txt that names the classes.
    """

    def _plan(self, signature: Signature, source: str) -> None:
        super()._plan(signature, source)
        declared = {spec.name: spec.preprocess for spec in signature.inputs}
        first = signature.inputs[0].preprocess
        inputs = tuple(
            TensorSpec(value.name, tuple(shape), preprocess=declared.get(value.name, first))
            for value, shape in zip(self._inputs, self._shapes, strict=True)
        )
        self._pictures = Pictures(replace(signature, inputs=inputs), source)
        if not overrides(type(self), "_preprocess"):
            check_images(signature, self._graph, source)
        if (
            not overrides(type(self), "_postprocess")
            and hasattr(self, "labels")
            and (signature.postprocess is None or signature.postprocess.ranks_classes)
        ):
            check_labels(signature, self._graph, len(self.labels), source)

    def _preprocess(self, data: list[Any]) -> Any:
        """Decode the bytes of one image per input -> (1, C, H, W) or (1, H, W, C) each.

        Raises:
            UndecodableImage: The bytes are not an image.
        """
        arrays = []
        for index, (buffer, target) in enumerate(zip(data, self._inputs, strict=True)):
            layout, how = self._pictures.layout(index), self._pictures.declared(index)
            dtype = _DTYPES[target.data_type]
            if how is None:
                how = _USUAL[layout.channels] if dtype.kind == "f" else Preprocess()
            arrays.append(picture_array(buffer, how, layout, dtype))
        return arrays

    def _postprocess(self, data: Any) -> Any:
        """Return the declared answer, or the five best ``{"probability", "class"}`` per output."""
        how = self._pictures.postprocess
        if how is not None:
            return self._pictures.answer(data, how, getattr(self, "labels", None))
        labels = labels_of(self)
        return [top_probability(_probabilities(scores), labels) for scores in data]


def _worker_threads() -> int:
    """Return the number of compute threads that the server grants this worker; 0 outside one."""
    text = os.environ.get("OMP_NUM_THREADS", "")
    return int(text) if text.isdecimal() else 0


def _in_order(values: Sequence[GraphValue], names: Sequence[str]) -> list[GraphValue]:
    """Return the values in the order of these names; all values if a name is unknown."""
    by_name = {value.name: value for value in values}
    known = all(name in by_name for name in names)
    return [by_name[name] for name in names] if known else list(values)


def _to_array(value: Any, target: GraphValue, shape: Sequence[int]) -> Array:
    """Return an input as an array of the graph's type.

    Raises:
        InvalidRequest: It is ragged, or contains values that the type cannot hold.
    """
    dtype = _DTYPES[target.data_type]
    try:
        return _texts(value) if dtype.kind == "O" else _numbers(value, dtype)
    except (TypeError, ValueError, ArithmeticError) as error:
        wanted = f" of shape {show_shape(shape)}" if shape else ""
        raise InvalidRequest(
            f"input {target.name!r} is not an array of {_KINDS[dtype.kind]}{wanted}: {error}"
        ) from error


def _numbers(value: Any, dtype: np.dtype[Any]) -> Array:
    array = np.asarray(value)
    if array.dtype == dtype:
        return array
    # null would become NaN, and a string the number that it spells.
    if array.dtype.kind not in "biuf":
        raise ValueError(f"it contains other values ({array.dtype})")
    if dtype.kind == "f":
        with np.errstate(over="raise"):
            return array.astype(dtype)
    if array.size:
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if array.dtype.kind == "f" and not np.all(array == np.trunc(array)):
            raise ValueError("it contains numbers with a fraction")
        # Python's numbers: NumPy would compare floats, and 2**63 is a float but not an int64.
        if not low <= int(array.min()) <= int(array.max()) <= high:
            raise ValueError(f"it contains numbers outside {low} to {high}")
    return array.astype(dtype)


def _texts(value: Any) -> Array:
    array = np.asarray(value, dtype=np.object_)
    texts = [text.decode() if isinstance(text, bytes) else text for text in array.flat]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("it contains other values, or its lists differ in length")
    flat = np.empty(len(texts), dtype=np.object_)
    flat[:] = texts
    return flat.reshape(array.shape)


def _check_shape(array: Any, value: GraphValue, expected: Sequence[int]) -> None:
    """Check an array against a shape; an empty shape matches any.

    Raises:
        InvalidInputShape: The value is not an array, or its shape does not match.
    """
    shape = getattr(array, "shape", None)
    if shape is None:
        raise InvalidInputShape(
            f"input {value.name!r} must be a NumPy array, got {type(array).__name__}"
        )
    fits = len(shape) == len(expected) and all(
        size in (0, got) for size, got in zip(expected, shape, strict=True)
    )
    if expected and not fits:
        raise InvalidInputShape(
            f"input {value.name!r} has shape {show_shape(shape)}, expected "
            f"{show_shape(expected)} (axis 0 is the batch; ? is any size)"
        )


def _as_rows(output: Any) -> Any:
    """Return a sequence of maps as an array, so that it can be split among a batch's requests."""
    if not isinstance(output, list) or not all(isinstance(row, dict) for row in output):
        return output
    rows = np.empty(len(output), dtype=np.object_)
    rows[:] = output
    return rows


def _answer(output: Any) -> Any:
    if isinstance(output, dict):
        return {str(key): _answer(value) for key, value in output.items()}
    if isinstance(output, list) or (isinstance(output, np.ndarray) and output.dtype.kind == "O"):
        return [_answer(value) for value in output]
    return output


def _probabilities(scores: Any) -> Array:
    """Return probabilities of (N, classes): the scores' softmax unless they already are."""
    rows = np.atleast_2d(np.asarray(scores, dtype=np.float64))
    rows = rows.reshape(len(rows), -1)
    if (rows >= 0).all() and np.allclose(rows.sum(axis=1), 1, atol=_SUM_TOLERANCE):
        return rows
    return softmax(rows)
