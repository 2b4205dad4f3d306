"""PUBLIC: helpers for text, under v0.4's names."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mms.engines.imports import import_mxnet


def encode_sentences(
    sentences: Sequence[Sequence[str]],
    vocab: dict[str, int] | None = None,
    invalid_label: int = -1,
    invalid_key: str = "\n",
    start_label: int = 0,
) -> tuple[list[list[int]], dict[str, int]]:
    """Turn tokens into numbers, building the vocabulary if none is given.

    Args:
        sentences: Each a sequence of tokens.
        vocab: Number of each token; it stays as it is, and other tokens become `invalid_label`.
        invalid_label: Number of `invalid_key` in a new vocabulary; never assigned to a token.
        invalid_key: Token that marks, say, the end of a sentence.
        start_label: First number assigned.

    Returns:
        The encoded sentences and the vocabulary used.
    """
    if vocab is not None:
        given = vocab
        return [[given.get(token, invalid_label) for token in row] for row in sentences], vocab
    numbers = {invalid_key: invalid_label}
    following = start_label
    for sentence in sentences:
        for token in sentence:
            if token not in numbers:
                following += following == invalid_label
                numbers[token] = following
                following += 1
    return [[numbers[token] for token in sentence] for sentence in sentences], numbers


def pad_sentence(
    sentence: Sequence[float],
    buckets: Sequence[int],
    invalid_label: float = -1,
    data_name: str = "data",
    layout: Literal["NT", "TN"] = "NT",
) -> Any:
    """Return an encoded sentence as a batch of one, filled up to the length of a bucket.

    Args:
        sentence: Numbers of its tokens.
        buckets: Lengths that the network knows, in ascending order.
        invalid_label: Number to fill up with.
        data_name: Name of the network's input.
        layout: Whether the batch ("NT") or the time ("TN") comes first in the shape that is
            declared; the data has shape (1, bucket) either way, as in v0.4.

    Returns:
        A `mx.io.DataBatch` whose `bucket_key` is the smallest bucket that is long enough.

    Raises:
        IndexError: The sentence is longer than all buckets.
    """
    index = bisect.bisect_left(buckets, len(sentence))
    if index == len(buckets):
        raise IndexError(
            f"the sentence has {len(sentence)} tokens, more than the longest bucket: {buckets}"
        )
    bucket = buckets[index]
    padded = np.full((1, bucket), invalid_label, np.float32)
    padded[0, : len(sentence)] = sentence
    mx = import_mxnet()
    shape = (1, bucket) if layout == "NT" else (bucket, 1)
    return mx.io.DataBatch(
        [mx.nd.array(padded, dtype=np.float32)],
        pad=0,
        bucket_key=bucket,
        provide_data=[mx.io.DataDesc(name=data_name, shape=shape, layout=layout)],
    )
