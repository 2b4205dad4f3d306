"""PUBLIC: image classification with a Gluon network, under v0.4's name."""

from __future__ import annotations

from typing import Any

import numpy as np

from mms.engines.pictures import picture_array
from mms.model_service.mxnet_model_service import GluonImperativeBaseService, mx
from mms.model_service.pictures import labels_of, pictures_of, read_pictures, remember
from mms.utils.mxnet import image, ndarray

#: Mean and standard deviation of ImageNet's channels in RGB order, as the Gluon model zoo uses.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class GluonVisionService(GluonImperativeBaseService):
    """Encoded images in, the five most probable labels out, unless signature.json declares more.

    Each image is decoded, resized with the engine's default (bilinear) to the signature's
    (N, 3, H, W) or (N, H, W, 3), scaled to 0..1 and normalised with ImageNet's mean and standard
    deviation; where height or width is 0 there, the image keeps its own. The archive needs a
    synset.txt that names the classes.
    """

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any],
        net: Any = None,
        gpu: int | None = None,
    ) -> None:
        pictures = read_pictures(type(self), model_dir, manifest)
        super().__init__(model_name, model_dir, manifest, net, gpu)
        remember(pictures, self._signature)

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Decode the bytes of one image per input -> float32 NDArray of the input's layout."""
        pictures = pictures_of(self)
        arrays = []
        for index, buffer in enumerate(data):
            how, layout = pictures.declared(index), pictures.layout(index)
            if how is not None:
                arrays.append(mx.nd.array(picture_array(buffer, how, layout), ctx=self.ctx))
                continue
            source = image.read(buffer)
            height, width = layout.height or source.shape[0], layout.width or source.shape[1]
            # The operations of 0.4, in their order: the same numbers to the last bit.
            pixels = mx.image.imresize(source, width, height).astype(np.float32)
            pixels /= 255
            normal = mx.image.color_normalize(pixels, mx.nd.array(_MEAN), mx.nd.array(_STD))
            order: Any = "NCHW" if layout.is_channels_first else "NHWC"
            arrays.append(image.transform_shape(normal, order).as_in_context(self.ctx))
        return arrays

    def _inference(self, data: list[Any]) -> Any:
        """Run the network on (N, 3, H, W) float32 -> (N, classes) probabilities.

        Where a postprocess is declared, return what the network returns.
        """
        super()._inference(data)
        if pictures_of(self).postprocess is not None:
            return self.net(*data)
        return self.net(data[0]).softmax()

    def _postprocess(self, data: Any) -> list[Any]:
        """Return the declared answer, or the five best ``{"probability", "class"}`` of each row.

        Args:
            data: What the network returned; or probabilities of (N, classes), or a list of
                (1, classes).
        """
        pictures = pictures_of(self)
        if pictures.postprocess is not None:
            return pictures.answer(data, pictures.postprocess, getattr(self, "labels", None))
        labels = labels_of(self)
        if isinstance(data, (list, tuple)):
            return [ndarray.top_probability(output, labels) for output in data]
        rows = data.asnumpy()
        return [ndarray.top_probability(row[np.newaxis], labels) for row in rows]
