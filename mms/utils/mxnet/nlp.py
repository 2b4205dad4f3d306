"""PUBLIC: helpers for text, under v0.4's names."""

from __future__ import annotations

from collections.abc import Sequence


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
        vocab: Number of each token; an unknown token is an error, as in MXNet.
        invalid_label: Number of `invalid_key` in a new vocabulary; never assigned to a token.
        invalid_key: Token that marks, say, the end of a sentence.
        start_label: First number assigned.

    Returns:
        The encoded sentences and the vocabulary used.

    Raises:
        KeyError: A token is not in the given vocabulary.
    """
    grows = vocab is None
    numbers = {invalid_key: invalid_label} if vocab is None else vocab
    following = start_label
    encoded = []
    for sentence in sentences:
        row = []
        for token in sentence:
            if token not in numbers:
                if not grows:
                    raise KeyError(f"unknown token {token!r}")
                if following == invalid_label:
                    following += 1
                numbers[token] = following
                following += 1
            row.append(numbers[token])
        encoded.append(row)
    return encoded, numbers
