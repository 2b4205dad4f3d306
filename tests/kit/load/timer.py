"""A timer of the kernel's own, for requests that are to be sent at exact times.

An event loop's timers have a grain of 1 ms, which a fast server answers several requests in, and
waiting in a loop for the right moment would take a core away from the server.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_TFD_TIMER_ABSTIME = 1
#: Nanoseconds; a value of zero would stop the timer.
_LEAST_NS = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class Timer:
    """Calls back once for each `start_at`, within some ten microseconds.

    Args:
        callback: Called on the running loop.

    Raises:
        OSError: The system refuses another file.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        self._callback = callback
        self._descriptor = _LIBC.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._descriptor, self._on_expiry)
        # struct itimerspec: interval and first expiry, in seconds and nanoseconds each.
        self._spec = (ctypes.c_long * 4)()

    def start_at(self, when: float) -> None:
        """Set the time of the next call, by `time.monotonic`; one that has passed calls at once."""
        nanoseconds = max(int(when * 1e9), _LEAST_NS)
        self._spec[2], self._spec[3] = divmod(nanoseconds, 1_000_000_000)
        _LIBC.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, ctypes.byref(self._spec), None)

    def close(self) -> None:
        """Return the descriptor back."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _on_expiry(self) -> None:
        os.read(self._descriptor, 8)
        self._callback()
