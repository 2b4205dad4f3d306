"""What models may be called."""

from __future__ import annotations

_MAX_NAME_BYTES = 128
_IN_PATHS = frozenset("/\\{}")
#: What `is_model_name` accepts, for messages.
NAME_RULE = (
    f"use up to {_MAX_NAME_BYTES} bytes of printable text without / \\ {{ and }}, which is not "
    ". or .. and has no space at its ends"
)


def is_model_name(name: str) -> bool:
    """Whether a name can be a part of a URL path, quoted where need be, and of a file's name.

    As in 0.4 and 1.x, it may have spaces and letters of any script.
    """
    return (
        0 < len(name) <= _MAX_NAME_BYTES
        # No line breaks and other controls, which would forge lines of the log; no lone surrogates.
        and name.isprintable()
        # Parts of paths, and of the templates of paths in OpenAPI.
        and not (_IN_PATHS.intersection(name) or name in (".", ".."))
        and name == name.strip()
        and len(name.encode()) <= _MAX_NAME_BYTES
    )
