"""Suggest the known name that a user may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable


def nearest(name: str, known: Iterable[str], shown: Callable[[str], str] = str) -> str:
    """Return ``; did you mean 'port'?`` for the nearest known name; "" if none is near.

    Args:
        name: The unknown name.
        known: The known ones.
        shown: Returns what is shown of a known one.
    """
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {shown(close[0])!r}?" if close else ""
