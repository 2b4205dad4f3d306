"""What a service says of its failures is bounded before it reaches answers and logs."""

from __future__ import annotations

import pytest

from mms.errors import InvalidRequest
from mms.service import PredictionException
from mms.worker.failure import from_exception, load_failure

LONG = "y" * (10 << 20)


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:  # noqa: BLE001 - whatever is given
        return caught


@pytest.mark.parametrize(
    "error",
    [ValueError(LONG), PredictionException(LONG, 400), InvalidRequest(LONG), KeyError(LONG)],
)
def test_v18_a_long_text_of_an_exception_is_cut(error: Exception) -> None:
    failure = from_exception(raised(error), "inference", "/models")
    assert len(str(failure)) < 2200
    assert failure.detail is not None
    assert len(failure.detail.traceback) < 17_000
    assert failure.detail.traceback.startswith("Traceback")


def test_v18_a_long_text_of_an_exception_at_load_is_cut() -> None:
    failure = load_failure(raised(ValueError(LONG)), "/models")
    assert len(str(failure)) < 2200


def test_v18_a_long_chain_of_exceptions_is_cut() -> None:
    error: Exception = ValueError("first")
    for number in range(1000):
        following = ValueError(f"number {number}")
        following.__cause__ = error
        error = raised(following)
    failure = from_exception(error, "inference", "/models")
    assert failure.detail is not None
    assert len(failure.detail.traceback) < 17_000
    assert failure.detail.traceback.endswith("number 999")
