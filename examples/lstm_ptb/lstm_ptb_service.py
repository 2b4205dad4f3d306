"""Predict the next word: an LSTM language model over words as a Gluon service.

An archive holds one service file, so network and service stand together; `train.py` and
`corpus.py` import from here what both sides must agree on.
"""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mms.errors import ModelLoadFailed
from mms.model_service.mxnet_model_service import GluonImperativeBaseService
from mms.service import PredictionException
from mms.utils.mxnet import nlp

# isort: split
# After mms, which gives NumPy back the names that MXNet 1.9.1 needs to be imported.
from mxnet import nd
from mxnet.gluon import HybridBlock, nn, rnn

VOCABULARY_FILE = "vocabulary.txt"
# The mark before and after a sentence; as in the original example also what fills a bucket.
END, END_LABEL = "\n", 0
UNKNOWN = "<unk>"
# Stands for every number, as in the Penn Treebank's text.
NUMBER = "N"
# Lengths that sentences are filled up to, so that MXNet plans memory for six lengths, not sixty.
# The last is the one that signature.json declares.
BUCKETS = (10, 20, 30, 40, 50, 60)
# One place is the mark's.
MAX_WORDS = BUCKETS[-1] - 1

TOP = 5
MAX_CONTINUATION = 8

_WORD = re.compile(r"<unk>|[a-z]+(?:'[a-z]+)?|\d+")


