"""Find circles, squares and triangles in a picture: a service for a detector that is a symbol."""

from typing import Any

from mms.model_service.mxnet_vision_service import MXNetVisionService
from mms.utils.mxnet import image

# Detections below this are left out of the answer; the symbol itself gives all above 0.05.
THRESHOLD = 0.4


class SSDService(MXNetVisionService):
    """Encoded picture in, a list of what is found in it out.

    The symbol gives (N, A, 6) float32 per picture: class or -1, score, and the box's left, top,
    right and bottom as shares of the picture.
    """

    def _preprocess(self, data: list[Any]) -> list[Any]:
        """Note the picture's own size, then resize it as the base class does.

        What is kept on ``self`` is this request's own, in a batch too: the server gives each
        request a copy of the service for its preprocessing and postprocessing.
        """
        self.height, self.width = image.read(data[0]).shape[:2]
        return super()._preprocess(data)

    def _postprocess(self, data: list[Any]) -> list[Any]:
        """Return class, score and box (left, top, right, bottom in pixels), best first."""
        rows = data[0].asnumpy()[0]
        found = rows[(rows[:, 0] >= 0) & (rows[:, 1] >= THRESHOLD)]
        return [
            {
                "class": self.labels[int(row[0])],
                "score": round(float(row[1]), 4),
                "box": [
                    _pixels(share, size)
                    for share, size in zip(row[2:], 2 * (self.width, self.height), strict=True)
                ],
            }
            for row in found[(-found[:, 1]).argsort(kind="stable")]
        ]


def _pixels(share: float, size: int) -> int:
    """Return a share of a side in whole pixels inside the picture."""
    return min(max(round(float(share) * size), 0), size)
