"""PUBLIC: image classification with a Gluon network, under v0.4's name."""

from __future__ import annotations

from typing import Any

import numpy as np

from mms.model_service.mxnet_model_service import (
    GluonImperativeBaseService,
    check_input_shape,
    mx,
)
from mms.model_service.mxnet_vision_service import _labels
from mms.utils.mxnet import image, ndarray

#: Mean and standard deviation of ImageNet's channels in RGB order, as the Gluon model zoo uses.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


class GluonVisionService(GluonImperativeBaseService):
    """Encoded images in, the five most probable labels out.

    Each image is decoded, resized to the signature's (N, 3, H, W), scaled to 0..1 and normalised
    with ImageNet's mean and standard deviation. The archive needs a synset.txt that names the
    classes.
    """

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Decode the bytes of one image per input -> float32 NDArray of (1, 3, H, W) each."""
        arrays = []
        for buffer, spec in zip(data, self.signature["inputs"], strict=True):
            height, width = spec["data_shape"][2:]
            pixels = image.resize(image.read(buffer), width, height).asnumpy()
            normal = (pixels.astype(np.float32) / 255 - _MEAN) / _STD
            batch = np.ascontiguousarray(normal.transpose(2, 0, 1)[np.newaxis])
            arrays.append(mx.nd.array(batch, ctx=self.ctx))
        return arrays

    def _inference(self, data: list[Any]) -> Any:
        """Run the network: (N, 3, H, W) float32 -> (N, classes) probabilities."""
        check_input_shape(data, self.signature)
        return self.net(data[0]).softmax()

    def _postprocess(self, data: Any) -> list[Any]:
        """Return the five best ``{"probability", "class"}`` of each row of (N, classes)."""
        labels = _labels(self)
        rows = data.asnumpy()
        return [ndarray.top_probability(row[np.newaxis], labels) for row in rows]