class LanguageModel(HybridBlock):  # type: ignore[misc]  # mxnet is untyped
    """Embedding, two LSTM layers, and scores for the next word by the embedding's own weights.

    Shapes: (N, T) float32, labels of words -> (N, T, vocabulary) float32, unnormalised scores of
    the word after each.
    """

    UNITS = 200
    LAYERS = 2

    def __init__(self, vocabulary: int, dropout: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        with self.name_scope():
            self.embedding = nn.Embedding(vocabulary, self.UNITS)
            self.dropout = nn.Dropout(dropout)
            self.lstm = rnn.LSTM(
                self.UNITS,
                self.LAYERS,
                layout="NTC",
                dropout=dropout,
                input_size=self.UNITS,
            )
            # Shared weights (Press and Wolf, 2017): fewer parameters, for which text is short.
            self.decoder = nn.Dense(
                vocabulary, flatten=False, in_units=self.UNITS, params=self.embedding.params
            )

    def hybrid_forward(self, F: Any, x: Any) -> Any:
        return self.decoder(self.dropout(self.lstm(self.dropout(self.embedding(x)))))


def words(text: str) -> list[str]:
    """Return the words of a text as the model knows them: lower case, no punctuation."""
    found = _WORD.findall(text.lower().replace("\N{RIGHT SINGLE QUOTATION MARK}", "'"))
    return [NUMBER if word.isdigit() else word for word in found]


def bucket_for(length: int) -> int:
    """Return the least bucket that holds `length` labels, or the largest of all."""
    return next((bucket for bucket in BUCKETS if length <= bucket), BUCKETS[-1])


class LSTMService(GluonImperativeBaseService):
    """Sentences in; for each the words predicted, the likeliest next ones, and a continuation."""

    def __init__(
        self, model_name: str, model_dir: str, manifest: dict[str, Any], gpu: int | None = None
    ) -> None:
        self.vocabulary = _read_vocabulary(Path(model_dir, VOCABULARY_FILE))
        self.label = {word: label for label, word in enumerate(self.vocabulary)}
        net = LanguageModel(len(self.vocabulary))
        super().__init__(model_name, model_dir, manifest, net, gpu)
        self.encoded: list[list[int]] = []

    def _preprocess(self, data: list[Any]) -> list[nd.NDArray]:
        """Encode the sentences of one request.

        Args:
            data: The request body as its only entry: a list of objects with the string
                ``input_sentence``.

        Returns:
            Labels (N, T) float32, one row per sentence, each begun with the mark, T being a
            bucket with room for a continuation if there is one; and lengths (N,) float32, the
            mark included.

        Raises:
            PredictionException: With status 400, naming what is wrong with which sentence.
        """
        sentences = data[0]
        if not isinstance(sentences, list) or not sentences:
            raise PredictionException("expected a list of one or more sentences", 400)
        known = [
            [word if word in self.label else UNKNOWN for word in _sentence_words(sentence, index)]
            for index, sentence in enumerate(sentences)
        ]
        self.encoded, _ = nlp.encode_sentences(known, self.label)
        longest = 1 + max(map(len, self.encoded))
        labels = np.full((len(known), bucket_for(longest + MAX_CONTINUATION)), END_LABEL)
        for row, sentence in zip(labels, self.encoded, strict=True):
            row[1 : 1 + len(sentence)] = sentence
        lengths = [1 + len(sentence) for sentence in self.encoded]
        return [nd.array(labels, ctx=self.ctx), nd.array(lengths, ctx=self.ctx)]

    def _inference(self, data: list[nd.NDArray]) -> list[NDArray[Any]]:
        """Score the sentences, then continue each by its likeliest word, one word at a time.

        Returns:
            Log-probabilities (N, T, vocabulary) float32 of the word after each, and labels
            (N, T + 8) of the sentences and their continuations.
        """
        labels = data[0].asnumpy().astype(np.int64)
        rows = np.arange(len(labels))
        last = data[1].asnumpy().astype(np.int64) - 1
        scores = self.net(data[0]).log_softmax().asnumpy()
        current = scores
        ended = np.zeros(len(labels), dtype=bool)
        for _ in range(MAX_CONTINUATION):
            following = current[rows, last].copy()
            # "<unk>" continues nothing.
            following[:, self.label[UNKNOWN]] = -math.inf
            best = following.argmax(axis=1)
            ended |= (best == END_LABEL) | (last + 1 >= labels.shape[1])
            if ended.all():
                break
            last = np.where(ended, last, last + 1)
            labels[rows[~ended], last[~ended]] = best[~ended]
            current = self.net(nd.array(labels, ctx=self.ctx)).log_softmax().asnumpy()
        return [scores, labels]

    def _postprocess(self, data: list[NDArray[Any]]) -> list[dict[str, Any]]:
        """Return what there is to say about each sentence."""
        return [
            self._answer(sentence, scores, labels)
            for sentence, scores, labels in zip(self.encoded, *data, strict=True)
        ]

    def _answer(
        self, sentence: Sequence[int], scores: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> dict[str, Any]:
        """Describe one sentence of n words.

        Args:
            sentence: Its labels, n of them.
            scores: Log-probabilities (T, vocabulary); row i speaks of the sentence's word i.
            labels: The mark, the sentence, its continuation, and marks up to T.
        """
        count = len(sentence)
        after_last = scores[count]
        best = np.argsort(-after_last, kind="stable")[:TOP]
        rest = labels[1 + count :]
        return {
            "predicted": " ".join(self.vocabulary[i] for i in scores[1 : 1 + count].argmax(axis=1)),
            "perplexity": float(np.exp(-scores[np.arange(count), sentence].mean())),
            "next": [
                {"word": self.vocabulary[i], "probability": float(np.exp(after_last[i]))}
                for i in best
            ],
            "continuation": " ".join(self.vocabulary[i] for i in rest if i != END_LABEL),
        }


def _sentence_words(sentence: Any, index: int) -> list[str]:
    if not isinstance(sentence, dict):
        raise PredictionException(
            f"sentence {index} must be an object with input_sentence, "
            f"got {type(sentence).__name__}",
            400,
        )
    text = sentence.get("input_sentence")
    if not isinstance(text, str):
        problem = "is missing" if text is None else f"must be a string, got {type(text).__name__}"
        raise PredictionException(f"'input_sentence' of sentence {index} {problem}", 400)
    found = words(text)
    if not 1 <= len(found) <= MAX_WORDS:
        raise PredictionException(
            f"sentence {index} has {len(found)} words; send 1 to {MAX_WORDS}", 400
        )
    return found


def _read_vocabulary(path: Path) -> list[str]:
    """Return the words by label; the file has one per line, from label 1 on."""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except OSError as error:
        raise ModelLoadFailed(f"{path.name} cannot be read: {error.strerror}") from error
    if UNKNOWN not in lines:
        raise ModelLoadFailed(f"{path.name} lacks the word {UNKNOWN}")
    return [END, *lines]
