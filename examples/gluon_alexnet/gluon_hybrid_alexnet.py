"""AlexNet as a HybridBlock: written as a symbol or run line by line, served as a symbol.

The network is that of Krizhevsky, "One weird trick for parallelizing convolutional neural
networks" (2014), as in Gluon's model zoo. An archive holds one service file, so network and
service stand together; `train.py` imports the network from here.
"""

from collections.abc import Sequence
from typing import Any

from mms.model_service.gluon_vision_service import GluonVisionService

# isort: split
# After mms, which gives NumPy back the names that MXNet 1.9.1 needs to be imported.
from mxnet.gluon import HybridBlock, nn

# A quarter of the paper's filters (64, 192, 384, 256, 256) and a sixteenth of its 4,096 units:
# enough for ten textures, and trained in a minute or two.
FILTERS = (16, 48, 96, 64, 64)
UNITS = 256
# Half of 4,096 units may be missing, as in the paper, but half of 256 is too many: the network
# then stayed near chance.
DROPOUT = 0.1
CLASSES = 10


class HybridAlexNet(HybridBlock):  # type: ignore[misc]  # mxnet is untyped
    """AlexNet of any width.

    Shapes: (N, 3, 224, 224) float32 -> (N, classes) float32, unnormalised scores.
    """

    def __init__(
        self,
        classes: int = CLASSES,
        filters: Sequence[int] = FILTERS,
        units: int = UNITS,
        dropout: float = DROPOUT,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.features = nn.HybridSequential(prefix="")
            with self.features.name_scope():
                self.features.add(
                    nn.Conv2D(filters[0], 11, strides=4, padding=2, activation="relu"),
                    nn.MaxPool2D(pool_size=3, strides=2),
                    nn.Conv2D(filters[1], 5, padding=2, activation="relu"),
                    nn.MaxPool2D(pool_size=3, strides=2),
                    nn.Conv2D(filters[2], 3, padding=1, activation="relu"),
                    nn.Conv2D(filters[3], 3, padding=1, activation="relu"),
                    nn.Conv2D(filters[4], 3, padding=1, activation="relu"),
                    nn.MaxPool2D(pool_size=3, strides=2),
                    nn.Flatten(),
                    nn.Dense(units, activation="relu"),
                    nn.Dropout(dropout),
                    nn.Dense(units, activation="relu"),
                    nn.Dropout(dropout),
                )
            self.output = nn.Dense(classes)

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.output(self.features(x))


class HybridAlexNetService(GluonVisionService):
    """Encoded picture in, its five most probable textures out.

    The base class loads the parameters. A HybridBlock is hybridized if it answers the same then.
    """

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, HybridAlexNet(), gpu)

    def _postprocess(self, data: Any) -> list[dict[str, Any]]:
        """Return the answer for the request's one picture, from probabilities (1, classes)."""
        answer: list[dict[str, Any]] = super()._postprocess(data)[0]
        return answer
