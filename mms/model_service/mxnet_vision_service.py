"""PUBLIC: image classification with an MXNet symbol, under v0.4's name."""

from __future__ import annotations

from typing import Any

from mms.errors import ModelLoadFailed
from mms.model_service.mxnet_model_service import MXNetBaseService
from mms.utils.mxnet import image, ndarray


class MXNetVisionService(MXNetBaseService):
    """Encoded images in, the five most probable labels out.

    Each image is decoded, resized to the signature's (N, C, H, W) and passed on as it is, pixel
    values 0 to 255. The archive needs a synset.txt that names the classes.
    """

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Decode the bytes of one image per input -> uint8 NDArray of (1, C, H, W) each."""
        arrays = []
        for buffer, spec in zip(data, self.signature["inputs"], strict=True):
            channels, height, width = spec["data_shape"][1:]
            pixels = image.read(buffer, flag=0 if channels == 1 else 1)
            arrays.append(image.transform_shape(image.resize(pixels, width, height)))
        return arrays

    def _postprocess(self, data: list[Any]) -> list[Any]:
        """Return the five best ``{"probability", "class"}`` of each (N, classes) output."""
        return [ndarray.top_probability(output, _labels(self)) for output in data]


def _labels(service: Any) -> list[str]:
    labels: list[str] | None = getattr(service, "labels", None)
    if labels is None:
        raise ModelLoadFailed(
            "the archive has no synset.txt; add one with one class name per line, or set "
            "self.labels in the service"
        )
    return labels
