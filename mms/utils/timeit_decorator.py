"""PUBLIC: 0.4's decorator that tells how long a function takes."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

logger = logging.getLogger(__name__)
_P = ParamSpec("_P")
_T = TypeVar("_T")


def timeit(func: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return a function that logs its duration and its time on the CPU at each call.

    0.4 printed them, by way of a function that Python 3.8 removed.
    """

    @functools.wraps(func)
    def timed(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        started, cpu_started = time.perf_counter(), time.process_time()
        try:
            return func(*args, **kwargs)
        finally:
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            logger.info(
                "%s took %.4f s, and %.4f s on the CPU", func.__name__, seconds, cpu_seconds
            )

    return timed
