"""PUBLIC: helpers for model outputs, under v0.4's names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def top_probability(data: Any, labels: Sequence[str], top: int = 5) -> list[dict[str, Any]]:
    """Return the most probable classes of the first row, best first.

    Args:
        data: NDArray or array of (N, classes), or (N, classes, 1, ...), float. Only row 0 is
            used.
        labels: Name of each class, in the order of axis 1.
        top: Maximum number of classes to return.

    Returns:
        ``[{"probability": float, "class": label}, ...]``.

    Raises:
        ValueError: There are fewer labels than classes.
    """
    values = data.asnumpy() if hasattr(data, "asnumpy") else np.asarray(data)
    row = values[0].reshape(-1)
    if len(labels) < len(row):
        raise ValueError(
            f"the model returns {len(row)} classes but synset.txt names only {len(labels)}"
        )
    # Stable, so that equal probabilities keep the order of the labels on every machine.
    best = np.argsort(-row, kind="stable")[:top]
    return [{"probability": float(row[index]), "class": labels[index]} for index in best]
