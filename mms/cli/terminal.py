"""Make strings safe to print: a terminal must not interpret them as commands."""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    r"""Return a string with control characters escaped, except line breaks and tabs.

    Otherwise an escape sequence in an archive could rewrite what the operator sees, and a
    bidirectional control character could disguise what they copy.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def shell_word(text: str) -> str:
    """Return a string as one word of a shell command, on one line, safe to print and to run.

    Unprintable characters become question marks: they could not be copied anyway.
    """
    return shlex.quote("".join(char if char.isprintable() else "?" for char in text))
