"""Interpret the error messages of engines and libraries."""

from __future__ import annotations

#: Phrases of engines and libraries for exhausted memory; there is no exception class for it.
_OUT_OF_MEMORY_TEXTS = (
    "out of memory",
    "cudamalloc failed",
    "failed to allocate",
    "cannot allocate memory",
    "insufficient memory",
    "bad_alloc",
)
#: Beginnings of the line in which MXNet states the reason.
_REASON_MARKS = ("MXNetError:", "mxnet.base.MXNetError:", "Error in operator")
#: Maximum length of a quoted exception message.
_MAX_CHARS = 2048


def reason_line(text: str) -> str:
    """Return the line of a traceback or an error message that states the reason.

    MXNet puts its own C++ stack before it, and sometimes hints after it.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    reasons = [line for line in lines if line.startswith(_REASON_MARKS) or "Check failed" in line]
    return (reasons or lines or ["(no message)"])[-1]


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
