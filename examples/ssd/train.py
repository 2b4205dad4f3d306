"""Train the detector on generated pictures, measure it on others, and write a folder to export."""

import json
import math
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when MXNet is imported; without it MXNet computes on one thread.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import click
import numpy as np
import shapes
from detector import SIZE, DecodedDetector, Detector, mx
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

autograd, nd = mx.autograd, mx.nd

HERE = Path(__file__).parent
ARCHIVE_FILES = ("ssd_service.py", "signature.json", "synset.txt")
# HybridBlock.export adds "-symbol.json" and "-0000.params".
PREFIX = "ssd"

# Sides in pixels of the pictures drawn, before they are squeezed to the network's square: a
# client's pictures are not square either.
MIN_SIDE, MAX_SIDE = 128, 192
# MultiBoxTarget: background anchors to learn from per anchor on a shape, the hardest first.
NEGATIVES_PER_POSITIVE = 3
MATCH_OVERLAP = 0.5
HIT_OVERLAP = 0.5
BOX_LOSS_WEIGHT = 2.0
WARM_UP_STEPS = 20
FINAL_RATE_SHARE = 0.02
PREDICT_BATCH_SIZE = 50
PROGRESS_INTERVAL_S = 1.0
QUICK_STEPS, QUICK_BATCH_SIZE = 60, 4


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures as the network reads them.

    Attributes:
        pixels: Shape (N, 3, 128, 128) uint8.
        labels: Shape (N, 4, 5) float32: class, left, top, right, bottom as shares of the picture;
            class -1 fills the rows that a picture has no shape for.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.float32]


def generate(count: int, seed: int) -> Pictures:
    """Draw pictures of many aspect ratios, as the network reads them."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(MIN_SIDE, MAX_SIDE + 1, size=(count, 2)).tolist()
    return squeeze([shapes.generate(rng, width, height) for width, height in sizes])


def squeeze(pictures: Sequence[shapes.Picture]) -> Pictures:
    """Squeeze pictures to 128 x 128, as the service does."""
    pixels = np.empty((len(pictures), 3, SIZE, SIZE), dtype=np.uint8)
    labels = np.full((len(pictures), shapes.MAX_SHAPES, 5), -1, dtype=np.float32)
    for index, picture in enumerate(pictures):
        squeezed = picture.image.resize((SIZE, SIZE), Image.Resampling.BOX)
        pixels[index] = np.asarray(squeezed).transpose(2, 0, 1)
        labels[index, : len(picture.labels)] = picture.labels
    return Pictures(pixels, labels)


# --- Training -------------------------------------------------------------------------------


def augment(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Mirror pictures at random, and swap the colours' channels: new pictures at no cost."""
    pixels = pictures.pixels[:, rng.permutation(3)]
    labels = pictures.labels.copy()
    is_shape = labels[:, :, 0] >= 0
    for axis, (low, high) in ((3, (1, 3)), (2, (2, 4))):
        chosen = rng.random(len(pixels)) < 0.5
        pixels[chosen] = np.flip(pixels[chosen], axis=axis)
        rows = chosen[:, np.newaxis] & is_shape
        labels[rows, low], labels[rows, high] = 1 - labels[rows, high], 1 - labels[rows, low]
    return Pictures(pixels, labels)


class Trainer:
    """Trains by Adam with a warm-up and a cosine decay over `total_steps`."""

    def __init__(self, net: Detector, learning_rate: float, total_steps: int) -> None:
        self.net = net
        self.optimizer = mx.gluon.Trainer(net.collect_params(), "adam", {"wd": 1e-4})
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.step_count = 0

    def step(self, pictures: Pictures) -> float:
        """Train on one batch; return its loss per anchor on a shape."""
        self.optimizer.set_learning_rate(self._rate())
        with autograd.record():
            anchors, scores, offsets = self.net(nd.array(pictures.pixels, dtype="float32"))
            with autograd.pause():
                box_target, box_mask, class_target = nd.contrib.MultiBoxTarget(
                    anchors,
                    nd.array(pictures.labels),
                    scores,
                    overlap_threshold=MATCH_OVERLAP,
                    ignore_label=-1,
                    negative_mining_ratio=NEGATIVES_PER_POSITIVE,
                    negative_mining_thresh=0.5,
                )
            per_anchor = -nd.pick(nd.log_softmax(scores, axis=1), class_target, axis=1)
            class_loss = (per_anchor * (class_target >= 0)).sum()
            box_loss = nd.smooth_l1((offsets - box_target) * box_mask, scalar=1.0).sum()
            positives = nd.maximum((class_target > 0).sum(), 1)
            loss = (class_loss + BOX_LOSS_WEIGHT * box_loss) / positives
        loss.backward()
        self.optimizer.step(1)
        self.step_count += 1
        return float(loss.asscalar())

    def _rate(self) -> float:
        warm_up = min(1.0, (self.step_count + 1) / WARM_UP_STEPS)
        cosine = (1 + math.cos(math.pi * self.step_count / self.total_steps)) / 2
        return self.learning_rate * warm_up * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine)


def train(
    net: Detector,
    pictures: Pictures,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    augmented: bool = True,
) -> Iterator[float]:
    """Train, and return the mean loss of each epoch."""
    rng = np.random.default_rng(seed)
    steps = len(pictures.pixels) // batch_size
    trainer = Trainer(net, learning_rate, epochs * steps)
    for epoch in range(1, epochs + 1):
        order = rng.permutation(len(pictures.pixels))
        losses = []
        bar = tqdm(range(steps), f"epoch {epoch}/{epochs}", mininterval=PROGRESS_INTERVAL_S)
        for step in bar:
            chosen = order[step * batch_size : (step + 1) * batch_size]
            batch = Pictures(pictures.pixels[chosen], pictures.labels[chosen])
            losses.append(trainer.step(augment(batch, rng) if augmented else batch))
            bar.set_postfix(loss=f"{np.mean(losses):.3f}", refresh=False)
        yield float(np.mean(losses))


