"""How a setting is declared: its default, what it does, and which values it may have."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

COMMA = re.compile(",")
#: Regular expressions of URLs are separated by a comma before a scheme: any other comma may belong
#: to one of them, and one that is cut in two could permit what nobody meant.
COMMA_BEFORE_SCHEME = re.compile(r",\s*(?=\(?(?:\?:)?(?:https?|s3|file)\b)")


class Unit(enum.Enum):
    """What a number counts; its value says so in messages."""

    BYTES = "bytes"
    SECONDS = "seconds"
    MILLISECONDS = "milliseconds"


@dataclass(frozen=True, slots=True)
class Rules:
    """What a setting means and allows.

    Attributes:
        help: What it does, for people.
        minimum: Its least value.
        maximum: Its greatest value.
        choices: The only values it may have; any if empty.
        unit: What it counts; None for what counts nothing in particular.
        is_pattern: Whether it is a regular expression, or a list of them.
        separator: What separates the items of a list that is written as one string.
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
