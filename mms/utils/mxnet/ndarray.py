"""PUBLIC: helpers for model outputs, under v0.4's names."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np


def top_probability(data: Any, labels: Sequence[Any], top: int = 5) -> list[dict[str, Any]]:
    """Return the most probable classes of the first row, best first.

    Args:
        data: NDArray or array of (N, classes), or (N, classes, 1, ...). Only row 0 is used.
        labels: Names of the classes, in the order of axis 1; only the best need one.
        top: Maximum number of classes to return.

    Returns:
        ``[{"probability": float, "class": label}, ...]``.

    Raises:
        IndexError: One of the best classes has no name, or `data` has one axis.
        ValueError: An axis after the second has more than one entry.
    """
    of_mxnet = hasattr(data, "asnumpy")
    values = data.asnumpy() if of_mxnet else np.asarray(data)
    if values.ndim > 2:
        values = np.squeeze(values, axis=tuple(range(2, values.ndim)))
        # As MXNet makes arrays.
        values = values.astype(np.float32) if of_mxnet else values
    row = values[0, :]
    best = _descending(row, of_mxnet)[:top]
    return [{"probability": float(row[i]), "class": _label(labels, i, len(row))} for i in best]


def _descending(row: Any, of_mxnet: bool) -> list[int]:
    """Return the order of a row's classes; MXNet's own, which has its way with equal values."""
    if of_mxnet and row.dtype != np.float16 and not np.isnan(row).any():
        mx = sys.modules["mxnet"]
        order = mx.nd.argsort(mx.nd.array(row, dtype=row.dtype), is_ascend=False).asnumpy()
        return [int(index) for index in order]
    # MXNet cannot sort half precision, and its order of NaN is undefined.
    return [int(index) for index in np.argsort(-row, kind="stable")]


def _label(labels: Sequence[Any], index: int, classes: int) -> Any:
    try:
        return labels[index]
    except IndexError:
        raise IndexError(
            f"class {index} is among the best, but synset.txt names only {len(labels)} of the "
            f"model's {classes} classes"
        ) from None
