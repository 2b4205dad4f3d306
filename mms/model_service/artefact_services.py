"""The default services of models that nobody exported: see docs/artefacts.md."""

from __future__ import annotations

from typing import Any

import numpy as np

from mms.model_service.mxnet_model_service import MXNetBaseService, mx
from mms.utils.mxnet import image, ndarray

_BILINEAR = 1
#: Mean colour that MXNet's example/ssd, and so SageMaker's object detection, subtracts.
_SSD_MEAN = np.array([123, 117, 104], dtype=np.float32)
#: ImageNet's, as GluonCV's presets have it, for pixels of 0 to 1.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
#: GluonCV's presets resize the shorter side to 256 for networks of 224 pixels.
_RESIZE = 256 / 224
_TOP = 5
#: Of probabilities, by rounding.
_SUM_TOLERANCE = 5e-3


class TensorService(MXNetBaseService):
    """Arrays in, arrays out."""

    array_stages = ("_preprocess", "_postprocess")

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Return each input as a float32 NDArray of its shape."""
        return super()._preprocess(data)

    def _postprocess(self, data: list[Any]) -> Any:
        """Return each output as it is."""
        return [array.asnumpy() for array in data]


class _ImageService(MXNetBaseService):
    """Encoded images in: the common part of the services below."""

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Decode the bytes of one image per input -> float32 NDArray of its shape each."""
        arrays = []
        for buffer, spec in zip(data, self.signature["inputs"], strict=True):
            shape = tuple(spec["data_shape"][1:])
            is_first = shape[0] in (1, 3)
            channels, height, width = shape if is_first else (shape[2], *shape[:2])
            pixels = image.read(buffer, flag=0 if channels == 1 else 1)
            colours = self._normalised(self._resized(pixels, width, height), is_first)
            rows = colours.transpose(2, 0, 1) if is_first else colours
            arrays.append(mx.nd.array(np.ascontiguousarray(rows[np.newaxis]), ctx=self.ctx))
        return arrays

    def _resized(self, pixels: Any, width: int, height: int) -> Any:
        """Return pixels (H, W, C) of uint8 as (height, width, C)."""
        return image.resize(pixels, width, height, _BILINEAR)

    def _normalised(self, pixels: Any, is_first: bool) -> Any:
        """Return pixels (H, W, C) of uint8 as the network takes them, float32."""
        return pixels.asnumpy().astype(np.float32)


class ProbabilityService(_ImageService):
    """Images in, the probability of each class out, as SageMaker's image classification answers.

    Each image is resized to the input's size, and its colours are passed on as they are, RGB of 0
    to 255.
    """

    def _postprocess(self, data: list[Any]) -> Any:
        """Return the probabilities, of (1, classes), as a list."""
        return data[0].asnumpy().reshape(-1)


class EmbeddingService(_ImageService):
    """Aligned faces in, embeddings out: InsightFace's networks normalise the colours themselves."""

    def _postprocess(self, data: list[Any]) -> Any:
        """Return the embedding, of (1, size), as a list."""
        return data[0].asnumpy().reshape(-1)


class DetectionService(_ImageService):
    """Images in, objects out, as SageMaker's object detection answers."""

    def _normalised(self, pixels: Any, is_first: bool) -> Any:
        """Return the colours without their mean."""
        return pixels.asnumpy().astype(np.float32) - _SSD_MEAN

    def _postprocess(self, data: list[Any]) -> Any:
        """Return class, score and box of each object; sides are shares of the image's."""
        rows = data[0].asnumpy()[0]
        return {"prediction": rows[rows[:, 0] >= 0]}


class ZooClassificationService(_ImageService):
    """Images in, the five most probable classes out, as GluonCV's presets prepare them.

    A network that was exported with its preprocessing, and so takes (N, H, W, 3), gets the colours
    as they are.
    """

    def _resized(self, pixels: Any, width: int, height: int) -> Any:
        """Resize the shorter side, and crop the centre."""
        shorter = round(min(width, height) * _RESIZE)
        pixels = mx.nd.image.resize(pixels, shorter, True, _BILINEAR)
        return mx.image.center_crop(pixels, (width, height), _BILINEAR)[0]

    def _normalised(self, pixels: Any, is_first: bool) -> Any:
        """Return the colours with ImageNet's mean and standard deviation."""
        colours = pixels.asnumpy().astype(np.float32)
        return (colours / 255 - _MEAN) / _STD if is_first else colours

    def _postprocess(self, data: list[Any]) -> Any:
        """Return the five best ``{"probability", "class"}``; the class's number without a label."""
        scores = data[0].asnumpy().reshape(-1)
        powers = np.exp(scores - scores.max())
        # Some are exported with their softmax.
        is_done = scores.min() >= 0 and abs(scores.sum() - 1) < _SUM_TOLERANCE
        probabilities = scores if is_done else powers / powers.sum()
        labels = getattr(self, "labels", None) or [str(i) for i in range(len(scores))]
        return ndarray.top_probability(probabilities[np.newaxis], labels, _TOP)


class ZooDetectionService(ZooClassificationService):
    """Images in, objects out, from a detector of GluonCV."""

    def _resized(self, pixels: Any, width: int, height: int) -> Any:
        """Resize to the size of the input."""
        return image.resize(pixels, width, height, _BILINEAR)

    def _postprocess(self, data: list[Any]) -> Any:
        """Return class, score and box of each object; sides are shares of the image's."""
        ids, scores, boxes = (array.asnumpy()[0] for array in data[:3])
        shape = self.signature["inputs"][0]["data_shape"]
        height, width = shape[2:] if shape[1] == 3 else shape[1:3]
        shares = boxes / np.array([width, height, width, height], dtype=np.float32)
        rows = np.concatenate([ids.reshape(-1, 1), scores.reshape(-1, 1), shares], axis=1)
        found = rows[rows[:, 0] >= 0]
        return {"prediction": found[(-found[:, 1]).argsort(kind="stable")]}
