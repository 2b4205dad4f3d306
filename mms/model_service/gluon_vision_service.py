"""PUBLIC: image classification with a Gluon network, under v0.4's name."""

from __future__ import annotations

from typing import Any

import numpy as np

from mms.model_service.mxnet_model_service import GluonImperativeBaseService, mx
from mms.model_service.mxnet_vision_service import _labels
from mms.utils.mxnet import image, ndarray

#: Mean and standard deviation of ImageNet's channels in RGB order, as the Gluon model zoo uses.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class GluonVisionService(GluonImperativeBaseService):
    """Encoded images in, the five most probable labels out.

    Each image is decoded, resized with the engine's default (bilinear) to the signature's
    (N, 3, H, W), scaled to 0..1 and normalised with ImageNet's mean and standard deviation. The
    archive needs a synset.txt that names the classes.
    """

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Decode the bytes of one image per input -> float32 NDArray of (1, 3, H, W) each."""
        arrays = []
        for buffer, spec in zip(data, self.signature["inputs"], strict=True):
            height, width = spec["data_shape"][2:]
            # The operations of 0.4, in their order: the same numbers to the last bit.
            pixels = mx.image.imresize(image.read(buffer), width, height).astype(np.float32)
            pixels /= 255
            normal = mx.image.color_normalize(pixels, mx.nd.array(_MEAN), mx.nd.array(_STD))
            batch = mx.nd.transpose(normal, (2, 0, 1)).expand_dims(axis=0)
            arrays.append(batch.as_in_context(self.ctx))
        return arrays

    def _inference(self, data: list[Any]) -> Any:
        """Run the network: (N, 3, H, W) float32 -> (N, classes) probabilities."""
        super()._inference(data)
        return self.net(data[0]).softmax()

    def _postprocess(self, data: Any) -> list[Any]:
        """Return the five best ``{"probability", "class"}`` of each row.

        Args:
            data: Probabilities of (N, classes), or a list of (1, classes).
        """
        labels = _labels(self)
        if isinstance(data, (list, tuple)):
            return [ndarray.top_probability(output, labels) for output in data]
        rows = data.asnumpy()
        return [ndarray.top_probability(row[np.newaxis], labels) for row in rows]
