"""Text in columns as wide as what stands in them, for tables on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

_GAP = "  "


def aligned(rows: Sequence[Sequence[str]], *, left: int = 0) -> list[str]:
    """Lines of a table, its columns at least two blanks apart.

    Args:
        rows: cells, as many in each row; the first row may be the names of the columns.
        left: how many columns begin at the left; numbers end at the right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        _GAP.join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
