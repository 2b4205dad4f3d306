"""PUBLIC: image classification with an MXNet symbol, under v0.4's name."""

from __future__ import annotations

from typing import Any

from mms.engines.pictures import picture_array
from mms.model_service.mxnet_model_service import MXNetBaseService, mx
from mms.model_service.pictures import (
    Pictures,
    class_counts,
    labels_of,
    overrides,
    pictures_of,
    read_pictures,
    remember,
)
from mms.utils.mxnet import image, ndarray


class MXNetVisionService(MXNetBaseService):
    """Encoded images in, the five most probable labels out, unless signature.json declares more.

    Each image is decoded, resized to the signature's (N, C, H, W) or (N, H, W, C) and passed on as
    it is, pixel values 0 to 255; where height or width is 0 there, the image keeps its own. The
    archive needs a synset.txt that names the classes.
    """

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        pictures = read_pictures(type(self), model_dir, manifest)
        super().__init__(model_name, model_dir, manifest, gpu)
        remember(pictures, self._signature)
        if not overrides(type(self), "_postprocess") and hasattr(self, "labels"):
            pictures.check_labels(self._known_classes(pictures), len(self.labels))

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Decode the bytes of one image per input -> NDArray of (1, C, H, W) or (1, H, W, C) each.

        uint8, or float32 if a preprocess is declared.
        """
        pictures = pictures_of(self)
        arrays = []
        for index, buffer in enumerate(data):
            how, layout = pictures.declared(index), pictures.layout(index)
            if how is not None:
                arrays.append(mx.nd.array(picture_array(buffer, how, layout), ctx=self.ctx))
                continue
            pixels = image.read(buffer, flag=0 if layout.channels == 1 else 1)
            height, width = layout.height or pixels.shape[0], layout.width or pixels.shape[1]
            order: Any = "NCHW" if layout.is_channels_first else "NHWC"
            arrays.append(image.transform_shape(image.resize(pixels, width, height), order))
        return arrays

    def _postprocess(self, data: list[Any]) -> list[Any]:
        """Return the declared answer, or the five best ``{"probability", "class"}`` per output."""
        pictures = pictures_of(self)
        if pictures.postprocess is not None:
            return pictures.answer(data, pictures.postprocess, getattr(self, "labels", None))
        return [ndarray.top_probability(output, labels_of(self)) for output in data]

    def _known_classes(self, pictures: Pictures) -> list[tuple[str, int]]:
        """Return the number of classes of each output; nothing if it depends on the picture."""
        shapes = pictures.shapes
        if any(0 in shape for shape in shapes.values()):
            return []
        symbol = self.mx_model.symbol
        try:
            _, outputs, _ = symbol.infer_shape(**shapes)
        except mx.base.MXNetError:
            return []
        return class_counts(symbol.list_outputs(), outputs or [()] * len(symbol.list_outputs()))
