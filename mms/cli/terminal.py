"""What may be printed to a terminal: nothing that it would obey."""

from __future__ import annotations

import shlex


def printable(text: str) -> str:
    r"""Return a text with control characters escaped, but for line breaks and tabs.

    An escape sequence in an archive's text could otherwise rewrite what the operator sees, and a
    mark that turns the direction of writing could hide what he copies.
    """
    return "".join(
        char if char.isprintable() or char in "\n\t" else char.encode("unicode_escape").decode()
        for char in text
    )


def shell_word(text: str) -> str:
    """Return a text as one word of a shell command, on one line and safe to show and to run.

    What is not printable becomes a question mark: a command with it could not be copied anyway.
    """
    return shlex.quote("".join(char if char.isprintable() else "?" for char in text))
