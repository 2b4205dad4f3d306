"""A 1.x handler that answers the length of each body."""

from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[int]:
    # Without data: loading, for which there is nothing to do.
    return [len(request["body"]) for request in data or ()]
