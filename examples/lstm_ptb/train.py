"""Train the language model on the manual's sentences, and write a folder to export."""

import json
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Read when MXNet is imported; without it MXNet computes on one thread.
os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count() or 1))

import click
import corpus
import numpy as np
from lstm_ptb_service import END, END_LABEL, VOCABULARY_FILE, LanguageModel, bucket_for
from tqdm import tqdm

from mms.utils.mxnet import nlp

# isort: split
# After the service module, through which mms prepares NumPy for MXNet.
import mxnet as mx
from mxnet import autograd, gluon, nd

HERE = Path(__file__).parent
# The exporter reads the epoch number from the file name.
PARAMETER_FILE = "lstm_ptb-0000.params"
ARCHIVE_FILES = ("lstm_ptb_service.py", "signature.json", "sample.json")
DROPOUT = 0.5
# Fills a bucket in the targets: there is nothing to predict.
IGNORED = -1
MAX_GRADIENT_NORM = 5.0
PREDICT_BATCH_SIZE = 32
PROGRESS_INTERVAL_S = 1.0
QUICK_SENTENCES, QUICK_EPOCHS, QUICK_BUCKET, QUICK_RATE = 4, 100, 20, 1e-2


class Batch:
    """Sentences of one bucket.

    Attributes:
        inputs: Labels (N, T), each row begun with the mark.
        targets: Labels (N, T) of the word after each, the mark after the last, then `IGNORED`.
    """

    def __init__(self, sentences: Sequence[Sequence[int]]) -> None:
        bucket = bucket_for(1 + max(map(len, sentences)))
        self.inputs = np.full((len(sentences), bucket), END_LABEL)
        self.targets = np.full((len(sentences), bucket), IGNORED)
        for row, target, sentence in zip(self.inputs, self.targets, sentences, strict=True):
            row[1 : 1 + len(sentence)] = sentence
            target[: 1 + len(sentence)] = [*sentence, END_LABEL]


def batches(sentences: Sequence[Sequence[int]], size: int, rng: np.random.Generator) -> list[Batch]:
    """Return the sentences in random order, those of one batch being of the same bucket."""
    order = rng.permutation(len(sentences))
    buckets = np.array([bucket_for(1 + len(sentences[i])) for i in order])
    groups = [order[buckets == bucket] for bucket in np.unique(buckets)]
    found = [
        Batch([sentences[i] for i in group[start : start + size]])
        for group in groups
        for start in range(0, len(group), size)
    ]
    rng.shuffle(found)  # type: ignore[arg-type]  # any list will do
    return found


def negative_log_likelihood(net: LanguageModel, batch: Batch) -> tuple[Any, int]:
    """Return the sum over all words of a batch in nats, and their number."""
    scores = nd.log_softmax(net(nd.array(batch.inputs)))
    targets = nd.array(batch.targets)
    picked = nd.pick(scores, targets, axis=2) * (targets != IGNORED)
    return -picked.sum(), int((batch.targets != IGNORED).sum())


class Trainer:
    """Trains by Adam with a cosine decay over `total_steps`."""

    def __init__(self, net: LanguageModel, learning_rate: float, total_steps: int) -> None:
        self.net = net
        self.parameters = [p for p in net.collect_params().values() if p.grad_req != "null"]
        self.optimizer = gluon.Trainer(net.collect_params(), "adam")
        self.learning_rate = learning_rate
        self.total_steps = total_steps
        self.step_count = 0

    def step(self, batch: Batch) -> tuple[float, int]:
        """Train on one batch; return its loss, summed over words, and the number of words."""
        cosine = (1 + math.cos(math.pi * self.step_count / self.total_steps)) / 2
        self.optimizer.set_learning_rate(self.learning_rate * cosine)
        with autograd.record():
            total, count = negative_log_likelihood(self.net, batch)
            loss = total / count
        loss.backward()
        gluon.utils.clip_global_norm([p.grad() for p in self.parameters], MAX_GRADIENT_NORM)
        self.optimizer.step(1)
        self.step_count += 1
        return float(total.asscalar()), count


def perplexity(net: LanguageModel, sentences: Sequence[Sequence[int]]) -> float:
    """Return the model's perplexity per word, the sentence's end counting as one."""
    total, words = 0.0, 0
    for batch in batches(sentences, PREDICT_BATCH_SIZE, np.random.default_rng(0)):
        loss, count = negative_log_likelihood(net, batch)
        total, words = total + float(loss.asscalar()), words + count
    return math.exp(total / words)


