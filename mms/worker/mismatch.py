"""What in plain inputs contradicts the signature: shape, nesting, type of the elements.

Linear in the size of the inputs, and never by way of NumPy, which turns all elements into strings
as long as the longest where one is a string. Never imports mxnet.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from mms.archive.onnx_graph import show_shape
from mms.archive.signature import MAX_DIMENSIONS, Signature, TensorSpec
from mms.quoting import quoted
from mms.worker.names import kind_of, near_miss

_LISTS = {list, tuple}
_NUMBERS: set[type] = {int, float, bool}
_ANY_NUMBERS = _NUMBERS | {np.dtype(char).type for char in "?bhilqBHILQefd"}
_TEXTS: set[type] = {str, bytes}


class Kind(enum.Enum):
    """In which respect inputs contradict a signature."""

    SHAPE = enum.auto()
    NESTING = enum.auto()
    ELEMENTS = enum.auto()


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A contradiction between inputs and signature.

    Attributes:
        kind: In which respect.
        message: Names the input, what was expected and what came.
        reason: Its last part: what came.
    """

    kind: Kind
    message: str
    reason: str = ""


def find_mismatch(inputs: Sequence[Any], signature: Signature) -> Mismatch | None:
    """Return the first contradiction, or None.

    Args:
        inputs: One value per input: nested lists or arrays. Anything else has no shape to compare.
        signature: The model's signature.
    """
    if signature.takes_images:
        return None
    for value, spec in zip(inputs, signature.inputs, strict=False):
        found = _of_array(value, spec) if isinstance(value, np.ndarray) else _of_lists(value, spec)
        if found is not None:
            return found
    return None


def _of_array(array: Any, spec: TensorSpec) -> Mismatch | None:
    if spec.data_type != "BYTES" and array.dtype.kind not in "biuf":
        return _no_array(Kind.ELEMENTS, spec, f"it contains other values ({array.dtype})")
    return _of_shape(array.shape, spec)


def shape_of(value: Any) -> tuple[int, ...] | None:
    """Return the shape of nested lists of numbers; None if they are uneven or hold other values.

    NumPy's numbers are numbers, too.
    """
    measured = _measure(value, _ANY_NUMBERS)
    return measured if isinstance(measured, tuple) else None


@dataclass(frozen=True, slots=True)
class _Wrong:
    """An element of the wrong type."""

    element: Any


def _of_lists(value: Any, spec: TensorSpec) -> Mismatch | None:
    if type(value) not in _LISTS:
        return None
    measured = _measure(value, _TEXTS if spec.data_type == "BYTES" else _NUMBERS)
    if isinstance(measured, str):
        return _no_array(Kind.NESTING, spec, measured)
    if isinstance(measured, _Wrong):
        return _no_array(Kind.ELEMENTS, spec, _of_element(measured.element, spec))
    return _of_shape(measured, spec)


def _measure(value: Any, allowed: set[type]) -> tuple[int, ...] | str | _Wrong:
    """Return the shape of nested lists, or in which respect they are uneven, or a wrong element."""
    shape: list[int] = []
    level: list[Any] = [value]
    types = {type(value)}
    while types & _LISTS:
        if types - _LISTS:
            return f"it has lists beside other values on axis {len(shape)}"
        sizes = set(map(len, level))
        if len(sizes) > 1:
            least, most = min(sizes), max(sizes)
            return f"it is ragged, with lists of {least} and of {most} on axis {len(shape)}"
        shape.append(sizes.pop())
        if len(shape) > MAX_DIMENSIONS:
            return f"it has more than {MAX_DIMENSIONS} levels of lists"
        level = list(chain.from_iterable(level))
        types = set(map(type, level))
    if not types <= allowed:
        return _Wrong(next(element for element in level if type(element) not in allowed))
    return tuple(shape)


def _of_shape(shape: Sequence[int], spec: TensorSpec) -> Mismatch | None:
    expected = spec.shape
    if len(shape) == len(expected) and all(
        size in (0, got) for size, got in zip(expected[1:], shape[1:], strict=True)
    ):
        return None
    return Mismatch(
        Kind.SHAPE,
        f"input {spec.name!r} has shape ({', '.join(map(str, shape))}), expected "
        f"{_expected(spec)} (axis 0 is the batch; ? is any size)",
    )


def _of_element(wrong: Any, spec: TensorSpec) -> str:
    if wrong is None:
        return "it contains other values: null"
    known = ""
    if isinstance(wrong, dict):
        near = near_miss(spec.name, wrong)
        known = f"; the input is called {spec.name!r}{f', not {near!r}' if near else ''}"
    return f"it contains other values: {kind_of(wrong)}, {quoted(wrong, 60)}{known}"


def _no_array(kind: Kind, spec: TensorSpec, reason: str) -> Mismatch:
    wanted = "strings" if spec.data_type == "BYTES" else "numbers"
    what = f"input {spec.name!r} is not an array of {wanted} of shape {_expected(spec)}"
    return Mismatch(kind, f"{what}: {reason}", reason)


def _expected(spec: TensorSpec) -> str:
    return show_shape((0, *spec.shape[1:]))
