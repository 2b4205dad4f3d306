"""AlexNet with the weights of Gluon's model zoo, trained on ImageNet: 1,000 classes.

The archive has no parameter file. Where the weights lie on this machine they are read, after
their SHA-1 has been checked; else the model zoo downloads them when the service is loaded.
"""

from pathlib import Path
from typing import Any

from mms.model_service.gluon_vision_service import GluonVisionService

# isort: split
# After mms, which gives NumPy back the names that MXNet 1.9.1 needs to be imported.
import mxnet as mx
from mxnet.gluon.model_zoo import vision

# In the archive; weights there need no network where they are served.
WEIGHTS_FOLDER = "weights"


class PretrainedAlexNetService(GluonVisionService):
    """Encoded picture in, its five most probable ImageNet classes out."""

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        net = vision.alexnet(
            pretrained=True,
            root=str(weights_folder(Path(model_dir))),
            ctx=mx.cpu() if gpu is None else mx.gpu(int(gpu)),
        )
        super().__init__(model_name, model_dir, manifest, net, gpu)

    def _postprocess(self, data: Any) -> list[dict[str, Any]]:
        """Return the answer for the request's one picture, from probabilities (1, 1000)."""
        answer: list[dict[str, Any]] = super()._postprocess(data)[0]
        return answer


def weights_folder(model_dir: Path) -> Path:
    """Return the archive's own folder of weights, or the model zoo's: ``$MXNET_HOME/models``."""
    own = model_dir / WEIGHTS_FOLDER
    return own if own.is_dir() else Path(mx.base.data_dir(), "models")
