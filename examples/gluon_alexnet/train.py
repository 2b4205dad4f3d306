"""Train AlexNet on generated textures, and write a folder to export with either service file."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read when MXNet is imported; without it MXNet computes on one thread.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import click
import numpy as np
import textures
from gluon_hybrid_alexnet import HybridAlexNet
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from mms.utils.mxnet import image

# isort: split
# After the service module, through which mms prepares NumPy for MXNet.
import mxnet as mx
from mxnet import autograd, gluon, nd

HERE = Path(__file__).parent
# The exporter reads the epoch number from the file name.
PARAMETER_FILE = "alexnet-0000.params"
ARCHIVE_FILES = ("signature.json", "synset.txt")

# Pictures are drawn larger than the network's input, so that each can be cut out differently.
DRAWN_SIZE, SIZE = 256, 224
# Of the README's picture. Training pictures are drawn from seed 3 n, held-out ones from 3 n + 1.
SAMPLE_SEED = 2
# What GluonVisionService does to pixels: ImageNet's mean and deviation of each channel.
MEAN = nd.array([0.485, 0.456, 0.406]).reshape((1, 3, 1, 1))
STD = nd.array([0.229, 0.224, 0.225]).reshape((1, 3, 1, 1))
FINAL_RATE_SHARE = 0.02
PREDICT_BATCH_SIZE = 50
PROGRESS_INTERVAL_S = 1.0
QUICK_EPOCHS = 40


@dataclass(frozen=True, slots=True)
class Pictures:
    """Pictures of shape (N, 256, 256, 3) uint8 and labels of shape (N,) int64."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]


def generate(count: int, seed: int) -> Pictures:
    """Draw pictures, as many of each class as of any other."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(textures.CLASSES)
    pixels = [np.asarray(textures.generate(rng, int(label), DRAWN_SIZE)) for label in labels]
    return Pictures(np.stack(pixels), labels)


def augment(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Cut (224, 224, 3) out of a picture, and mirror it at random."""
    top, left = rng.integers(0, DRAWN_SIZE - SIZE + 1, size=2)
    part = picture[top : top + SIZE, left : left + SIZE]
    return part[:, ::-1] if rng.random() < 0.5 else part


def fit(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize a picture to (224, 224, 3), as the service does."""
    resized: NDArray[np.uint8] = image.resize(
        nd.array(picture, dtype="uint8"), SIZE, SIZE
    ).asnumpy()
    return resized


def to_input(pixels: NDArray[np.uint8]) -> nd.NDArray:
    """Return pictures (N, H, W, 3) uint8 as the network's input (N, 3, H, W) float32."""
    channels_first = nd.array(pixels, dtype="uint8").transpose((0, 3, 1, 2))
    return (channels_first.astype("float32") / 255 - MEAN) / STD


def train(
    net: HybridAlexNet,
    pictures: Pictures,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    augmented: bool = True,
) -> Iterator[float]:
    """Train by Adam with a cosine decay, and return the mean loss of each epoch."""
    rng = np.random.default_rng(seed)
    cross_entropy = gluon.loss.SoftmaxCrossEntropyLoss()
    optimizer = gluon.Trainer(net.collect_params(), "adam", {"wd": 1e-4})
    steps = len(pictures.labels) // batch_size
    for epoch in range(epochs):
        order = rng.permutation(len(pictures.labels))
        losses = []
        for step in tqdm(
            range(steps), f"epoch {epoch + 1}/{epochs}", mininterval=PROGRESS_INTERVAL_S
        ):
            done = (epoch * steps + step) / (epochs * steps)
            cosine = (1 + np.cos(np.pi * done)) / 2
            rate = learning_rate * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine)
            optimizer.set_learning_rate(rate)
            chosen = order[step * batch_size : (step + 1) * batch_size]
            chosen_pictures = [pictures.pixels[i] for i in chosen]
            cut = [augment(p, rng) if augmented else fit(p) for p in chosen_pictures]
            batch = to_input(np.stack(cut))
            target = nd.array(pictures.labels[chosen])
            with autograd.record():
                loss = cross_entropy(net(batch), target)
            loss.backward()
            optimizer.step(len(chosen))
            losses.append(float(loss.mean().asscalar()))
        yield float(np.mean(losses))


def predict(net: HybridAlexNet, pictures: Pictures) -> NDArray[np.int64]:
    """Return the most probable class of each picture, shape (N,)."""
    best = []
    for start in range(0, len(pictures.labels), PREDICT_BATCH_SIZE):
        part = pictures.pixels[start : start + PREDICT_BATCH_SIZE]
        scores = net(to_input(np.stack([fit(picture) for picture in part])))
        best.append(scores.asnumpy().argmax(axis=1))
    return np.concatenate(best)


def save(
    net: HybridAlexNet, output: Path, sample: NDArray[np.uint8], metrics: dict[str, Any]
) -> None:
    """Write what `mxnet-model-export` packs to `output`, and the metrics next to it.

    The exporter packs the whole folder, so nothing else may lie there.
    """
    output.mkdir(parents=True, exist_ok=True)
    net.save_parameters(str(output / PARAMETER_FILE))
    for name in ARCHIVE_FILES:
        shutil.copyfile(HERE / name, output / name)
    Image.fromarray(sample).save(output / "sample.jpg", quality=90)
    text = json.dumps(metrics, indent=2) + "\n"
    output.with_name(f"{output.name}-metrics.json").write_text(text, encoding="utf-8")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="build/gluon_alexnet")
@click.option("--epochs", type=click.IntRange(min=1), default=5)
@click.option("--pictures", default=1200, help="Training pictures.")
@click.option("--held-out", default=300, help="Held-out pictures.")
@click.option("--batch-size", default=16)
@click.option("--learning-rate", default=5e-4)
@click.option("--seed", default=0)
@click.option("--quick", is_flag=True, help="Learn ten pictures by heart, for the tests.")
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
    """Train on generated textures and write a folder to export."""
    started, cpu_started = time.monotonic(), time.process_time()
    mx.random.seed(seed)
    samples = generate(len(textures.CLASSES), SAMPLE_SEED)
    if quick:
        epochs, batch_size, held_out = QUICK_EPOCHS, len(samples.labels), 50
    training = samples if quick else generate(pictures, 3 * seed)
    validation = generate(held_out, 3 * seed + 1)
    net = HybridAlexNet()
    net.initialize(mx.init.MSRAPrelu(slope=0))
    net.hybridize(static_alloc=True)
    losses = []
    for loss in train(
        net,
        training,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
        augmented=not quick,
    ):
        losses.append(loss)
        print(f"epoch {len(losses)}: loss {loss:.3f}")
    right = predict(net, validation) == validation.labels
    metrics = {
        "seed": seed,
        "training_pictures": len(training.labels),
        "held_out_pictures": held_out,
        "losses": losses,
        "held_out_accuracy": float(right.mean()),
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
    }
    save(net, output, samples.pixels[0], metrics)
    print(f"held-out accuracy {metrics['held_out_accuracy']:.4f}")
    print(
        f"wrote {output} in {metrics['seconds']:.0f} s ({metrics['cpu_seconds']:.0f} s of one core)"
    )


if __name__ == "__main__":
    main()
