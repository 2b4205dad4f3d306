"""The declaration of a setting: its default, its help text and its allowed values."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COMMA = re.compile(",")
#: Regular expressions of URLs are separated by a comma before a scheme: any other comma may be
#: part of an expression, and an expression cut in two could permit unintended URLs.
COMMA_BEFORE_SCHEME = re.compile(r",\s*(?=\(?(?:\?:)?(?:https?|s3|file)\b)")


class Unit(enum.Enum):
    """The unit of a number; the value is its name in messages."""

    BYTES = "bytes"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"


@dataclass(frozen=True, slots=True)
class Rules:
    """The help text and constraints of a setting.

    Attributes:
        help: Description for users.
        minimum: Lowest value.
        maximum: Highest value.
        choices: The allowed values; any if empty.
        unit: Its unit; None for plain numbers.
        is_pattern: Whether it is a regular expression, or a list of them.
        separator: Separates the items of a list written as one string.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: Sequence[str] = ()
    unit: Unit | None = None
    is_pattern: bool = False
    separator: re.Pattern[str] = COMMA


def setting(
    default: Any,
    help_: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: Sequence[str] = (),
    unit: Unit | None = None,
    is_pattern: bool = False,
    separator: re.Pattern[str] = COMMA,
) -> Any:
    """Declare a setting as a dataclass's field; its `Rules` are in the field's metadata."""
    rules = Rules(help_, minimum, maximum, choices, unit, is_pattern, separator)
    return dataclasses.field(default=default, metadata={"rules": rules})


def rules_of(field: dataclasses.Field[Any]) -> Rules:
    """Return the rules of a setting."""
    rules: Rules = field.metadata["rules"]
    return rules
