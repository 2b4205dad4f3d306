"""Join and split arrays, MXNet's or NumPy's, along the batch axis.

Never imports mxnet: if it is not loaded, there are no NDArrays.
"""

from __future__ import annotations

import sys
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from mms.archive.signature import Signature


def is_ndarray(value: Any) -> bool:
    """Whether a value is MXNet's NDArray."""
    mx = sys.modules.get("mxnet")
    return mx is not None and isinstance(value, mx.nd.NDArray)


def arrays_of(value: Any) -> list[Any] | None:
    """Return the arrays that a value consists of, or None if it is anything else."""
    parts = list(value) if isinstance(value, (list, tuple)) else [value]
    if parts and all(isinstance(part, np.ndarray) or is_ndarray(part) for part in parts):
        return parts
    return None


def join_key(value: Any) -> Hashable | None:
    """Return a key that arrays must share to be joined along axis 0; None if they cannot be."""
    arrays = arrays_of(value)
    if arrays is None or any(array.ndim == 0 for array in arrays):
        return None
    if len({array.shape[0] for array in arrays}) != 1:
        return None
    return (
        isinstance(value, (list, tuple)),
        *(
            (type(a), a.shape[1:], np.dtype(a.dtype).str, str(getattr(a, "context", "")))
            for a in arrays
        ),
    )


def fits_batch_axis(value: Any, signature: Signature) -> bool:
    """Return whether axis 0 can hold the rows of more than one request.

    A signature's size there other than 0 or 1 is not a batch axis: time steps, say, of a network
    that needs all of them at once.
    """
    arrays = value if isinstance(value, (list, tuple)) else [value]
    if len(arrays) != len(signature.inputs):
        return True
    return all(
        spec.shape[0] in (0, 1) or spec.shape[0] != array.shape[0]
        for spec, array in zip(signature.inputs, arrays, strict=True)
    )


def detached(value: Any) -> Any:
    """Return a copy of arrays, or of a list of them.

    Their producer may overwrite the original memory with the next request's numbers.
    """
    if isinstance(value, (list, tuple)):
        return [array.copy() for array in value]
    return value.copy()


def rows_of(value: Any) -> int:
    """Return the length of axis 0 of an array, or of the first of several."""
    first = value[0] if isinstance(value, (list, tuple)) else value
    return int(first.shape[0])


def join(values: list[Any]) -> Any:
    """Join arrays, or lists of arrays column by column, that have a `join_key` in common."""
    if not isinstance(values[0], (list, tuple)):
        return _concatenate(values)
    return [_concatenate(column) for column in zip(*values, strict=True)]


def split(outputs: Any, rows: list[int]) -> list[Any]:
    """Split outputs along axis 0 into the rows of each request, as copies.

    Raises:
        ValueError: The outputs do not have one row per input row.
    """
    arrays = arrays_of(outputs)
    total = sum(rows)
    if arrays is None:
        raise ValueError(f"_inference returned a {type(outputs).__name__}, which cannot be split")
    if any(array.ndim == 0 or array.shape[0] != total for array in arrays):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(f"_inference returned {shapes} for {total} rows, which cannot be split")
    columns = [_cut(array, rows) for array in arrays]
    if not isinstance(outputs, (list, tuple)):
        return columns[0]
    return [list(parts) for parts in zip(*columns, strict=True)]


def _concatenate(arrays: Sequence[Any]) -> Any:
    if isinstance(arrays[0], np.ndarray):
        return np.concatenate(arrays)
    mx = sys.modules["mxnet"]
    if isinstance(arrays[0], mx.np.ndarray):
        return mx.np.concatenate(list(arrays), axis=0)
    return mx.nd.concat(*arrays, dim=0)


def _cut(array: Any, rows: list[int]) -> list[Any]:
    ends = np.cumsum(rows)
    if isinstance(array, np.ndarray):
        return np.split(array.copy(), ends[:-1])
    # Copied out once for the whole batch: slicing an NDArray costs an engine operation per request.
    values = array.asnumpy()
    mx = sys.modules["mxnet"]
    from_numpy = mx.nd.from_numpy
    parts = [
        from_numpy(values[end - count : end]) if count else array[0:0]
        for end, count in zip(ends, rows, strict=True)
    ]
    # Of a network made under npx.set_np.
    is_np = isinstance(array, mx.np.ndarray)
    return [part.as_np_ndarray() for part in parts] if is_np else parts
