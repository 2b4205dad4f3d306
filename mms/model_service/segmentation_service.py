"""The default service of what SageMaker's semantic segmentation wrote; needs gluoncv."""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

from mms.errors import ModelLoadFailed
from mms.model_service.mxnet_model_service import GluonImperativeBaseService, mx
from mms.utils.mxnet import image

_CLASSES = {"fcn": "FCN", "psp": "PSPNet", "deeplab": "DeepLabV3"}
#: ImageNet's, as GluonCV's presets have it, for pixels of 0 to 1.
_MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
_STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)
_DEFAULT_CROP = "240"


class SegmentationService(GluonImperativeBaseService):
    """Images in, masks out: a grey PNG of the image's size, with the class of each pixel."""

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        parameters = os.path.join(model_dir, manifest["Model"]["Parameters"])
        super().__init__(model_name, model_dir, manifest, None, gpu)
        # Not hybridized: it would keep the size of the first image for ever.
        self.net = _network(os.path.join(model_dir, "hyperparams.json"), parameters)
        try:
            self.net.load_parameters(parameters, ctx=self.ctx)
        except (AssertionError, ValueError, mx.base.MXNetError) as error:
            raise ModelLoadFailed(
                "the parameters do not fit the network that hyperparams.json describes: "
                f"{str(error).splitlines()[0][:300]}"
            ) from error

    def _preprocess(self, data: list[Any]) -> Any:
        """Decode the bytes of one image -> normalised float32 NDArray of (1, 3, H, W)."""
        pixels = image.read(data[0]).asnumpy().astype(np.float32)
        colours = ((pixels / 255 - _MEAN) / _STD).transpose(2, 0, 1)
        return mx.nd.array(np.ascontiguousarray(colours[np.newaxis]), ctx=self.ctx)

    def _inference(self, data: Any) -> Any:
        """Return the scores of (1, classes, H, W)."""
        # GluonCV's own way, which scales the scores to the size of the image.
        return self.net.predict(data)

    def _postprocess(self, data: Any) -> list[str]:
        """Return the mask as base64 of a PNG."""
        scores = data[0] if isinstance(data, (list, tuple)) else data
        mask = mx.nd.argmax(scores, axis=1).astype(np.uint8)
        return [image.write(mask, flag=0, format="png")]


def _network(path: str, parameters: str) -> Any:
    """Return the network that hyper-parameters describe, without its parameters."""
    try:
        import gluoncv
    except ImportError as error:
        raise ModelLoadFailed(
            "SageMaker's semantic segmentation needs gluoncv, which is not installed: "
            f"pip install gluoncv ({error})"
        ) from error
    with open(path, encoding="utf-8-sig") as file:
        values = json.load(file)
    names = mx.nd.load(parameters)
    try:
        return getattr(gluoncv.model_zoo, _CLASSES[values.get("algorithm", "fcn")])(
            int(values["num_classes"]),
            backbone=str(values.get("backbone", "resnet-50")).replace("-", ""),
            aux=any(name.startswith("auxlayer") for name in names),
            pretrained_base=False,
            crop_size=int(values.get("crop_size", _DEFAULT_CROP)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadFailed(
            "hyperparams.json does not describe a network of GluonCV: algorithm, backbone and "
            f"num_classes are needed ({error!r})"
        ) from error
