"""Likely mistakes in a service, which `mxnet-model-export --check` refuses but the server serves.

An answer that is null (a stage without `return`), numbers that are NaN or infinite, and a method
that was meant as a stage but is never called.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Mapping
from types import CodeType, FrameType
from typing import Any

import numpy as np

from mms.errors import InvalidServiceOutput, ModelLoadFailed

_STAGES = ("_preprocess", "_inference", "_postprocess")
#: Minimum similarity of a method's name to a stage's for one to be meant as the other.
_LIKENESS = 0.85
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
