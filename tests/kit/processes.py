"""What tests ask the system about processes."""

from __future__ import annotations

import ctypes

_PR_SET_CHILD_SUBREAPER = 36


def resign_as_subreaper() -> None:
    """Leave what real server commands orphan to the system, as the shell that starts one does.

    A server that ran in this process before made it the heir of whatever is orphaned below it.
    """
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
