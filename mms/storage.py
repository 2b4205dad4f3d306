"""PUBLIC: 0.4's dictionary with a name."""

from typing import Any


class KVStorage(dict[str, Any]):
    """A dictionary with a name.

    Args:
        name: The name.
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
