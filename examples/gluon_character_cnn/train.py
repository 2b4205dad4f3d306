"""Train the Crepe character CNN on the synthetic review corpus, ready for export.

From the usual random initialisations (Xavier, He) this network was still at chance after 20,000
reviews: six convolutions and three poolings blur what little signal a few short words give. So
it starts as a bag-of-words detector instead, and every parameter is then trained by gradient
descent from there:

- each filter of the first convolution detects the beginnings of a few words that speak for one
  category, chosen from training reviews by mutual information;
- the other convolutions pass each channel on (identity plus noise);
- the first dense layer sums each channel over all positions, in random proportions.

The corpus is synthetic (see `corpus.py`): the accuracy printed here is on generated reviews and
says nothing about real ones.
"""

import json
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

# Read when MXNet is imported; without it MXNet computes on one thread.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import click
import corpus
import numpy as np
from character_cnn_service import ALPHABET, FEATURE_LEN, GluonCrepe, character_rows, one_hot
from numpy.typing import NDArray
from tqdm import tqdm

# isort: split
# After the service module, through which mms prepares NumPy for MXNet.
import mxnet as mx
from mxnet import autograd, gluon, nd

HERE = Path(__file__).parent
# The exporter reads the epoch number from the file name.
PARAMETER_FILE = "character_cnn-0000.params"
ARCHIVE_FILES = ("character_cnn_service.py", "signature.json", "synset.txt", "sample.json")
EXAMPLES = (
    corpus.Review(
        "Inception is the best",
        "great direction and story",
        corpus.CATEGORIES.index("Movies_and_TV"),
    ),
    corpus.Review(
        "fantastic quality", "quality sound playback", corpus.CATEGORIES.index("CDs_and_Vinyl")
    ),
)

# Geometry of the network: `features[:9]` turns 1014 characters into 34 positions, each of which
# sees 123 characters and lies 27 (three poolings by 3) after the one before.
NUM_CONV_LAYERS = 9
NUM_POSITIONS = 34
FIELD_LEN = 123
STRIDE = 27
# Lengths to crop batches to, in positions. Few, because MXNet plans memory anew for each.
CROPS = (4, 6, 8, 12, 18, 26, NUM_POSITIONS)

FIRST_FILTER_LEN = 7
WORDS_PER_FILTER = 3
MIN_WORD_REVIEWS = 5
# Score of a full match before scaling: with one letter wrong a filter still fires a little.
MATCH_MARGIN = 1.2
NOISE = 0.01
DENSE_SCALE = 0.3
OUTPUT_SCALE = 0.01
WARM_UP_STEPS = 30
FINAL_RATE_SHARE = 0.02
PREDICT_BATCH_SIZE = 64
PROGRESS_INTERVAL_S = 1.0


@dataclass(frozen=True, slots=True)
class Documents:
    """Encoded reviews: rows of the alphabet per review, and labels of shape (N,) int64."""

    texts: list[NDArray[np.intp]]
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class EpochResult:
    """What one epoch of training came to; both figures are of training reviews."""

    epoch: int
    loss: float
    accuracy: float


def encode(reviews: Sequence[corpus.Review]) -> Documents:
    """Return reviews as the network reads them."""
    texts = [character_rows(review.title, review.text) for review in reviews]
    return Documents(texts, np.array([review.label for review in reviews]))


# --- Initialisation -------------------------------------------------------------------------


def word_starts(review: corpus.Review) -> set[str]:
    """Return the words of a review as a first filter can see them: at most seven characters.

    A short word keeps the space before it, so that it is not found inside another one.
    """
    words = re.findall("[a-z]{3,}", f"{review.title}|{review.text}".lower())
    width = FIRST_FILTER_LEN
    return {word[:width] if len(word) >= width else f" {word}" for word in words}


