"""Measure the distance between two answers, or two networks' outputs. Pure except for numpy."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from mms.wire.messages import Answer
from mms.worker.arrays import arrays_of

#: Largest distance between a request's outputs alone and in a batch, relative to the largest
#: number: the sums are the same, but not their order. Half floats need most of it.
TOLERANCE = 1e-2
#: A trial counts only if two requests' answers are this many times further apart.
MARGIN = 10.0
#: 0.4's default services return strings that contain numbers.
_NUMBER = re.compile(r"-?\d+\.?\d*(?:[eE][-+]?\d+)?")


def answer_distance(one: Answer, other: Answer) -> float:
    """Return the distance between two answers; infinite if they differ in more than numbers.

    Numbers are compared relative to the largest of them, including those inside strings.
    """
    frame = (one.status, one.content_type, one.headers)
    if frame != (other.status, other.content_type, other.headers):
        return math.inf
    if bytes(one.body) == bytes(other.body):
        return 0.0
    try:
        pairs = list(_pairs(orjson.loads(one.body), orjson.loads(other.body)))
    except (orjson.JSONDecodeError, ValueError):
        return math.inf
    return _distance(*np.array(pairs, np.float64).reshape(-1, 2).T)


def output_distance(one: Any, other: Any) -> float:
    """Return the distance between two outputs of `_inference`; infinite if shapes differ."""
    mine, others = arrays_of(one), arrays_of(other)
    if mine is None or others is None or len(mine) != len(others):
        return math.inf
    pairs = list(zip(map(_numpy, mine), map(_numpy, others), strict=True))
    if any(a.shape != b.shape or a.dtype.kind not in "biuf" for a, b in pairs):
        return math.inf
    return max((_distance(a.astype(np.float64), b.astype(np.float64)) for a, b in pairs), default=0)


def _numpy(array: Any) -> Any:
    return array.asnumpy() if hasattr(array, "asnumpy") else array


def _distance(one: Any, other: Any) -> float:
    if not one.size:
        return 0.0
    if not np.array_equal(np.isfinite(one), np.isfinite(other)):
        return math.inf
    one, other = np.nan_to_num(one), np.nan_to_num(other)
    scale = max(float(np.abs(one).max()), float(np.abs(other).max()))
    return float(np.abs(one - other).max()) / scale if scale else 0.0


def _pairs(one: Any, other: Any) -> Iterator[tuple[float, float]]:
    """Yield the pairs of numbers at the same positions in two JSON values.

    Raises:
        ValueError: The values differ in more than numbers.
    """
    if isinstance(one, float) and isinstance(other, float):
        yield one, other
    elif isinstance(one, str) and isinstance(other, str):
        if _NUMBER.sub("", one) != _NUMBER.sub("", other):
            raise ValueError
        for mine, theirs in zip(_NUMBER.findall(one), _NUMBER.findall(other), strict=True):
            yield float(mine), float(theirs)
    elif isinstance(one, dict) and isinstance(other, dict) and list(one) == list(other):
        for key, item in one.items():
            yield from _pairs(item, other[key])
    elif isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for mine, theirs in zip(one, other, strict=True):
            yield from _pairs(mine, theirs)
    elif type(one) is not type(other) or one != other:
        raise ValueError
