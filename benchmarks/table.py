"""Tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def render(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> str:
    """Lay out columns, numbers to the right.

    Args:
        header: Names of the columns.
        rows: As many cells each.
        left: Columns of text, which stand to the left.
    """
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def number(value: float | None, digits: int = 0) -> str:
    """Write a number; nothing for None."""
    return "" if value is None else f"{value:.{digits}f}"


def digits_for(value: float) -> int:
    """Return the decimals that leave about three digits to see."""
    return 0 if value >= 100 else 1 if value >= 10 else 2
