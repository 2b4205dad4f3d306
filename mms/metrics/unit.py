"""PUBLIC: the units of metrics and their full names, under MMS 1.x's name."""

from __future__ import annotations

#: Full name of each unit that a handler may use.
UNITS: dict[str | None, str] = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    None: "unit",
}


class Units:
    """The units as MMS 1.x offered them: ``Units().units``."""

    def __init__(self) -> None:
        self.units = dict(UNITS)
