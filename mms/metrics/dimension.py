"""PUBLIC: a dimension (label) of a metric, under MMS 1.x's name."""

from __future__ import annotations


class Dimension:
    """One dimension of a metric; becomes a label of the Prometheus metric.

    Args:
        name: Such as ``"stage"``.
        value: Such as ``"tokenize"``; from a small set, since each value makes a time series.
    """

    def __init__(self, name: str, value: object) -> None:
        self.name = name
        self.value = value

    def to_dict(self) -> dict[str, object]:
        """Return name and value."""
        return {"Name": self.name, "Value": self.value}

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"
