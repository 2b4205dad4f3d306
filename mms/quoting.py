"""Quote untrusted values in messages, at a bounded length and cost. Imports nothing of ours."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Any

#: Enough to recognise a value.
QUOTED_CHARS = 200
_MOST_ITEMS = 8
_MOST_LEVELS = 3
#: Floats end at 2 ** 1024; Python refuses to print integers of more than 4300 digits.
_MOST_BITS = 1024


def quoted(value: object, limit: int = QUOTED_CHARS) -> str:
    """Return the repr of a value, cut to `limit` characters and "...".

    The cost depends on the limit alone: only the beginning of strings and containers is read.
    """
    text = _text(value, limit, 0)
    return text if len(text) <= limit else f"{text[:limit]}..."


def quoted_names(names: Iterable[object], limit: int = QUOTED_CHARS) -> str:
    """Return the first few names, each quoted, or "nothing" if there are none."""
    shown = [quoted(name, limit) for name in islice(names, _MOST_ITEMS + 1)]
    if len(shown) > _MOST_ITEMS:
        shown[_MOST_ITEMS] = "..."
    return ", ".join(shown) or "nothing"


def _text(value: Any, limit: int, level: int) -> str:
    if isinstance(value, (str, bytes, bytearray)):
        # One more than is shown, so that the caller sees that it was cut.
        return repr(value[: limit + 1])
    if isinstance(value, int) and value.bit_length() > _MOST_BITS:
        return "a number of hundreds of digits"
    if isinstance(value, dict):
        return _listed(value.items(), len(value), "{}", limit, level)
    if isinstance(value, (list, tuple, set, frozenset)):
        brackets = {list: "[]", tuple: "()"}.get(type(value), "{}")
        return _listed(value, len(value), brackets, limit, level)
    return repr(value)


def _listed(values: Iterable[Any], length: int, brackets: str, limit: int, level: int) -> str:
    if level == _MOST_LEVELS:
        return f"{brackets[0]}...{brackets[1]}"
    is_pairs = brackets == "{}" and not isinstance(values, (set, frozenset))
    shown = []
    for value in islice(values, _MOST_ITEMS):
        if is_pairs:
            shown.append(": ".join(_text(part, limit, level + 1) for part in value))
        else:
            shown.append(_text(value, limit, level + 1))
    if length > _MOST_ITEMS:
        shown.append("...")
    return f"{brackets[0]}{', '.join(shown)}{brackets[1]}"
