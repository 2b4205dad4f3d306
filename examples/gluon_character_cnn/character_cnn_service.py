"""Tell a product's category from its review: the Crepe character CNN as a Gluon service.

The network is that of Zhang, Zhao and LeCun, "Character-level Convolutional Networks for Text
Classification" (2015). An archive holds one service file, so network and service stand together;
`train.py` imports the network from here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.model_service.mxnet_model_service import GluonImperativeBaseService
from mms.service import PredictionException

# isort: split
# After mms, which gives NumPy back the names that MXNet 1.9.1 needs to be imported.
from mxnet import nd
from mxnet.gluon import HybridBlock, nn

# The 69 characters of the paper; every other one is left blank, as the paper does.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+ =<>()[]{}"
# Longest text in characters: the paper's l0, and what signature.json declares.
FEATURE_LEN = 1014
NUM_CLASSES = 7

_BLANK = len(ALPHABET)
# Row of the one-hot matrix by code point. The last entry stands for all that is not ASCII.
_ROW_BY_CODE_POINT = np.full(129, _BLANK, dtype=np.intp)
_ROW_BY_CODE_POINT[[ord(letter) for letter in ALPHABET]] = np.arange(_BLANK)


class GluonCrepe(HybridBlock):  # type: ignore[misc]  # mxnet is untyped
    """Crepe: six convolutions, two dense layers with dropout, one output per category.

    Shapes: (N, 69, 1014) float32, one-hot characters -> (N, classes) float32, unnormalised
    scores.
    """

    NUM_FILTERS = 256
    FULLY_CONNECTED = 1024

    def __init__(self, classes: int = NUM_CLASSES, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.features = nn.HybridSequential()
            with self.features.name_scope():
                self.features.add(
                    self._conv(7),
                    nn.MaxPool1D(pool_size=3, strides=3),
                    self._conv(7),
                    nn.MaxPool1D(pool_size=3, strides=3),
                    self._conv(3),
                    self._conv(3),
                    self._conv(3),
                    self._conv(3),
                    nn.MaxPool1D(pool_size=3, strides=3),
                    nn.Flatten(),
                    nn.Dense(self.FULLY_CONNECTED, activation="relu"),
                    nn.Dropout(0.5),
                    nn.Dense(self.FULLY_CONNECTED, activation="relu"),
                    nn.Dropout(0.5),
                )
            self.output = nn.Dense(classes)

    def _conv(self, kernel_size: int) -> nn.Conv1D:
        return nn.Conv1D(self.NUM_FILTERS, kernel_size=kernel_size, activation="relu")

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.output(self.features(x))


def character_rows(title: str, review: str) -> NDArray[np.intp]:
    """Return the alphabet position of each character of a review as the network reads it.

    Returns:
        Shape (L,), L <= 1014; positions in `ALPHABET`, or 69 for a character outside it.
    """
    text = f"{title}|{review}".lower()[:FEATURE_LEN]
    # JSON may carry lone surrogates, which plain UTF-32 refuses.
    code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    rows: NDArray[np.intp] = _ROW_BY_CODE_POINT[
        np.minimum(code_points, len(_ROW_BY_CODE_POINT) - 1)
    ]
    return rows


def one_hot(texts: Sequence[NDArray[np.intp]], length: int = FEATURE_LEN) -> NDArray[np.float32]:
    """Stack texts, given as rows of the alphabet, into the network's input.

    Returns:
        Shape (N, 69, length) float32; blank characters and the space after a text are zero.
    """
    encoded = np.zeros((len(texts), len(ALPHABET), length), dtype=np.float32)
    for document, rows in zip(encoded, texts, strict=True):
        (columns,) = np.nonzero(rows != _BLANK)
        document[rows[columns], columns] = 1
    return encoded


class CharacterCNNService(GluonImperativeBaseService):
    """Gluon Character-level Convolution Service."""

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        super().__init__(model_name, model_dir, manifest, GluonCrepe(), gpu)

    def _preprocess(self, data: list[Any]) -> nd.NDArray:
        """Encode the reviews of one request.

        Args:
            data: The request body as its only entry: a list of objects with the strings
                ``review_title`` and ``review``.

        Returns:
            Shape (N, 69, 1014) float32, one row per review, on the service's device.

        Raises:
            PredictionException: With status 400, naming what is wrong with which review.
        """
        reviews = data[0]
        if not isinstance(reviews, list) or not reviews:
            raise PredictionException("expected a list of one or more reviews", 400)
        encoded = one_hot(
            [
                character_rows(_text(review, "review_title", index), _text(review, "review", index))
                for index, review in enumerate(reviews)
            ]
        )
        if self.ctx.device_type == "cpu":
            # No copy: takes a quarter of nd.array's time or less.
            return nd.from_numpy(encoded, zero_copy=True)
        return nd.array(encoded, ctx=self.ctx)

    def _inference(self, data: nd.NDArray) -> nd.NDArray:
        """Run the network: (N, 69, 1014) float32 -> scores (N, 7) float32."""
        return self.net(data)

    def _postprocess(self, data: nd.NDArray) -> list[dict[str, str]]:
        """Name the most likely category of each review, from scores (N, 7) float32."""
        # The largest score is also the largest probability, so no softmax is needed.
        return [{"category": self.labels[best]} for best in data.asnumpy().argmax(axis=1)]


def _text(review: Any, key: str, index: int) -> str:
    if not isinstance(review, dict):
        raise PredictionException(
            f"review {index} must be an object with review_title and review, "
            f"got {type(review).__name__}",
            400,
        )
    value = review.get(key)
    if not isinstance(value, str):
        problem = f"must be a string, got {type(value).__name__}" if key in review else "is missing"
        raise PredictionException(f"{key!r} of review {index} {problem}", 400)
    return value
