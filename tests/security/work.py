"""Measure what a call costs: calls made, bytes allocated, never the time on the clock."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from types import FrameType
from typing import Any

#: CPU seconds that nothing here comes near unless its cost grows with the square of its input.
CPU_LIMIT_S = 20


def calls_of(function: Callable[[], Any]) -> int:
    """Return how many functions, C's included, are called; errors end the count."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        function()
    except Exception:  # noqa: BLE001 - what it costs to refuse counts
        pass
    finally:
        sys.setprofile(None)
    return count


def run_limited(code: str, extra_bytes: int) -> str:
    """Run code in a process of its own that may allocate so much; return what it prints.

    The limit counts from the line ``limit()`` on, after the imports.
    """
    prelude = f"""
    import resource
    def limit():
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + {extra_bytes}, size + {extra_bytes}))
        resource.setrlimit(resource.RLIMIT_CPU, ({CPU_LIMIT_S}, {CPU_LIMIT_S}))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(prelude) + textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