# --- Evaluation -----------------------------------------------------------------------------


def detect(net: Detector, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
    """Return each picture's detections, shape (K, 6): class, score, left, top, right, bottom."""
    decoded = DecodedDetector(net)
    found = []
    for start in range(0, len(pixels), PREDICT_BATCH_SIZE):
        batch = nd.array(pixels[start : start + PREDICT_BATCH_SIZE], dtype="float32")
        found += [rows[rows[:, 0] >= 0] for rows in decoded(batch).asnumpy()]
    return found


def overlaps(box: NDArray[np.float32], boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the intersection over union of a box (4,) with each of `boxes` (M, 4)."""
    inner = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.prod(np.maximum(inner, 0), axis=1)
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - shared
    return shared / union  # type: ignore[no-any-return]


def average_precision(
    found: Sequence[NDArray[np.float32]], labels: NDArray[np.float32], shape: int
) -> tuple[float, list[float]]:
    """Return one class's average precision, and the overlap of each of its hits.

    A detection hits the not yet hit shape of its class that it overlaps most, if by half at
    least. The area under the precision-recall curve is taken at every recall, as the Pascal VOC
    challenge has done since 2010.
    """
    truth = [rows[rows[:, 0] == shape, 1:] for rows in labels]
    free = [np.ones(len(boxes), dtype=bool) for boxes in truth]
    ranked = [
        (row[1], index, row[2:])
        for index, rows in enumerate(found)
        for row in rows
        if row[0] == shape
    ]
    ranked.sort(key=lambda entry: -entry[0])
    hits, hit_overlaps = np.zeros(len(ranked)), []
    for rank, (_, index, box) in enumerate(ranked):
        shared = np.where(free[index], overlaps(box, truth[index]), 0)
        if len(shared) and shared.max() >= HIT_OVERLAP:
            free[index][shared.argmax()] = False
            hits[rank] = 1
            hit_overlaps.append(float(shared.max()))
    total = max(1, sum(map(len, truth)))
    precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((best_from_here * hits).sum() / total), hit_overlaps


def evaluate(net: Detector, pictures: Pictures) -> dict[str, Any]:
    """Return average precision by class and in the mean, and the mean overlap of hits."""
    found = detect(net, pictures.pixels)
    precisions, hit_overlaps = {}, []
    for shape, name in enumerate(shapes.CLASSES):
        precisions[name], values = average_precision(found, pictures.labels, shape)
        hit_overlaps += values
    return {
        "average_precision": precisions,
        "mean_average_precision": float(np.mean(list(precisions.values()))),
        "mean_overlap_of_hits": float(np.mean(hit_overlaps or [0.0])),
    }


# --- Command --------------------------------------------------------------------------------


def save(net: Detector, output: Path, sample: Image.Image, metrics: dict[str, Any]) -> None:
    """Write what `mxnet-model-export` packs to `output`, and the metrics next to it.

    The exporter packs the whole folder, so nothing else may lie there.
    """
    output.mkdir(parents=True, exist_ok=True)
    served = DecodedDetector(net)
    served.hybridize()
    # The symbol to export is that of the last call.
    served(nd.zeros((1, 3, SIZE, SIZE)))
    served.export(str(output / PREFIX))
    for name in ARCHIVE_FILES:
        shutil.copyfile(HERE / name, output / name)
    sample.save(output / "sample.jpg", quality=90)
    text = json.dumps(metrics, indent=2) + "\n"
    output.with_name(f"{output.name}-metrics.json").write_text(text, encoding="utf-8")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="build/ssd")
@click.option("--epochs", type=click.IntRange(min=1), default=3)
@click.option("--pictures", default=3000, help="Training pictures.")
@click.option("--held-out", default=500, help="Held-out pictures.")
@click.option("--batch-size", default=16)
@click.option("--learning-rate", default=3e-3)
@click.option("--seed", default=0)
@click.option("--quick", is_flag=True, help="Learn one picture by heart, for the tests.")
def main(
    output: Path,
    epochs: int,
    pictures: int,
    held_out: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    quick: bool,
) -> None:
    """Train on generated pictures and write a folder to export."""
    started, cpu_started = time.monotonic(), time.process_time()
    mx.random.seed(seed)
    sample = shapes.sample()
    if quick:
        epochs, batch_size, held_out = QUICK_STEPS, QUICK_BATCH_SIZE, 50
        training = squeeze([sample] * batch_size)
    else:
        # Seeds of this form never meet each other, nor the sample's.
        training = generate(pictures, 3 * seed)
    validation = generate(held_out, 3 * seed + 1)
    net = Detector(len(shapes.CLASSES))
    net.initialize(mx.init.Xavier())
    net.hybridize(static_alloc=True)
    losses = list(
        train(
            net,
            training,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            seed=seed,
            augmented=not quick,
        )
    )
    metrics = {
        "seed": seed,
        "training_pictures": len(training.pixels),
        "held_out_pictures": held_out,
        "losses": losses,
        **evaluate(net, validation),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
    }
    save(net, output, sample.image, metrics)
    for name, precision in metrics["average_precision"].items():
        print(f"average precision of {name:10}{precision:8.4f}")
    print(f"mean average precision at 0.5 overlap: {metrics['mean_average_precision']:.4f}")
    print(f"mean overlap of hits: {metrics['mean_overlap_of_hits']:.4f}")
    print(
        f"wrote {output} in {metrics['seconds']:.0f} s ({metrics['cpu_seconds']:.0f} s of one core)"
    )


if __name__ == "__main__":
    main()
