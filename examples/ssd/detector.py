"""A small single shot detector (SSD) in Gluon, and the same with decoding for export.

After Liu et al., SSD: Single Shot MultiBox Detector (2016): a convolutional body, and at three
of its scales a class and a box offset for each of a grid of anchors.
"""

from typing import Any

from mms.engines.imports import import_mxnet

mx = import_mxnet()
nn = mx.gluon.nn

SIZE = 128
# Per scale (16 x 16, 8 x 8 and 4 x 4 cells): anchor sizes as shares of the picture. They cover
# the sizes of `shapes.py`, each about a fourth larger than the one before.
ANCHOR_SIZES = ((0.15, 0.2), (0.26, 0.33), (0.42, 0.5))
ANCHOR_RATIOS = (1, 2, 0.5)
ANCHORS_PER_CELL = 4  # the first size in each ratio, and the second size in the first ratio
BODY_CHANNELS = (16, 32, 64)
SCALE_CHANNELS = 64

MIN_SCORE = 0.05
NMS_THRESHOLD = 0.45


class Detector(nn.HybridBlock):  # type: ignore[misc, name-defined]  # mxnet is untyped
    """The network as it is trained.

    Shapes: (N, 3, 128, 128) float32, pixel values 0..255 ->
        anchors (1, A, 4), corners as shares of the picture;
        class scores (N, classes + 1, A), class 0 being the background;
        box offsets (N, A * 4). A is 1344.
    """

    def __init__(self, classes: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._classes = classes
        with self.name_scope():
            self.body = nn.HybridSequential()
            for channels in BODY_CHANNELS:
                self.body.add(*_convolutions(channels, halve=True))
            self.scales = nn.HybridSequential()
            self.class_heads = nn.HybridSequential()
            self.box_heads = nn.HybridSequential()
            for scale in range(len(ANCHOR_SIZES)):
                block = nn.HybridSequential()
                # The first scale is that of the body's features.
                block.add(*_convolutions(SCALE_CHANNELS, halve=scale > 0))
                self.scales.add(block)
                self.class_heads.add(nn.Conv2D(ANCHORS_PER_CELL * (classes + 1), 3, padding=1))
                self.box_heads.add(nn.Conv2D(ANCHORS_PER_CELL * 4, 3, padding=1))

    def hybrid_forward(self, F: Any, x: Any) -> tuple[Any, Any, Any]:
        features = self.body(x / 127.5 - 1)
        anchors, scores, offsets = [], [], []
        scales = zip(self.scales, self.class_heads, self.box_heads, ANCHOR_SIZES, strict=True)
        for block, class_head, box_head, sizes in scales:
            features = block(features)
            anchors.append(
                F.contrib.MultiBoxPrior(features, sizes=sizes, ratios=ANCHOR_RATIOS, clip=False)
            )
            # Cell by cell, as MultiBoxPrior lists its anchors: (N, C, H, W) -> (N, H * W * C).
            scores.append(F.flatten(F.transpose(class_head(features), (0, 2, 3, 1))))
            offsets.append(F.flatten(F.transpose(box_head(features), (0, 2, 3, 1))))
        by_anchor = F.reshape(F.concat(*scores, dim=1), (0, -1, self._classes + 1))
        return (
            F.concat(*anchors, dim=1),
            F.transpose(by_anchor, (0, 2, 1)),
            F.concat(*offsets, dim=1),
        )


class DecodedDetector(nn.HybridBlock):  # type: ignore[misc, name-defined]  # mxnet is untyped
    """The network as it is served: what it found, instead of scores and offsets.

    Shapes: (N, 3, 128, 128) float32, pixel values 0..255 -> (N, A, 6) float32, one row per
    anchor: class or -1, score, left, top, right, bottom as shares of the picture.
    """

    def __init__(self, detector: Detector, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.detector = detector

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        anchors, scores, offsets = self.detector(x)
        return F.contrib.MultiBoxDetection(
            F.softmax(scores, axis=1),
            offsets,
            anchors,
            threshold=MIN_SCORE,
            nms_threshold=NMS_THRESHOLD,
        )


def _convolutions(channels: int, halve: bool) -> list[Any]:
    """Return two convolutions with their normalisation, the first of which may halve the size."""
    layers = []
    for strides in (2 if halve else 1, 1):
        layers += [
            nn.Conv2D(channels, 3, strides=strides, padding=1, use_bias=False),
            nn.BatchNorm(),
            nn.Activation("relu"),
        ]
    return layers
