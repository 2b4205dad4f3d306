"""How a vision service takes pictures and answers them, decided once when it is loaded.

A declaration of signature.json counts for every engine. Without one each service does what it has
always done. Never imports mxnet.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

from mms.archive.pictures import ImageLayout, Postprocess, Preprocess, picture_layout
from mms.archive.signature import Signature, parse_signature
from mms.archive.text import read_text
from mms.engines.pictures import declared_answer
from mms.errors import ModelLoadFailed
from mms.model_service.model_service import SingleNodeService

_DEFAULTS = tuple(
    f"mms.model_service.{name}"
    for name in ("mxnet_vision_service", "gluon_vision_service", "onnx_service")
)

logger = logging.getLogger("mms.worker")


class Pictures:
    """The way of pictures into a network and out of it.

    Args:
        signature: The signature.
        source: Its origin, for messages.

    Attributes:
        postprocess: What is declared for the outputs; None if nothing is.
    """

    def __init__(self, signature: Signature, source: str) -> None:
        self.postprocess: Postprocess | None = signature.postprocess
        self._inputs = signature.inputs
        self._source = source

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of each input by its name, for one picture; 0 is any size."""
        return {spec.name: (1, *spec.shape[1:]) for spec in self._inputs}

    def declared(self, index: int) -> Preprocess | None:
        """Return what is declared for an input; None if nothing is."""
        return self._inputs[index].preprocess

    def check(self) -> None:
        """Check that every input can be fed.

        Raises:
            SignatureError: No picture fits into an input.
        """
        for index in range(len(self._inputs)):
            self.layout(index)

    def answer(self, outputs: Any, how: Postprocess, labels: Sequence[str] | None) -> list[Any]:
        """Return the declared answer to the outputs, which may be one array."""
        arrays = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        layout = self.layout(0) if how.boxes and how.boxes.coordinates == "pixels" else None
        size = (layout.height, layout.width) if layout else (0, 0)
        return declared_answer(arrays, how, labels, size)

    def check_labels(self, outputs: Sequence[tuple[str, int]], label_count: int) -> None:
        """Check that there is a label for each class.

        Args:
            outputs: Name and number of classes of each output.
            label_count: Number of labels.

        Raises:
            ModelLoadFailed: There are fewer, and classes are declared. Without a declaration it is
                a warning: as in 0.4, only the best classes need names.
        """
        if self.postprocess is not None and not self.postprocess.ranks_classes:
            return
        for name, classes in outputs:
            if classes > label_count:
                text = (
                    f"the output {name!r} has {classes} classes, but synset.txt names only "
                    f"{label_count}; add the others, one class per line"
                )
                if self.postprocess is not None:
                    raise ModelLoadFailed(text)
                logger.warning("%s", text)

    def layout(self, index: int) -> ImageLayout:
        """Return the layout of an input.

        Raises:
            SignatureError: No picture fits into it.
        """
        spec = self._inputs[index]
        return picture_layout(spec.name, spec.shape, spec.preprocess, self._source)


#: The document that a service has as its signature, and its plan, by the document's id. Nothing is
#: kept on the service, which may have any attributes of its own.
_plans: dict[int, tuple[Any, Pictures]] = {}


def read_pictures(cls: type[Any], model_dir: str, manifest: dict[str, Any]) -> Pictures:
    """Return the plan of a service that is being created, from its signature.json.

    The file itself counts, since services of 0.4 see free sizes as 1 in their `signature`.

    Raises:
        SignatureError: It is not valid; or no picture fits into an input, and the class leaves
            `_preprocess` to its base.
    """
    name = manifest["Model"]["Signature"]
    document = json.loads(read_text(os.path.join(model_dir, name)))
    pictures = Pictures(parse_signature(document, name), name)
    if not overrides(cls, "_preprocess"):
        pictures.check()
    return pictures


def remember(pictures: Pictures, document: Any) -> None:
    """Note the plan of a service that has this document as its signature."""
    _plans[id(document)] = (document, pictures)


def pictures_of(service: Any) -> Pictures:
    """Return the plan of a service: the noted one, unless it has a signature of its own."""
    document = service.signature
    known = _plans.get(id(document))
    if known is not None:
        return known[1]
    source = f"the signature of {type(service).__name__}"
    return Pictures(parse_signature(document, source), source)


def overrides(cls: type[Any], stage: str) -> bool:
    """Return whether a service's class overrides a stage of the default services."""
    owner = getattr(getattr(cls, stage), "__module__", "")
    return owner not in _DEFAULTS or cls.inference is not SingleNodeService.inference


def class_counts(names: Sequence[str], shapes: Sequence[Sequence[int]]) -> list[tuple[str, int]]:
    """Return the number of classes of each output by its shape."""
    return [
        (name, math.prod(shape[1:])) for name, shape in zip(names, shapes, strict=True) if shape
    ]


def labels_of(service: Any) -> list[str]:
    """Return the labels of a service.

    Raises:
        ModelLoadFailed: It has none.
    """
    labels: list[str] | None = getattr(service, "labels", None)
    if labels is None:
        raise ModelLoadFailed(
            "the archive has no synset.txt; add one with one class name per line, or set "
            "self.labels in the service"
        )
    return labels