def unigram_perplexity(
    training: Sequence[Sequence[int]], sentences: Sequence[Sequence[int]], vocabulary: int
) -> float:
    """Return the perplexity of word frequencies alone, with one added to each count."""
    counts = Counter(label for sentence in training for label in (*sentence, END_LABEL))
    total = sum(counts.values()) + vocabulary
    labels = [label for sentence in sentences for label in (*sentence, END_LABEL)]
    return math.exp(-sum(math.log((counts[i] + 1) / total) for i in labels) / len(labels))


def save(
    net: LanguageModel, vocabulary: Sequence[str], output: Path, metrics: dict[str, Any]
) -> None:
    """Write what `mxnet-model-export` packs to `output`, and the metrics next to it.

    The exporter packs the whole folder, so nothing else may lie there.
    """
    output.mkdir(parents=True, exist_ok=True)
    net.save_parameters(str(output / PARAMETER_FILE))
    (output / VOCABULARY_FILE).write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    for name in ARCHIVE_FILES:
        shutil.copyfile(HERE / name, output / name)
    text = json.dumps(metrics, indent=2) + "\n"
    output.with_name(f"{output.name}-metrics.json").write_text(text, encoding="utf-8")


@click.command()
@click.option("--output", type=click.Path(path_type=Path), default="build/lstm_ptb")
@click.option("--epochs", type=click.IntRange(min=1), default=12)
@click.option("--batch-size", default=16)
@click.option("--learning-rate", default=3e-3)
@click.option("--seed", default=0)
@click.option("--quick", is_flag=True, help="Learn a few sentences by heart, for the tests.")
def main(
    output: Path, epochs: int, batch_size: int, learning_rate: float, seed: int, quick: bool
) -> None:
    """Train on the reference manual of Python and write a folder to export."""
    started, cpu_started = time.monotonic(), time.process_time()
    mx.random.seed(seed)
    parts = corpus.load()
    # Every known word occurs in the training part.
    training, label = nlp.encode_sentences(
        parts.training, invalid_key=END, invalid_label=END_LABEL, start_label=END_LABEL + 1
    )
    validation, _ = nlp.encode_sentences(parts.validation, label)
    held_out, _ = nlp.encode_sentences(parts.held_out, label)
    if quick:
        alike = [s for s in training if bucket_for(1 + len(s)) == QUICK_BUCKET]
        epochs, training = QUICK_EPOCHS, alike[:QUICK_SENTENCES]
        learning_rate = QUICK_RATE
    net = LanguageModel(len(label), dropout=0.0 if quick else DROPOUT)
    net.initialize(mx.init.Uniform(0.1))
    net.hybridize()
    rng = np.random.default_rng(seed)
    steps = len(batches(training, batch_size, rng))
    trainer = Trainer(net, learning_rate, epochs * steps)
    history = []
    for epoch in range(1, epochs + 1):
        total, words = 0.0, 0
        for batch in tqdm(
            batches(training, batch_size, rng),
            f"epoch {epoch}/{epochs}",
            mininterval=PROGRESS_INTERVAL_S,
        ):
            loss, count = trainer.step(batch)
            total, words = total + loss, words + count
        history.append(math.exp(total / words))
        print(f"epoch {epoch}: perplexity {history[-1]:.1f} in training")
    metrics = {
        "seed": seed,
        "training_sentences": len(training),
        "vocabulary": len(label),
        "held_out_sentences": len(held_out),
        "validation_perplexity": perplexity(net, validation),
        "held_out_perplexity": perplexity(net, held_out),
        "held_out_perplexity_of_word_frequencies": unigram_perplexity(
            training, held_out, len(label)
        ),
        "epochs": history,
        "seconds": round(time.monotonic() - started, 1),
        "cpu_seconds": round(time.process_time() - cpu_started, 1),
    }
    vocabulary = sorted((word for word in label if word != END), key=label.__getitem__)
    save(net, vocabulary, output, metrics)
    print(
        f"perplexity {metrics['validation_perplexity']:.1f} in validation\n"
        f"held-out perplexity {metrics['held_out_perplexity']:.1f}, of word frequencies alone "
        f"{metrics['held_out_perplexity_of_word_frequencies']:.1f}"
    )
    print(
        f"wrote {output} in {metrics['seconds']:.0f} s ({metrics['cpu_seconds']:.0f} s of one core)"
    )


if __name__ == "__main__":
    main()
