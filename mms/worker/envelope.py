"""Take inputs out of the JSON that clients of other servers wrap them in. Pure.

Known are ``{"instances": ROWS}`` and ``{"inputs": VALUES}`` of TensorFlow Serving and KServe, and
rows that are objects with the inputs' names. Only for models that such an object cannot be meant
for: those with several inputs, and those whose only input is an array that the service itself
makes from nested lists. Any other service may take objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mms.errors import InvalidRequest
from mms.worker.names import hint, joined, kind_of, missing_input, near_miss

#: Keys of the envelopes: one entry per row, and one per input.
ROWS_KEY, COLUMNS_KEY = "instances", "inputs"


def values_of(document: Any, names: Sequence[str]) -> list[Any]:
    """Return one value per input from a JSON body that is not an object with their names.

    Raises:
        InvalidRequest: It is no envelope either; the message names what came and what was expected.
    """
    if isinstance(document, dict):
        if ROWS_KEY in document:
            return columns(document[ROWS_KEY], names, ROWS_KEY)
        if COLUMNS_KEY in document:
            return by_input(document[COLUMNS_KEY], names)
        raise _no_input(document, names)
    if isinstance(document, list) and document and isinstance(document[0], dict):
        return columns(document, names, "the body")
    if len(names) > 1:
        raise _needs_object(names)
    return [document]


def columns(rows: Any, names: Sequence[str], where: str) -> list[Any]:
    """Return one list per input from rows, each a value of the sole input or an object of all.

    Args:
        rows: The rows.
        names: The inputs.
        where: Their name, for messages.

    Raises:
        InvalidRequest: They are no list, or one lacks an input.
    """
    if not isinstance(rows, list):
        raise InvalidRequest(f"{where} must be a list with one entry per row, got {kind_of(rows)}")
    are_objects = [isinstance(row, dict) for row in rows]
    if len(names) == 1 and not any(are_objects):
        return [rows]
    for index, row in enumerate(rows):
        if not isinstance(row, dict):
            raise InvalidRequest(
                f"{where}[{index}] must be an object with the keys {joined(names)}, "
                f"got {kind_of(row)}"
            )
        for name in names:
            if name not in row:
                raise missing_input(name, row, f"{where}[{index}]", names)
    return [[row[name] for row in rows] for name in names]


def by_input(value: Any, names: Sequence[str]) -> list[Any]:
    """Return one value per input from the content of ``inputs``.

    Raises:
        InvalidRequest: An input is missing, or it is a request of another protocol.
    """
    if _is_tensor_list(value):
        raise InvalidRequest(
            f"{COLUMNS_KEY!r} holds tensors of the Open Inference Protocol; send them to "
            f"/v2/models/MODEL/infer, or an object with the keys {joined(names)} here"
        )
    if isinstance(value, dict):
        for name in names:
            if name not in value:
                raise missing_input(name, value, repr(COLUMNS_KEY), names)
        return [value[name] for name in names]
    if len(names) > 1:
        raise InvalidRequest(
            f"{COLUMNS_KEY!r} must be an object with the keys {joined(names)}, got {kind_of(value)}"
        )
    return [value]


def object_as_input(name: str, value: dict[str, Any]) -> InvalidRequest:
    """Return the error for an object where the value of an array input was expected."""
    return InvalidRequest(
        f"input {name!r} must be a list of numbers, but it is an object with {joined(value)}; "
        f"send {{{_quoted(name)}: [...]}} without a further level"
    )


def _no_input(document: dict[str, Any], names: Sequence[str]) -> InvalidRequest:
    got = f"the body has {joined(document)}" if document else "the body is an empty object"
    if len(names) > 1:
        return InvalidRequest(
            f"{got}; the model has {len(names)} inputs; send a JSON object with the keys "
            f"{joined(names)}{hint(names[0], document, names)}"
        )
    name = names[0]
    said = f"{name!r}, not {near!r}" if (near := near_miss(name, document)) else f"{name!r}"
    return InvalidRequest(
        f"{got}; the input is called {said}: send a list, or an object with the key {name!r}"
    )


def _needs_object(names: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(
        f"the model has {len(names)} inputs; send a JSON object with the keys {joined(names)}"
    )


def _is_tensor_list(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and isinstance(value[0], dict)
        and {"name", "datatype"} <= value[0].keys()
    )


def _quoted(name: str) -> str:
    return f'"{name}"' if name.isprintable() and '"' not in name else repr(name)
