"""From what a flag, a variable or a file says to the type that a setting has."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mms.errors import ConfigError

TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_MAX_QUOTED_CHARS = 200
#: Numbers of GPUs: three digits each, as no machine has a thousand.
_GPUS = re.compile(r"\s*\d{1,3}\s*(,\s*\d{1,3}\s*){0,1023}", re.ASCII)


def convert(value: Any, kind: Any, rules: Mapping[str, Any], where: str) -> Any:
    """Return a value as the type of its setting.

    Args:
        value: As a flag, a variable, a file or a call gave it.
        kind: The setting's type.
        rules: Its minimum, maximum and choices.
        where: Its origin and its key, for the message.

    Raises:
        ConfigError: It has another type or is out of range.
    """
    minimum, maximum, choices = rules["minimum"], rules["maximum"], rules["choices"]
    if isinstance(value, bool) and choices and "on" in choices:
        # YAML reads a bare on or off as a boolean.
        value = "on" if value else "off"
    try:
        converted = _CONVERTERS[kind](value)
    except (ValueError, TypeError, OverflowError):
        raise ConfigError(f"{where}: expected {_KINDS[kind]}, got {_quoted(value)}") from None
    if minimum is not None and not converted >= minimum:
        raise ConfigError(f"{where}: must be at least {minimum}, got {_quoted(value)}")
    if maximum is not None and converted > maximum:
        raise ConfigError(f"{where}: must be at most {maximum:.15g}, got {_quoted(value)}")
    if choices:
        for choice in choices:
            if str(converted).lower() == choice.lower():
                return choice
        known = ", ".join(filter(None, choices))
        raise ConfigError(f"{where}: must be one of {known}, got {_quoted(value)}")
    return converted


def _quoted(value: Any) -> str:
    """Return a value for a message: callers may send megabytes of it."""
    try:
        text = repr(value)
    except ValueError:
        # A whole number of more digits than Python converts.
        return "a number too long to show"
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."


def _to_int(value: Any) -> int:
    if isinstance(value, (bool, float)) and not (isinstance(value, float) and value.is_integer()):
        raise ValueError
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text in TRUE | FALSE:
        return text in TRUE
    raise ValueError


def _to_str(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ",".join(str(part) for part in value)
    if isinstance(value, (dict, bool)):
        raise ValueError
    return str(value)


_CONVERTERS = {int: _to_int, float: _to_float, bool: _to_bool, str: _to_str}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def parse_gpus(text: str) -> tuple[int, ...]:
    """Return the GPU numbers in ``"0"`` or ``"0,1"``; none for an empty text.

    Raises:
        ConfigError: It is something else.
    """
    if not text.strip():
        return ()
    if not _GPUS.fullmatch(text):
        raise ConfigError(f"gpu: expected numbers such as 0 or 0,1, got {_quoted(text)}")
    return tuple(int(part) for part in text.split(","))
