"""Reviews as the network's input, as the example's service makes it; needs NumPy only.

Runs in the peers' environments, which have no ``mms`` of ours (one has another package of that
name), so it cannot import the example. The runner checks that all servers answer alike.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+ =<>()[]{}"
FEATURE_LEN = 1014
_BLANK = len(ALPHABET)
_ROWS = np.full(129, _BLANK, dtype=np.intp)
_ROWS[[ord(letter) for letter in ALPHABET]] = np.arange(_BLANK)


def encode(reviews: list[tuple[str, str]]) -> np.ndarray:
    """Return (title, text) pairs as one-hot characters, shape (N, 69, 1014) float32."""
    encoded = np.zeros((len(reviews), _BLANK, FEATURE_LEN), dtype=np.float32)
    for document, (title, text) in zip(encoded, reviews, strict=True):
        letters = f"{title}|{text}".lower()[:FEATURE_LEN].encode("utf-32-le", "surrogatepass")
        rows = _ROWS[np.minimum(np.frombuffer(letters, dtype="<u4"), len(_ROWS) - 1)]
        (columns,) = np.nonzero(rows != _BLANK)
        document[rows[columns], columns] = 1
    return encoded


def read_labels(assets: str | Path) -> list[str]:
    """Return the names of the categories."""
    return (Path(assets) / "synset.txt").read_text().split()
