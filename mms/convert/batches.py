"""Make batches of several sizes from the few rows that a recorded call has. Pure NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: One request, a few, and a batch as the server makes them: shapes that a wrong graph, or one
#: whose batch is fixed, treats differently.
BATCH_SIZES = (1, 3, 8)


def variants(
    arrays: Sequence[Array], batch_sizes: Sequence[int] = BATCH_SIZES
) -> list[list[Array]]:
    """Return batches of real rows: each row as it is first, then rolled along its last axis.

    No two rows are equal, unless a row is the same at every place of that axis. Rolled rows keep
    the range and the distribution of real ones, and labels of words stay labels of words.

    Args:
        arrays: One per input, each of the same n >= 1 rows: (n, ...) of any type.
        batch_sizes: Sizes of the batches.

    Returns:
        For each size, one array per input, C-contiguous. Together they go through the rows once
        before any of them is rolled.
    """
    starts = np.cumsum([0, *batch_sizes])
    return [
        [_rows(array, range(start, start + size)) for array in arrays]
        for start, size in zip(starts, batch_sizes, strict=False)
    ]


def _rows(array: Array, numbers: Sequence[int]) -> Array:
    count = len(array)
    return np.stack([_rolled(array[number % count], number // count) for number in numbers])


def _rolled(row: Array, turns: int) -> Array:
    """Return a row rolled by `turns` along its last axis that is longer than 1."""
    axes = [axis for axis, size in enumerate(row.shape) if size > 1]
    return np.roll(row, turns, axis=axes[-1]) if axes and turns else row
