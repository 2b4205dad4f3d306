"""Compare the answers of a converted network with those of MXNet in single precision. Pure NumPy.

A row is one entry of a batch. Its error is the largest difference in it, divided by the largest
magnitude that MXNet gave in it. A row agrees:

========= ==================================== ========================= =========================
task      f32                                  bf16                      int8
========= ==================================== ========================= =========================
classes   error <= 0.1 %, and the median error same largest output, a    same largest output
          of all rows <= 0.01 %                difference below the
                                               rounding being none; and
                                               the median error of all
                                               rows <= 2 %
values    as for classes                       error <= 3 %              error <= 5 %
boxes     the same boxes: class, score within 0.01, overlap (IoU) >= 0.9; 0.02 and 0.85 in bf16,
          0.05 and 0.75 in int8
========= ==================================== ========================= =========================

The bounds are from measurements on small trained networks (Crepe, resnet18, mobilenet, an LSTM, an
SSD; OpenVINO 2026.4 and onnxruntime 1.32):

- f32: right conversions differed by at most 3e-6, wrong ones (a BatchNorm's gamma, an LRN's bias,
  a pooling's padding) by 18 % and more. One wrong gate out of 24 of an unrolled LSTM showed by
  0.06 % only, in all rows, hence the bound on the median.
- bf16: Crepe's rows had a median error of 0.5 % with 99.86 % of the classes the same, resnet18's
  0.2 % with all. bf16 holds 8 bits of a number, so outputs nearer than 2**-8 of the row's scale may
  change places. The worst row of 1,400 had 11 %, which is why the median counts for classes.
- int8: Crepe's classes agreed in 99.4 % of the rows though the median error was 4 % and one row in
  a hundred had 62 %; so values need a bound of their own, which many networks miss.
- boxes: an SSD gave the same 95 detections in f32 and bf16, scores and corners within 0.002.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mms.archive.candidates import Agreement, Precision, Task
from mms.errors import ConversionFailed

Array = NDArray[Any]
#: The outputs of one batch.
Outputs = Sequence[Array]

#: Largest error of a row of values, by precision.
MAX_ERROR: dict[Precision, float] = {"f32": 1e-3, "bf16": 0.03, "int8": 0.05}
#: Largest median error of all rows: of any task but boxes in f32, of classes in bf16.
MAX_F32_MEDIAN = 1e-4
MAX_BF16_MEDIAN = 0.02
#: Half the distance of neighbours in bf16 is 2**-9 of a number; two numbers are compared.
ROUNDING = 2.0**-8
#: Largest difference of scores and least overlap of boxes that are the same, by precision.
BOX_BOUNDS: dict[Precision, tuple[float, float]] = {
    "f32": (0.01, 0.9),
    "bf16": (0.02, 0.85),
    "int8": (0.05, 0.75),
}
#: A row that is all but zero beside the others is measured by this share of the largest of them.
_LEAST_SCALE = 1e-3
#: Error of a row that cannot be measured: it has what is not a number, there or here.
_HOPELESS = 1e6
#: Class, score and four corners.
_BOX_SIZE = 6


def task_of(outputs: Outputs) -> Task:
    """Return what to compare, from the shapes of a batch's outputs.

    Boxes are one output of (N, B, 6), or three of (N, B, 1), (N, B, 1) and (N, B, 4), the first
    two of which may lack their last axis. Classes are a first output of (N, C), C > 1; outputs
    behind it are compared as values. All else is values.
    """
    shapes = [output.shape for output in outputs]
    if len(shapes) == 1 and len(shapes[0]) == 3 and shapes[0][2] == _BOX_SIZE:
        return "boxes"
    if len(shapes) == 3 and len(shapes[2]) == 3 and shapes[2][2] == 4:
        one_each = (shapes[2][:2], (*shapes[2][:2], 1))
        if shapes[0] in one_each and shapes[1] in one_each:
            return "boxes"
    return "classes" if len(shapes[0]) == 2 and shapes[0][1] > 1 else "values"


def compare(
    expected: Sequence[Outputs], got: Sequence[Outputs], task: Task, precision: Precision
) -> Agreement:
    """Compare batch by batch.

    Args:
        expected: What MXNet gave in single precision; at least one batch of at least one row.
        got: What the candidate gave for the same inputs.
        task: What to compare, see `task_of`.
        precision: What the candidate computes in.

    Raises:
        ConversionFailed: The outputs differ in number or shape.
    """
    _check_shapes(expected, got)
    scales = [max(_largest(batch[i]) for batch in expected) for i in range(len(expected[0]))]
    rows = [
        row
        for one, other in zip(expected, got, strict=True)
        for row in _rows(one, other, scales, task, precision)
    ]
    errors = np.array([row.error for row in rows])
    median = float(np.median(errors))
    agrees = np.array([row.agrees for row in rows])
    if median > _max_median(task, precision):
        agrees[:] = False
    return Agreement(
        task=task,
        rows=len(rows),
        batch_sizes=tuple(dict.fromkeys(len(batch[0]) for batch in expected)),
        score=float(agrees.mean()),
        median_error=median,
        max_error=float(errors.max()),
    )


def reason_against(agreement: Agreement, precision: Precision, min_agreement: float) -> str:
    """Return why a candidate is refused, in one line; "" if it is not.

    In f32 every row must agree, whatever `min_agreement`: there a row that differs is no rounding
    but a wrong graph.
    """
    least = 1.0 if precision == "f32" else min_agreement
    if agreement.score >= least:
        return ""
    return (
        f"{agreement.score:.2%} of {agreement.rows} rows agree with MXNet, less than {least:.2%} "
        f"(median error {agreement.median_error:.2g}, largest {agreement.max_error:.2g})"
    )


def _max_median(task: Task, precision: Precision) -> float:
    if precision == "f32" and task != "boxes":
        return MAX_F32_MEDIAN
    return MAX_BF16_MEDIAN if precision == "bf16" and task == "classes" else np.inf


class _Row(NamedTuple):
    agrees: bool
    error: float


def _check_shapes(expected: Sequence[Outputs], got: Sequence[Outputs]) -> None:
    if len(expected) != len(got):
        raise ConversionFailed(f"{len(got)} batches came back instead of {len(expected)}")
    for one, other in zip(expected, got, strict=True):
        if len(one) != len(other):
            raise ConversionFailed(f"the network gives {len(other)} outputs, not {len(one)}")
        for index, (mine, theirs) in enumerate(zip(one, other, strict=True)):
            if mine.shape != theirs.shape:
                raise ConversionFailed(
                    f"output {index} has the shape {theirs.shape}, not {mine.shape}"
                )


def _rows(
    expected: Outputs, got: Outputs, scales: Sequence[float], task: Task, precision: Precision
) -> Iterator[_Row]:
    if task == "boxes":
        for mine, theirs in zip(_boxes(expected), _boxes(got), strict=True):
            yield _compare_boxes(mine, theirs, *BOX_BOUNDS[precision])
        return
    count = len(expected[0]) if expected[0].ndim else 1
    errors = np.stack(
        [
            _errors(one, other, count, scale)
            for one, other, scale in zip(expected, got, scales, strict=True)
        ]
    )
    worst = errors.max(axis=0)
    agrees = worst <= MAX_ERROR[precision]
    if task == "classes" and precision != "f32":
        # The first output decides by its largest entry; errors of the others count as values.
        same = _same_class(expected[0], got[0], ROUNDING if precision == "bf16" else 0.0)
        agrees = same & (errors[1:] <= MAX_ERROR[precision]).all(axis=0)
    for one, error in zip(agrees, worst, strict=True):
        yield _Row(bool(one), float(error))


def _errors(expected: Array, got: Array, count: int, scale: float) -> Array:
    """Return the error of each of `count` rows.

    An output whose first axis is not the batch, such as an RNN's states of (layers, N, units), is
    one row, which counts for all.
    """
    rows = count if expected.ndim and len(expected) == count else 1
    one = np.asarray(expected, np.float64).reshape(rows, -1)
    other = np.asarray(got, np.float64).reshape(rows, -1)
    if not one.size:
        return np.zeros(count)
    # The same infinity is what was expected. What is not a number proves nothing.
    same = one == other
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(one - other)).max(axis=1)
    sizes = np.where(np.isfinite(one), np.abs(one), 0.0).max(axis=1)
    least = max(scale * _LEAST_SCALE, float(np.finfo(np.float32).tiny))
    errors = difference / np.maximum(sizes, least)
    errors = np.where(np.isfinite(errors), np.minimum(errors, _HOPELESS), _HOPELESS)
    every: Array = np.broadcast_to(errors, (count,))
    return every


def _same_class(expected: Array, got: Array, rounding: float) -> Array:
    rows = np.arange(len(expected))
    best = got.argmax(axis=1)
    largest = expected.max(axis=1)
    gap = largest - expected[rows, best]
    is_near = gap <= rounding * np.abs(expected).max(axis=1)
    same: Array = is_near & np.isfinite(got).all(axis=1)
    return same


def _largest(output: Array) -> float:
    finite = output[np.isfinite(output)] if output.dtype.kind == "f" else output
    return float(np.abs(np.asarray(finite, np.float64)).max()) if finite.size else 0.0


def _boxes(outputs: Outputs) -> Array:
    """Return (N, B, 6): class or -1, score, corners."""
    if len(outputs) == 1:
        return np.asarray(outputs[0], np.float64)
    rows, count = outputs[2].shape[:2]
    parts = [np.asarray(output, np.float64).reshape(rows, count, -1) for output in outputs]
    return np.concatenate(parts, axis=2)


def _compare_boxes(expected: Array, got: Array, max_score: float, min_overlap: float) -> _Row:
    """Match the boxes of one row, (B, 6) each, the surest first."""
    mine, theirs = (rows[rows[:, 0] >= 0] for rows in (expected, got))
    if not np.isfinite(got).all():
        return _Row(False, _HOPELESS)
    if len(mine) != len(theirs):
        return _Row(False, 1.0)
    worst = 0.0
    is_free = np.ones(len(theirs), bool)
    for box in mine[np.argsort(-mine[:, 1], kind="stable")]:
        scores = np.abs(theirs[:, 1] - box[1])
        overlaps = _overlaps(box[2:], theirs[:, 2:])
        fits = is_free & (theirs[:, 0] == box[0])
        fits &= (scores <= max_score) & (overlaps >= min_overlap)
        if not fits.any():
            return _Row(False, 1.0)
        best = int(np.where(fits, overlaps - scores, -np.inf).argmax())
        is_free[best] = False
        worst = max(worst, float(scores[best]), float(1 - overlaps[best]))
    return _Row(True, worst)


def _overlaps(box: Array, others: Array) -> Array:
    """Return the intersection of a box, (4,), with each of (B, 4), divided by their union."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    common = np.clip(sides, 0, None).prod(axis=1)
    area = np.clip(box[2:] - box[:2], 0, None).prod()
    union = area + np.clip(others[:, 2:] - others[:, :2], 0, None).prod(axis=1) - common
    # Boxes without an area, or turned inside out, overlap if their corners are those of the other.
    is_near = np.abs(box - others).max(axis=1) <= MAX_ERROR["f32"] * np.abs(box).max()
    return np.where(union > 0, common / np.where(union > 0, union, 1.0), is_near)
