"""Interpret the error messages of engines and libraries."""

from __future__ import annotations

import re

#: Phrases of engines and libraries for exhausted memory; there is no exception class for it.
_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "cudamalloc failed",
    "failed to allocate",
    "cannot allocate memory",
    "insufficient memory",
    "bad_alloc",
)
#: Where a line of C++ code wrote a message: its clock, file and line.
_CPP_PLACE = re.compile(r"\[\d\d:\d\d:\d\d\] \S+:\d+: ")
_TRACEBACK = "Traceback (most recent call last):"
#: Maximum length of a quoted exception message.
_MAX_CHARS = 2048


def reason_line(text: str) -> str:
    """Return the line of an error message or a traceback that states the reason.

    It is the first line of a message. MXNet's messages are tracebacks of C++ code, which state it
    after the last frame, as Python's do; what follows there are hints.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    frames = [i for i, line in enumerate(lines) if line.endswith(_TRACEBACK)]
    start = frames[-1] + 1 if frames else 0
    # Frames are indented.
    reasons = [line for line in lines[start:] if not line[0].isspace()] or lines[-1:]
    if not reasons:
        return "(no message)"
    reason = _CPP_PLACE.sub("", reasons[0].strip()).removeprefix("mxnet.base.")
    # Python states the type of an exception whose message states it, too.
    return reason.removeprefix("MXNetError: ") if reason.count("MXNetError: ") > 1 else reason


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    text = short_text(error).lower()
    return any(phrase in text for phrase in _OUT_OF_MEMORY_TEXTS)


def short_text(value: object) -> str:
    """Return the message of an exception, cut to a limit, whatever its `__str__` does."""
    try:
        text = str(value)
        if len(text) <= _MAX_CHARS:
            return text
        return f"{text[:_MAX_CHARS]}... ({len(text) - _MAX_CHARS} characters cut)"
    except Exception:  # noqa: BLE001 - user code: its __str__ may raise anything
        return f"({type(value).__name__} whose message cannot be read)"
