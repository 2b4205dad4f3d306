"""AlexNet as a plain Block: run line by line in Python, which may then do what it likes.

The same network and the same parameter file as in `gluon_hybrid_alexnet.py`. Written in full
here, too: an archive holds one service file.
"""

from collections.abc import Sequence
from typing import Any

from mms.model_service.gluon_vision_service import GluonVisionService

# isort: split
# After mms, which gives NumPy back the names that MXNet 1.9.1 needs to be imported.
from mxnet.gluon import Block, nn

# See `gluon_hybrid_alexnet.py`.
FILTERS = (16, 48, 96, 64, 64)
UNITS = 256
DROPOUT = 0.1
CLASSES = 10


class ImperativeAlexNet(Block):  # type: ignore[misc]  # mxnet is untyped
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
            self.features = nn.Sequential(prefix="")
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

    def forward(self, x: Any) -> Any:
        """Run the layers; a debugger may stop here, and Python decide."""
        return self.output(self.features(x))


class ImperativeAlexNetService(GluonVisionService):
    """Encoded picture in, its five most probable textures out.

    The base class loads the parameters. A plain Block cannot be hybridized and is not.
    """

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, ImperativeAlexNet(), gpu)

    def _postprocess(self, data: Any) -> list[dict[str, Any]]:
        """Return the answer for the request's one picture, from probabilities (1, classes)."""
        answer: list[dict[str, Any]] = super()._postprocess(data)[0]
        return answer
