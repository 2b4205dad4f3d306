"""Convert the values of flags, variables, files and API calls to the types of settings.

Numbers, lists and units are parsed here and nowhere else. A size is a number of bytes or, say,
``512MiB``; a time is a number in the setting's own unit or, say, ``30s``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from decimal import Decimal
from typing import Any

from mms.config.declaration import Rules, Unit
from mms.errors import ConfigError

TRUE, FALSE = {"true", "yes", "on", "1"}, {"false", "no", "off", "0"}
_MAX_QUOTED_CHARS = 200
#: GPU numbers: at most three digits each, as no machine has a thousand GPUs.
_GPUS = re.compile(r"\s*\d{1,3}\s*(,\s*\d{1,3}\s*){0,1023}", re.ASCII)
_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{1,18})?)\s*([a-z]{1,5})", re.ASCII | re.IGNORECASE)
_SIZES = {"b": 1} | {
    f"{letter}{suffix}": base**power
    for power, letter in enumerate("kmgt", start=1)
    for suffix, base in (("b", 1000), ("ib", 1024))
}
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000}
_EXAMPLES = {
    Unit.BYTES: "an integer number of bytes or a size such as 512MiB or 2GB",
    Unit.SECONDS: "a number of seconds or a time such as 30s, 500ms or 2m",
    Unit.MILLISECONDS: "a number of milliseconds or a time such as 5ms or 0.5s",
}


def convert(value: Any, kind: Any, rules: Rules, where: str) -> Any:
    """Convert a value to the type of its setting.

    Args:
        value: As read from a flag, a variable, a file or an API call.
        kind: The setting's type.
        rules: The setting's constraints.
        where: Its origin and key, for the message.

    Raises:
        ConfigError: It has the wrong type or is out of range.
    """
    if isinstance(value, bool) and "on" in rules.choices:
        # YAML reads a bare on or off as a boolean.
        value = "on" if value else "off"
    try:
        if kind == tuple[str, ...]:
            converted: Any = _to_strings(value, rules.separator)
        else:
            converted = _CONVERTERS[kind](_without_unit(value, rules.unit))
    except (ValueError, TypeError, OverflowError):
        expected = _EXAMPLES[rules.unit] if rules.unit else _KINDS[kind]
        raise ConfigError(f"{where}: expected {expected}, got {_quoted(value)}") from None
    if rules.minimum is not None and not converted >= rules.minimum:
        raise ConfigError(f"{where}: must be at least {rules.minimum}, got {_quoted(value)}")
    if rules.maximum is not None and converted > rules.maximum:
        raise ConfigError(f"{where}: must be at most {rules.maximum:.15g}, got {_quoted(value)}")
    if rules.is_pattern:
        _check_patterns([converted] if isinstance(converted, str) else converted, where)
    return _chosen(converted, value, rules, where) if rules.choices else converted


def _chosen(converted: Any, value: Any, rules: Rules, where: str) -> str:
    for choice in rules.choices:
        if str(converted).lower() == choice.lower():
            return choice
    known = ", ".join(filter(None, rules.choices))
    raise ConfigError(f"{where}: must be one of {known}, got {_quoted(value)}")


def _check_patterns(texts: Iterable[str], where: str) -> None:
    for text in texts:
        try:
            re.compile(text)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                f"{where}: {_quoted(text)} is not a regular expression: {error}"
            ) from None


def _quoted(value: Any) -> str:
    """Return a value, truncated, for a message: callers may send megabytes."""
    try:
        text = repr(value)
    except ValueError:
        # An integer with more digits than Python converts.
        return "a number too long to show"
    return text if len(text) <= _MAX_QUOTED_CHARS else f"{text[:_MAX_QUOTED_CHARS]}..."


def _without_unit(value: Any, unit: Unit | None) -> Any:
    """Return a size or a time as a number in the setting's unit; anything else unchanged."""
    if unit is None or not isinstance(value, str):
        return value
    match = _QUANTITY.fullmatch(value.strip())
    if match is None:
        return value
    number, suffix = Decimal(match[1]), match[2].lower()
    factor = _SIZES.get(suffix) if unit is Unit.BYTES else _MILLISECONDS.get(suffix)
    if factor is None:
        return value
    found = number * factor / (1000 if unit is Unit.SECONDS else 1)
    return int(found) if found == int(found) else float(found)


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
    if isinstance(value, (list, tuple, dict, bool)):
        raise ValueError
    return str(value)


def _to_gpus(value: Any) -> tuple[int, ...]:
    parts = value if isinstance(value, (list, tuple)) else [value]
    if any(isinstance(part, bool) for part in parts):
        raise ValueError
    text = ",".join(str(part) for part in parts)
    if not text.strip():
        return ()
    if not _GPUS.fullmatch(text):
        raise ValueError
    return tuple(int(part) for part in text.split(","))


def _to_strings(value: Any, separator: re.Pattern[str]) -> tuple[str, ...]:
    parts = value if isinstance(value, (list, tuple)) else [value]
    texts = [text.strip() for part in parts for text in separator.split(_to_str(part))]
    return tuple(text for text in texts if text)


_CONVERTERS: dict[Any, Callable[[Any], Any]] = {
    int: _to_int,
    float: _to_float,
    bool: _to_bool,
    str: _to_str,
    tuple[int, ...]: _to_gpus,
}
_KINDS = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    tuple[int, ...]: "GPU numbers such as 0 or 0,1",
    tuple[str, ...]: "a string or a list of strings",
}
