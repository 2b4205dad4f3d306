"""A small image net, as users of 0.4 wrote their services."""

from typing import Any

from mms.model_service.gluon_vision_service import GluonVisionService

# isort: split
# After mms, which gives NumPy back the names that MXNet 1.9.1 needs to be imported.
from mxnet.gluon.model_zoo import vision

CLASSES = 1000


def make_net() -> Any:
    """MobileNet with a quarter of the channels: (N, 3, 224, 224) float32 -> (N, 1000) scores."""
    return vision.mobilenet0_25(classes=CLASSES)


class ImageNetService(GluonVisionService):
    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, make_net(), gpu)
