"""Tell what a symbol with its parameters is, and so how it is asked and answered.

The first family that fits is taken: what finds objects, what GluonCV exported, InsightFace's face
embeddings, SageMaker's image classification; any other is asked with tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from mms.archive.artefacts.detector import deploy_form, is_detector
from mms.archive.artefacts.parts import (
    HYPERPARAMETERS_NAME,
    LABELS_NAME,
    SHAPES_NAME,
    Parts,
    read_document,
)
from mms.archive.default_service import default_service
from mms.archive.model_folder import SIGNATURE_NAME, read_signature_file
from mms.archive.signature import JSON_TYPE, Signature, TensorSpec
from mms.archive.symbol import Shape, Symbol
from mms.errors import ArchiveError

_MODULE = "artefact_services"
_IMAGE = "image/jpeg"
#: The beginning of parameter names in the classification networks of the model zoos of MXNet and
#: GluonCV. A network that a user wrote is no such network, even if it classifies images: nothing
#: says how its pixels are normalised.
_ZOO = re.compile(
    r"(alexnet|densenet|inception|mobilenet(v2|v3)?|resnet(v1|v2)?[bcdse]?|resnext|se_?resnext|"
    r"senet|squeezenet|vgg|cifarresnet\w*|darknetv\d|googlenet|hrnet\w*|nasnet|xception|"
    r"residualattentionmodel|resnest|dla)\d+_"
)
_DETECTOR_ZOO = re.compile(r"(ssd|yolov3|centernet|fasterrcnn|maskrcnn)\d+_")
_ZOO_SIZE, _DETECTOR_SIZE = 224, 512
_FACE = (0, 3, 112, 112)
_FACE_OUTPUT = "fc1_output"
#: Rows of feature maps that ArcFace's networks flatten before their embedding.
_FACE_CELLS = 7 * 7


def parts_of(
    contents: Mapping[str, Path],
    symbol_name: str,
    parameters: str,
    symbol: Symbol,
    shapes: Mapping[str, Shape],
) -> Parts:
    """Return the parts of the model.

    Args:
        contents: Its files by their names in the archive.
        symbol_name: Name of its symbol's file.
        parameters: Name of its parameter file.
        symbol: The symbol.
        shapes: The shapes of the parameters.

    Raises:
        ArchiveError: What is needed to ask it is nowhere to be found; says what to add.
    """
    model = _Model(contents, symbol_name, parameters, symbol, shapes)
    for family in (_exported, _detector, _gluoncv, _insightface, _classifier):
        parts = family(model)
        if parts is not None:
            return parts
    return _tensors(model)


class _Model:
    def __init__(
        self,
        contents: Mapping[str, Path],
        symbol_name: str,
        parameters: str,
        symbol: Symbol,
        shapes: Mapping[str, Shape],
    ) -> None:
        self.contents = contents
        self.symbol_name = symbol_name
        self.parameters = parameters
        self.symbol = symbol
        self.shapes = shapes
        self.inputs = symbol.inputs(shapes)
        self.outputs = symbol.outputs()

    def sizes(self) -> dict[str, Shape]:
        """Return the shapes that SageMaker wrote beside the model, without the batch."""
        path = self.contents.get(SHAPES_NAME)
        if path is None:
            return {}
        entries: Any = read_document(path)
        try:
            found = {str(e["name"]): tuple(int(n) for n in e["shape"]) for e in entries}
        except (TypeError, KeyError, ValueError):
            raise ArchiveError(
                f'{path}: expected a list such as [{{"name": "data", "shape": [1, 3, 224, 224]}}]'
            ) from None
        return {name: (0, *shape[1:]) for name, shape in found.items() if shape}

    def hyperparameter(self, name: str) -> str:
        """Return one of a training job's hyper-parameters; "" if it is not known."""
        path = self.contents.get(HYPERPARAMETERS_NAME)
        values = read_document(path) if path else {}
        return str(values.get(name, "")) if isinstance(values, dict) else ""

    def stated_shape(self, name: str) -> Shape | None:
        """Return what files or the symbol say of an input's shape; 0 is any size."""
        shape = self.sizes().get(name) or self.symbol.stated_shape(name)
        return (0, *shape[1:]) if shape else None

    def signature(self, shapes: Mapping[str, Shape], input_type: str = JSON_TYPE) -> Signature:
        """Return a signature with the shapes of the inputs, and the outputs of the symbol."""
        classes = [self.symbol.classes(i, self.shapes) for i in range(len(self.outputs))]
        return Signature(
            tuple(TensorSpec(name, shape) for name, shape in shapes.items()),
            input_type,
            tuple(
                TensorSpec(name, (0, count) if count else (0,))
                for name, count in zip(self.outputs, classes, strict=True)
            ),
            JSON_TYPE,
        )


def _exported(model: _Model) -> Parts | None:
    """Return the parts of what mxnet-model-export packs."""
    path = model.contents.get(SIGNATURE_NAME)
    if path is None:
        return None
    signature = read_signature_file(path)
    return Parts(
        "model folder",
        model.symbol_name,
        model.parameters,
        None,
        default_service(model.symbol_name, signature),
    )