def choose_detectors(reviews: Sequence[corpus.Review], count: int) -> list[list[str]]:
    """Choose the words that each of `count` first filters detects.

    The words of one filter speak for the same category and are of similar length, because they
    share one threshold. Together they cover three times the vocabulary that one word each would.
    """
    classes = len(corpus.CATEGORIES)
    found = Counter((word, review.label) for review in reviews for word in word_starts(review))
    words = sorted({word for word, _ in found})
    table = np.array([[found[word, label] for label in range(classes)] for word in words])
    frequent = table.sum(axis=1) >= MIN_WORD_REVIEWS
    totals = np.bincount([review.label for review in reviews], minlength=classes)
    by_category: list[list[str]] = [[] for _ in range(classes)]
    for index in np.argsort(-mutual_information(table, totals), kind="stable"):
        if frequent[index]:
            by_category[table[index].argmax()].append(words[index])
    filters = []
    for label, candidates in enumerate(by_category):
        share = count // classes + (label < count % classes)
        chosen = sorted(candidates[: share * WORDS_PER_FILTER], key=len)
        filters += [chosen[i * WORDS_PER_FILTER : (i + 1) * WORDS_PER_FILTER] for i in range(share)]
    return filters


def mutual_information(table: NDArray[np.int64], totals: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how much the presence of a word tells about the category, in nats.

    Args:
        table: Reviews that hold the word, shape (words, classes).
        totals: Reviews of each class, shape (classes,).

    Returns:
        Shape (words,).
    """
    share = table.sum(axis=1) / totals.sum()
    with_word, without_word = _entropy(table), _entropy(totals - table)
    gain: NDArray[np.float64] = _entropy(totals[np.newaxis]) - (
        share * with_word + (1 - share) * without_word
    )
    return gain


def _entropy(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    entropy: NDArray[np.float64] = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(axis=1)
    return entropy


def initialise(net: GluonCrepe, detectors: Sequence[Sequence[str]], seed: int) -> None:
    """Make the network a bag-of-words detector; see the module's docstring."""
    rng = np.random.default_rng(seed)
    net.infer_shape(nd.zeros((1, len(ALPHABET), FEATURE_LEN)))
    # Biases stay zero. Nothing may be run before the last set_data: oneDNN keeps its own layout
    # of a convolution's weight after a forward pass, and training then fails (IsDefaultData).
    net.initialize(mx.init.Zero())
    convolutions = [layer for layer in net.features if isinstance(layer, gluon.nn.Conv1D)]
    weight, bias = detector_filters(detectors)
    _set(convolutions[0].weight, weight + rng.normal(0, NOISE, weight.shape))
    _set(convolutions[0].bias, bias)
    for layer in convolutions[1:]:
        _set(layer.weight, identity_filters(layer.weight.shape, rng))
    first, second = (layer for layer in net.features if isinstance(layer, gluon.nn.Dense))
    units, channels = net.FULLY_CONNECTED, net.NUM_FILTERS
    _set(first.weight, np.repeat(rng.normal(0, DENSE_SCALE, (units, channels)), NUM_POSITIONS, 1))
    _set(second.weight, rng.normal(0, np.sqrt(2 / units), (units, units)))
    _set(net.output.weight, rng.normal(0, OUTPUT_SCALE, net.output.weight.shape))


def detector_filters(
    detectors: Sequence[Sequence[str]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return weights (filters, 69, 7) and biases (filters,) that fire on the detectors' words."""
    weight = np.zeros((len(detectors), len(ALPHABET), FIRST_FILTER_LEN))
    bias = np.zeros(len(detectors))
    for index, words in enumerate(detectors):
        for word in words:
            for column, letter in enumerate(word):
                weight[index, ALPHABET.index(letter), column] = 1
        shortest = min((len(word) for word in words), default=FIRST_FILTER_LEN)
        bias[index] = MATCH_MARGIN - shortest
    return weight / MATCH_MARGIN, bias / MATCH_MARGIN


def identity_filters(shape: tuple[int, int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return weights (channels, channels, width) that pass each channel on, with a little noise."""
    channels, _, width = shape
    weight = rng.normal(0, NOISE / np.sqrt(width), shape)
    weight[np.arange(channels), np.arange(channels), width // 2] += 1
    return weight


def _set(parameter: gluon.Parameter, value: NDArray[np.float64]) -> None:
    parameter.set_data(nd.array(value.astype(np.float32)))


# --- Training -------------------------------------------------------------------------------


class CroppedCrepe:
    """The same network, computed only as far as the texts of a batch reach.

    Beyond the end of a text all positions see nothing but padding and are equal, so the last
    position of the crop is repeated in their place. Values and gradients are those of the whole
    window, in two fifths of the time for the reviews of `corpus.py`.
    """

    def __init__(self, net: GluonCrepe) -> None:
        self.net = net
        self.convolutional = net.features[:NUM_CONV_LAYERS]
        self.dense = net.features[NUM_CONV_LAYERS:]
        self.output = net.output
        for part in (self.convolutional, self.dense, self.output):
            part.hybridize()

    def __call__(self, texts: Sequence[NDArray[np.intp]]) -> nd.NDArray:
        """Return scores (N, 7) float32; gradients are recorded inside `autograd.record`."""
        positions = crop_for(max(map(len, texts)))
        length = STRIDE * (positions - 1) + FIELD_LEN
        found = self.convolutional(nd.from_numpy(one_hot(texts, length), zero_copy=True))
        missing = NUM_POSITIONS - positions
        if missing:
            padding = found.slice_axis(axis=2, begin=-1, end=None)
            found = nd.concat(found, nd.repeat(padding, missing, axis=2), dim=2)
        return self.output(self.dense(found))


def crop_for(length: int) -> int:
    """Return the least crop, in positions, whose last position sees none of `length` characters."""
    return next((n for n in CROPS if length <= STRIDE * (n - 1)), NUM_POSITIONS)


def batches(documents: Documents, size: int, rng: np.random.Generator) -> list[NDArray[np.int64]]:
    """Return the indices of each batch, in random order; the texts of one batch share a crop."""
    order = rng.permutation(len(documents.texts))
    crops = np.array([crop_for(len(documents.texts[i])) for i in order])
    groups = [order[crops == crop] for crop in np.unique(crops)]
    found = [group[i : i + size] for group in groups for i in range(0, len(group), size)]
    rng.shuffle(found)
    return found


class Trainer:
    """Trains by Adam with a warm-up and a cosine decay over `total_steps`."""

    def __init__(self, model: CroppedCrepe, learning_rate: float, total_steps: int) -> None:
        self.model = model
        self.loss = gluon.loss.SoftmaxCrossEntropyLoss()
        self.optimizer = gluon.Trainer(model.net.collect_params(), "adam")
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.step_count = 0

    def step(
        self, texts: Sequence[NDArray[np.intp]], labels: NDArray[np.int64]
    ) -> tuple[float, int]:
        """Train on one batch; return the sum of its losses and how many it had right."""
        self.optimizer.set_learning_rate(self._rate())
        target = nd.array(labels)
        with autograd.record():
            scores = self.model(texts)
            loss = self.loss(scores, target)
        loss.backward()
        self.optimizer.step(len(texts))
        self.step_count += 1
        return float(loss.sum().asscalar()), int((scores.asnumpy().argmax(1) == labels).sum())

    def _rate(self) -> float:
        warm_up = min(1.0, (self.step_count + 1) / WARM_UP_STEPS)
        cosine = (1 + math.cos(math.pi * self.step_count / self.total_steps)) / 2
        return self.learning_rate * warm_up * (FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * cosine)


def predict(model: CroppedCrepe, documents: Documents) -> NDArray[np.float32]:
    """Return probabilities, shape (N, 7)."""
    probabilities = np.zeros((len(documents.texts), len(corpus.CATEGORIES)), dtype=np.float32)
    for indices in batches(documents, PREDICT_BATCH_SIZE, np.random.default_rng(0)):
        scores = model([documents.texts[i] for i in indices])
        probabilities[indices] = nd.softmax(scores).asnumpy()
    return probabilities


def train(
    model: CroppedCrepe,
    parts: Sequence[Documents],
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Iterator[EpochResult]:
    """Train one epoch on each part; the caller may use the network between epochs."""
    rng = np.random.default_rng(seed)
    plan = [batches(part, batch_size, rng) for part in parts]
    trainer = Trainer(model, learning_rate, sum(map(len, plan)))
    for epoch, (part, epoch_batches) in enumerate(zip(parts, plan, strict=True), start=1):
        loss, right, seen = 0.0, 0, 0
        with tqdm(
            total=len(part.texts),
            desc=f"epoch {epoch}/{len(parts)}",
            unit="review",
            mininterval=PROGRESS_INTERVAL_S,
        ) as bar:
            for indices in epoch_batches:
                batch_loss, batch_right = trainer.step(
                    [part.texts[i] for i in indices], part.labels[indices]
                )
                loss, right, seen = loss + batch_loss, right + batch_right, seen + len(indices)
                bar.set_postfix(
                    loss=f"{loss / seen:.3f}", accuracy=f"{right / seen:.3f}", refresh=False
                )
                bar.update(len(indices))
        yield EpochResult(epoch, loss / seen, right / seen)


# --- Command --------------------------------------------------------------------------------


def class_table(predicted: NDArray[np.int64], labels: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Return precision, recall and number of reviews of each category."""
    rows = []
    for label, name in enumerate(corpus.CATEGORIES):
        hits = int(((predicted == label) & (labels == label)).sum())
        rows.append(
            {
                "category": name,
                "precision": hits / max(1, int((predicted == label).sum())),
                "recall": hits / max(1, int((labels == label).sum())),
                "reviews": int((labels == label).sum()),
            }
        )
    return rows


def answer_examples(model: CroppedCrepe) -> list[dict[str, Any]]:
    """Return the answers to the two reviews of the announcement of MMS 0.4."""
    return [
        {
            "review_title": review.title,
            "review": review.text,
            "expected": corpus.CATEGORIES[review.label],
            "category": corpus.CATEGORIES[row.argmax()],
            "probability": float(row.max()),
        }
        for review, row in zip(EXAMPLES, predict(model, encode(EXAMPLES)), strict=True)
    ]


def save(net: GluonCrepe, output: Path, metrics: dict[str, Any]) -> None:
    """Write what `mxnet-model-export` packs to `output`, and the metrics next to it.

    The exporter packs the whole folder, so nothing else may lie there.
    """
    output.mkdir(parents=True, exist_ok=True)
    net.save_parameters(str(output / PARAMETER_FILE))
    for name in ARCHIVE_FILES:
        shutil.copyfile(HERE / name, output / name)
    text = json.dumps(metrics, indent=2) + "\n"
    output.with_name(f"{output.name}-metrics.json").write_text(text, encoding="utf-8")


def report(metrics: dict[str, Any]) -> None:
    """Print accuracy by category and the answers to the examples."""
    print(f"\n{'category':30}{'precision':>10}{'recall':>10}{'reviews':>10}")
    for row in metrics["categories"]:
        print(
            f"{row['category']:30}{row['precision']:10.3f}{row['recall']:10.3f}{row['reviews']:10}"
        )
    print(f"\nheld-out accuracy on synthetic reviews: {metrics['held_out_accuracy']:.4f}")
    for answer in metrics["examples"]:
        print(
            f"{answer['review_title']} | {answer['review']} -> {answer['category']} "
            f"({answer['probability']:.4f}, expected {answer['expected']})"
        )


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="build/character_cnn")
@click.option("--epochs", default=2, help="Epochs; each has new reviews.")
@click.option("--reviews", default=5000, help="Training reviews per epoch.")
@click.option("--held-out", default=2100, help="Held-out reviews.")
@click.option("--batch-size", default=64)
@click.option("--learning-rate", default=1e-3)
@click.option("--seed", default=0)
def main(
    output: Path,
    epochs: int,
    reviews: int,
    held_out: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train on SYNTHETIC reviews and write a folder to export."""
    print("The training corpus is synthetic: generated reviews, not the Amazon product data.")
    started = time.monotonic()
    mx.random.seed(seed)
    training = corpus.generate(epochs * reviews, 2 * seed, corpus.TRAINING)
    validation = encode(corpus.generate(held_out, 2 * seed + 1, corpus.VALIDATION))
    parts = [training[i * reviews : (i + 1) * reviews] for i in range(epochs)]
    net = GluonCrepe()
    initialise(net, choose_detectors(parts[0], net.NUM_FILTERS), seed)
    model = CroppedCrepe(net)
    history = []
    predicted = np.zeros_like(validation.labels)
    for result in train(
        model,
        [encode(part) for part in parts],
        batch_size=batch_size,
        learning_rate=learning_rate,
        seed=seed,
    ):
        predicted = predict(model, validation).argmax(axis=1)
        accuracy = float((predicted == validation.labels).mean())
        history.append({**asdict(result), "held_out_accuracy": accuracy})
        print(f"epoch {result.epoch}: held-out accuracy {accuracy:.4f}")
    metrics = {
        "corpus": "synthetic",
        "seed": seed,
        "training_reviews": epochs * reviews,
        "seconds": round(time.monotonic() - started, 1),
        "held_out_accuracy": history[-1]["held_out_accuracy"],
        "epochs": history,
        "categories": class_table(predicted, validation.labels),
        "examples": answer_examples(model),
    }
    save(net, output, metrics)
    report(metrics)
    print(f"wrote {output} in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
