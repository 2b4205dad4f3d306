"""Likely mistakes in a model, which `mxnet-model-export --check` reports but the server serves.

Refused are an answer that is null (a stage without `return`), numbers that are NaN or infinite, and
a method that was meant as a stage but is never called. There is a warning of scores that are called
probabilities, and of declarations that nobody follows.
"""

from __future__ import annotations

import difflib
import logging
import re
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

import numpy as np

from mms.archive.signature import Signature
from mms.errors import InvalidServiceOutput, ModelLoadFailed
from mms.worker.arrays import arrays_of

logger = logging.getLogger("mms.worker")

_VISION_SERVICES = ("MXNetVisionService", "GluonVisionService", "OnnxVisionService")
_STAGES = ("_preprocess", "_inference", "_postprocess")
#: Minimum similarity of a method's name to a stage's for one to be meant as the other.
_LIKENESS = 0.85
#: Tolerance for the sum of probabilities due to rounding; half precision needs all of it.
_SUM_TOLERANCE = 5e-3
#: 0.4's default `_postprocess` returns the string of a list.
_NO_NUMBER = re.compile(r"^\s*\[.*\b(?:nan|inf)\b", re.DOTALL)


def refuse_slips(value: Any) -> None:
    """Refuse an answer that is null, or contains NaN or an infinity.

    Raises:
        InvalidServiceOutput: The answer is one of these.
    """
    if value is None:
        raise InvalidServiceOutput(
            "the service returns null; does its last stage (_postprocess) return a value?"
        )
    if where := _find_non_finite(value, "the answer"):
        raise InvalidServiceOutput(
            f"{where} contains NaN or an infinity, which clients receive as null; does the "
            "parameter file match the network, and are the inputs scaled as in training?"
        )


def _find_non_finite(value: Any, where: str) -> str:
    """Return the path of a NaN or an infinity in a value; "" if there is none."""
    if hasattr(value, "asnumpy"):
        value = value.asnumpy()
    if isinstance(value, (float, np.ndarray, np.generic)):
        array = np.asarray(value)
        return "" if array.dtype.kind not in "fc" or np.isfinite(array).all() else where
    if isinstance(value, str):
        return where if _NO_NUMBER.match(value) else ""
    if isinstance(value, Mapping):
        parts = [(f"{where}[{key!r}]", item) for key, item in value.items()]
    elif isinstance(value, (list, tuple)):
        parts = [(f"{where}[{index}]", item) for index, item in enumerate(value)]
    else:
        return ""
    return next(filter(None, (_find_non_finite(item, name) for name, item in parts)), "")


def warn_of_scores(service: Any, outputs: Any, answer: Any) -> bool:
    """Warn if numbers are called probabilities that are none, as 0.4's vision services do.

    Args:
        service: The service.
        outputs: What its `_inference` returned.
        answer: What its `_postprocess` returned.

    Returns:
        Whether there is a warning.
    """
    is_ours = type(service)._postprocess.__module__.startswith("mms.")
    # A service of the user's may well have independent probabilities, whose sum means nothing.
    sums = _sums_by_maximum(outputs) if is_ours else {}
    for entry in answer if isinstance(answer, list) else ():
        values = [
            item["probability"]
            for item in (entry if isinstance(entry, list) else ())
            if isinstance(item, dict) and isinstance(item.get("probability"), float)
        ]
        total = sums.get(max(values, default=0.0), 1.0)
        if not all(0 <= value <= 1 for value in values) or abs(total - 1) > _SUM_TOLERANCE:
            logger.warning(
                'the numbers that the answer calls "probability" are none (the first is %.4g): '
                'declare "postprocess": {"softmax": true} in signature.json, or {"softmax": false} '
                "to call them scores",
                values[0],
            )
            return True
    return False


def _sums_by_maximum(outputs: Any) -> dict[float, float]:
    """Return the sum of the first row of each output by its maximum."""
    rows = [
        np.asarray(array.asnumpy() if hasattr(array, "asnumpy") else array)[:1]
        for array in arrays_of(outputs) or ()
    ]
    floats = [row.astype(np.float64) for row in rows if row.size and row.dtype.kind == "f"]
    return {float(row.max()): float(row.sum()) for row in floats}


def warn_of_ignored_declarations(service: Any, signature: Signature) -> None:
    """Warn of what signature.json declares and the service does not do.

    A stage of the service's own follows a declaration only by calling the one that it overrides.
    """
    declared = {
        "preprocess": any(spec.preprocess is not None for spec in signature.inputs),
        "postprocess": signature.postprocess is not None,
    }
    for key, is_declared in declared.items():
        method = getattr(type(service), f"_{key}", None)
        code = getattr(method, "__code__", None)
        follows = _is_vision_service(service) and (
            str(getattr(method, "__module__", "")).startswith("mms.")
            or (code is not None and {"super", f"_{key}"} <= {*code.co_names})
        )
        if is_declared and not follows:
            logger.warning(
                "signature.json declares %s, but the service does not follow it: derive %s from "
                "%s, and call super()._%s if it overrides _%s",
                key,
                type(service).__name__,
                " or ".join(_VISION_SERVICES),
                key,
                key,
            )


def _is_vision_service(service: Any) -> bool:
    return any(
        cls.__module__.startswith("mms.") and cls.__name__ in _VISION_SERVICES
        for cls in type(service).__mro__
    )


def refuse_uncalled_stages(service: Any, run: Callable[[], bool]) -> None:
    """Run a request through the service, and check which stages it reaches.

    Args:
        service: The service.
        run: Runs the request; returns False if it failed, which proves nothing.

    Raises:
        ModelLoadFailed: A method that is a stage, or has a similar name, was not called.
    """
    called: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            called.add(frame.f_code)

    sys.setprofile(note)
    try:
        got_through = run()
    finally:
        sys.setprofile(None)
    if not got_through:
        return
    for name, stage, code in _stages_of(service):
        if code not in called:
            hint = f"; is it meant as {stage}?" if name != stage else ""
            raise ModelLoadFailed(
                f"{type(service).__name__}.{name} was never called while a request was "
                f"answered{hint}"
            )


def _stages_of(service: Any) -> list[tuple[str, str, CodeType]]:
    """Return (name, the stage it is or resembles, code) of methods of the user's own classes."""
    found = []
    for cls in type(service).__mro__:
        if cls.__module__.startswith("mms.") or cls is object:
            continue
        for name, value in vars(cls).items():
            is_overridden = getattr(type(service), name, None) is not value
            code = getattr(value, "__code__", None)
            if name != "inference" and not is_overridden and code is not None:
                like = difflib.get_close_matches(f"_{name.strip('_')}", _STAGES, 1, _LIKENESS)
                found += [(name, stage, code) for stage in like]
    return found
