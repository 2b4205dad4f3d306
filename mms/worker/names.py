"""Name what a request has, and what was meant by a name that is nearly right. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable
from itertools import islice
from typing import Any

from mms.errors import InvalidRequest
from mms.quoting import quoted, quoted_names

_SHOWN_CHARS = 60
#: Comparing costs the square of the length, for each name that a client sends.
_MAX_COMPARED, _MAX_COMPARED_CHARS = 64, 64
_LIKENESS = 0.7


def missing_input(
    name: str, given: Collection[Any], where: str, known: Iterable[str] = ()
) -> InvalidRequest:
    """Return the error for an input that a body lacks.

    Args:
        name: The input.
        given: The names that the body has.
        where: The body's name, for messages: "the body", "the form".
        known: All inputs of the model.
    """
    got = f"{where} has {joined(given)}" if given else f"{where} has no fields"
    return InvalidRequest(f"input {name!r} is missing; {got}{hint(name, given, known)}")


def hint(name: str, given: Iterable[Any], known: Iterable[str] = ()) -> str:
    """Return the end of a message that says which of the given names is meant, or ""."""
    near = near_miss(name, given, known)
    return f"; the input is called {name!r}, not {near!r}" if near is not None else ""


def near_miss(name: str, given: Iterable[Any], known: Iterable[str] = ()) -> str | None:
    """Return the name that is the input's in another case, or with a slip; None if none is.

    Args:
        name: The input.
        given: The names that a client has sent.
        known: Names that are right as they are.
    """
    right = {name, *known}
    candidates = [
        other
        for other in islice(given, _MAX_COMPARED)
        if isinstance(other, str) and len(other) <= _MAX_COMPARED_CHARS and other not in right
    ]
    plain = {_plain(other): other for other in reversed(candidates)}
    close = difflib.get_close_matches(_plain(name)[:_MAX_COMPARED_CHARS], plain, 1, _LIKENESS)
    return plain[close[0]] if close else None


def kind_of(value: Any) -> str:
    """Return the type of a JSON value in words."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean"}
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), type(value).__name__)


def joined(names: Iterable[Any]) -> str:
    """Return names, quoted and separated by commas."""
    return quoted_names(names, _SHOWN_CHARS)


def shown(value: Any) -> str:
    """Return the beginning of a value."""
    if isinstance(value, str):
        text = value[: _SHOWN_CHARS + 1]
        return f"{text[:_SHOWN_CHARS]}..." if len(text) > _SHOWN_CHARS else text
    return quoted(value, _SHOWN_CHARS)


def _plain(name: str) -> str:
    return name.strip().casefold().replace("-", "_")
