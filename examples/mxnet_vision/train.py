"""Train LeNet, as an MXNet symbol, on handwritten digits, ready for export without a service file.

The digits are the 1,797 scans that scikit-learn ships: 8 x 8 pixels of 17 grey levels, from the
UCI repository (Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, 1998). They are
enlarged to the 28 x 28 of LeNet's usual input.
"""

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
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from mms.engines.imports import import_mxnet

mx = import_mxnet()

HERE = Path(__file__).parent
ARCHIVE_FILES = ("signature.json", "synset.txt")
# The exporter wants symbol and parameters to begin alike; Module adds "-symbol.json" and
# "-0000.params".
PREFIX = "lenet"

SIZE = 28
MAX_LEVEL = 16
HELD_OUT_SHARE = 0.25
CLASSES = 10
# What still reads as the same digit.
MAX_ROTATION_DEGREES = 15
MAX_SHIFT_PIXELS = 2
# Side of the README's picture, large enough to be looked at.
SHOWN_SIZE = 112


@dataclass(frozen=True, slots=True)
class Digits:
    """Pictures of shape (N, 28, 28) uint8, white on black, and labels of shape (N,) int64."""

    pictures: NDArray[np.uint8]
    labels: NDArray[np.int64]


def load() -> tuple[Digits, Digits]:
    """Return the training and the held-out digits; the split is fixed, not drawn from a seed."""
    scans = load_digits()
    pictures = np.stack([enlarge(scan) for scan in scans.images])
    parts = train_test_split(
        pictures, scans.target, test_size=HELD_OUT_SHARE, random_state=0, stratify=scans.target
    )
    return Digits(parts[0], parts[2]), Digits(parts[1], parts[3])


def enlarge(scan: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Return a scan of (8, 8) levels 0..16 as a picture of (28, 28) uint8."""
    levels = Image.fromarray((scan * (255 / MAX_LEVEL)).astype(np.uint8))
    return np.asarray(levels.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def lenet() -> Any:
    """Return the symbol: (N, 1, 28, 28) float32, pixel values 0..255 -> (N, 10) probabilities.

    The default vision service passes pixels on as they are, so the symbol scales them itself.
    """
    net = mx.sym.var("data") / 255
    for number, filters in enumerate((20, 50), start=1):
        net = mx.sym.Convolution(net, kernel=(5, 5), num_filter=filters, name=f"conv{number}")
        net = mx.sym.Activation(net, act_type="tanh", name=f"tanh{number}")
        net = mx.sym.Pooling(net, pool_type="max", kernel=(2, 2), stride=(2, 2))
    net = mx.sym.FullyConnected(mx.sym.flatten(net), num_hidden=500, name="fc1")
    net = mx.sym.Activation(net, act_type="tanh", name="tanh3")
    net = mx.sym.FullyConnected(net, num_hidden=CLASSES, name="fc2")
    return mx.sym.SoftmaxOutput(net, name="softmax")


def augment(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn and shift a picture of (28, 28) a little."""
    angle = rng.uniform(-MAX_ROTATION_DEGREES, MAX_ROTATION_DEGREES)
    shift = tuple(rng.integers(-MAX_SHIFT_PIXELS, MAX_SHIFT_PIXELS + 1, size=2).tolist())
    turned = Image.fromarray(picture).rotate(angle, Image.Resampling.BILINEAR, translate=shift)
    return np.asarray(turned)


def batches(digits: Digits, size: int, rng: np.random.Generator) -> Iterator[Any]:
    """Return one epoch of augmented training batches; the digits left over wait for the next."""
    order = rng.permutation(len(digits.labels))
    for start in range(0, len(order) - size + 1, size):
        chosen = order[start : start + size]
        pictures = np.stack([augment(digits.pictures[i], rng) for i in chosen])
        yield mx.io.DataBatch(
            data=[mx.nd.array(pictures[:, np.newaxis])], label=[mx.nd.array(digits.labels[chosen])]
        )


def make_module(batch_size: int, learning_rate: float) -> Any:
    """Return the network, initialised and ready to be trained by Adam."""
    module = mx.mod.Module(lenet(), data_names=["data"], label_names=["softmax_label"])
    module.bind([("data", (batch_size, 1, SIZE, SIZE))], [("softmax_label", (batch_size,))])
    module.init_params(mx.init.Xavier())
    module.init_optimizer(optimizer="adam", optimizer_params={"learning_rate": learning_rate})
    return module


def predict(module: Any, digits: Digits) -> NDArray[np.int64]:
    """Return the most probable class of each digit, shape (N,)."""
    # Module is bound to one batch size; the iterator fills the last batch, predict cuts it again.
    (size, *_) = module.data_shapes[0].shape
    iterator = mx.io.NDArrayIter(digits.pictures[:, np.newaxis].astype(np.float32), batch_size=size)
    best: NDArray[np.int64] = module.predict(iterator).asnumpy().argmax(axis=1)
    return best


def save(module: Any, output: Path, sample: NDArray[np.uint8], metrics: dict[str, Any]) -> None:
    """Write what `mxnet-model-export` packs to `output`, and the metrics next to it.

    The exporter packs the whole folder, so nothing else may lie there.
    """
    output.mkdir(parents=True, exist_ok=True)
    module.save_checkpoint(str(output / PREFIX), 0)
    for name in ARCHIVE_FILES:
        shutil.copyfile(HERE / name, output / name)
    Image.fromarray(sample).save(output / "sample.png")
    text = json.dumps(metrics, indent=2) + "\n"
    output.with_name(f"{output.name}-metrics.json").write_text(text, encoding="utf-8")


def show(picture: NDArray[np.uint8], path: Path) -> None:
    """Write a digit large, as the README's picture to ask about."""
    large = Image.fromarray(picture).resize((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.BICUBIC)
    large.save(path, optimize=True)


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="build/mxnet_vision")
@click.option("--epochs", type=click.IntRange(min=1), default=20)
@click.option("--batch-size", default=64)
@click.option("--learning-rate", default=1e-3)
@click.option("--seed", default=0)
@click.option("--quick", is_flag=True, help="Two epochs: a weaker model in seconds, for the tests.")
@click.option(
    "--picture",
    type=click.Path(path_type=Path),
    help="Also write a held-out digit there, as a picture.",
)
def main(
    output: Path,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    quick: bool,
    picture: Path | None,
) -> None:
    """Train LeNet on scikit-learn's digits and write a folder to export."""
    started, cpu_started = time.monotonic(), time.process_time()
    mx.random.seed(seed)
    np.random.seed(seed)  # Module's initialisers draw from NumPy.
    training, held_out = load()
    epochs = 2 if quick else epochs
    rng = np.random.default_rng(seed)
    module = make_module(batch_size, learning_rate)
    accuracies = []
    for epoch in range(1, epochs + 1):
        for batch in batches(training, batch_size, rng):
            module.forward_backward(batch)
            module.update()
        right = predict(module, held_out) == held_out.labels
        accuracies.append(float(right.mean()))
        print(f"epoch {epoch}/{epochs}: held-out accuracy {accuracies[-1]:.4f}")
    metrics = {
        "seed": seed,
        "training_digits": len(training.labels),
        "held_out_digits": len(held_out.labels),
        "held_out_accuracy": accuracies[-1],
        "epochs": accuracies,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
    }
    save(module, output, held_out.pictures[0], metrics)
    if picture is not None:
        show(held_out.pictures[0], picture)
    print(
        f"wrote {output} in {metrics['seconds']:.0f} s ({metrics['cpu_seconds']:.0f} s of one core)"
    )


if __name__ == "__main__":
    main()