def _detector(model: _Model) -> Parts | None:
    if not is_detector(model.symbol) or len(model.inputs) != 1:
        return None
    deployed = deploy_form(model.symbol)
    name = model.inputs[0]
    shape = model.stated_shape(name) or _square(model.hyperparameter("image_shape"))
    if shape is None or len(shape) != 4:
        raise ArchiveError(
            f"{model.contents[model.symbol_name]}: the size of its images is not known; add "
            f'{SHAPES_NAME} beside it: [{{"name": "{name}", "shape": [1, 3, 512, 512]}}]'
        )
    cut = _Model(model.contents, model.symbol_name, model.parameters, deployed, model.shapes)
    return Parts(
        "object detection (SSD)",
        model.symbol_name,
        model.parameters,
        cut.signature({name: shape}, _IMAGE),
        (_MODULE, "DetectionService", "Finds objects as SageMaker's object detection does."),
        {model.symbol_name: orjson.dumps(deployed.document)},
    )


def _gluoncv(model: _Model) -> Parts | None:
    """Return the parts of a network that ``gluoncv.utils.export_block`` or ``export`` wrote."""
    if len(model.inputs) != 1:
        return None
    names = list(model.shapes)
    is_preprocessed = any(
        name.endswith("_init_mean") and shape == (1, 1, 1, 3)
        for name, shape in model.shapes.items()
    )
    is_detector = len(model.outputs) == 3 and any(map(_DETECTOR_ZOO.match, names))
    is_zoo = len(model.outputs) == 1 and any(map(_ZOO.match, names))
    if not is_detector and not (is_zoo and model.symbol.classes(0, model.shapes)):
        return None
    name = model.inputs[0]
    size = _DETECTOR_SIZE if is_detector else _ZOO_SIZE
    known = (0, 0, 0, 3) if is_preprocessed else model.symbol.known_shape(name, model.shapes)
    if known is None or len(known) != 4 or 3 not in (known[1], known[3]):
        return None
    shape = model.stated_shape(name) or tuple(n or (size if i else 0) for i, n in enumerate(known))
    notes = [] if model.stated_shape(name) else [f"images are resized to {size} x {size}"]
    if LABELS_NAME not in model.contents and not is_detector:
        notes.append(f"classes are numbers; add {LABELS_NAME} with a name per line")
    what = "ZooDetectionService" if is_detector else "ZooClassificationService"
    return Parts(
        "GluonCV network",
        model.symbol_name,
        model.parameters,
        model.signature({name: shape}, _IMAGE),
        (_MODULE, what, "Takes images as the networks of GluonCV's model zoo do."),
        notes=tuple(notes),
    )


def _insightface(model: _Model) -> Parts | None:
    if model.outputs != [_FACE_OUTPUT] or len(model.inputs) != 1:
        return None
    name = model.inputs[0]
    layer = model.symbol.first_layer(name)
    known = model.symbol.known_shape(name, model.shapes)
    weights = [shape for key, shape in model.shapes.items() if key.endswith("fc1_weight")]
    fits = all(len(shape) != 2 or shape[1] % _FACE_CELLS == 0 for shape in weights)
    if layer is None or known is None or known[1:2] != (3,) or len(known) != 4 or not fits:
        return None
    return Parts(
        "InsightFace embedding",
        model.symbol_name,
        model.parameters,
        model.signature({name: model.stated_shape(name) or _FACE}, _IMAGE),
        (_MODULE, "EmbeddingService", "Turns an aligned face into its embedding."),
    )


def _classifier(model: _Model) -> Parts | None:
    """Return the parts of what SageMaker's image classification wrote."""
    heads = [model.symbol.nodes[node].op for node, _ in model.symbol.heads]
    shape = model.sizes().get(model.inputs[0]) if len(model.inputs) == 1 else None
    is_image = shape is not None and len(shape) == 4 and shape[1] in (1, 3)
    if shape is None or not is_image or heads not in (["SoftmaxOutput"], ["softmax"]):
        return None
    return Parts(
        "SageMaker image classification",
        model.symbol_name,
        model.parameters,
        model.signature({model.inputs[0]: shape}, _IMAGE),
        (_MODULE, "ProbabilityService", "Answers an image with the probability of each class."),
    )


def _tensors(model: _Model) -> Parts:
    path = model.contents[model.symbol_name]
    shapes: dict[str, Shape] = {}
    notes = []
    for name in model.inputs:
        stated = model.stated_shape(name)
        known = stated or model.symbol.known_shape(name, model.shapes)
        if known is None:
            raise ArchiveError(
                f"{path}: the shape of its input {name!r} cannot be told from its files; add "
                f"{SIGNATURE_NAME} beside it: {_example(model, shapes)}"
            )
        shapes[name] = known
        if 0 in known[1:]:
            notes.append(
                f"the input {name!r} may have any size where its shape {list(known)} has a 0 "
                f"after the first; add {SIGNATURE_NAME} beside the symbol to fix it"
            )
    if not shapes:
        raise ArchiveError(f"{path}: all its variables are parameters, so nothing can be asked")
    return Parts(
        "MXNet checkpoint",
        model.symbol_name,
        model.parameters,
        model.signature(shapes),
        (_MODULE, "TensorService", "Takes arrays and answers with arrays."),
        notes=tuple(notes),
    )


def _example(model: _Model, known: Mapping[str, Shape]) -> str:
    """Return the text of a signature for the model, with a shape to be replaced."""
    shapes = {name: known.get(name, (0, 10)) for name in model.inputs}
    return orjson.dumps(model.signature(shapes).to_document()).decode()


def _square(text: str) -> Shape | None:
    """Return the shape of square colour images from a hyper-parameter; None if it has no size."""
    sizes = [int(n) for n in re.findall(r"\d{1,5}", text)]
    if len(sizes) == 1:
        return (0, 3, sizes[0], sizes[0])
    return (0, *sizes) if len(sizes) == 3 else None
