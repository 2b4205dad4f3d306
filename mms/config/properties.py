"""Read Java properties files, the format of MMS 1.x's ``config.properties``.

The format: https://docs.oracle.com/javase/8/docs/api/java/util/Properties.html, `load`. A key ends
at ``=``, ``:`` or a space, ``#`` and ``!`` begin a comment, and a backslash escapes a character or
continues the line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from mms.errors import ConfigError

_SPACE = " \t\f"
_ESCAPED = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_ESCAPE = re.compile(r"\\(?:u([0-9A-Fa-f]{4})|(.)|$)", re.DOTALL)
_KEY = re.compile(r"(?:\\.|[^\\=: \t\f])*", re.DOTALL)
_SEPARATOR = re.compile(r"[ \t\f]*[=:]?[ \t\f]*")
_VARIABLE = re.compile(r"\$\$(\w+)\$\$", re.ASCII)


def parse_properties(data: bytes) -> dict[str, str]:
    """Return the values of a file by key; the last of a repeated key counts.

    Args:
        data: UTF-8; what is not UTF-8 is read as Latin-1, as Java reads all of it.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    values = {}
    for line in _logical_lines(text):
        key = _KEY.match(line)
        separator = _SEPARATOR.match(line, key.end() if key else 0)
        end = separator.end() if separator else len(line)
        values[_unescaped(key[0] if key else "")] = _unescaped(line[end:])
    return values


def fill_variables(value: str, environment: Mapping[str, str], where: str) -> str:
    """Return a value with each ``$$NAME$$`` replaced by the environment variable.

    Raises:
        ConfigError: A variable is not set.
    """

    def filled(match: re.Match[str]) -> str:
        if match[1] not in environment:
            raise ConfigError(
                f"{where}: Invalid Environment Variable {match[1]}: it is not set; set it, or "
                f"write the value in place of {match[0]}"
            )
        return environment[match[1]]

    return _VARIABLE.sub(filled, value)


def _logical_lines(text: str) -> Iterator[str]:
    """Yield the lines without comments and leading space, continued lines joined."""
    joined = ""
    is_continued = False
    for raw in re.split(r"\r\n|\r|\n", text):
        line = raw.lstrip(_SPACE)
        if not is_continued and (not line or line[0] in "#!"):
            continue
        joined += line
        # An even number of backslashes is a row of escaped ones.
        is_continued = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        if is_continued:
            joined = joined[:-1]
            continue
        yield joined
        joined = ""
    if joined:
        yield joined


def _unescaped(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return _ESCAPED.get(match[2], match[2] or "")

    return _ESCAPE.sub(character, text)
