"""Tables on terminals too narrow for them: what fits, and where the rest goes.

Goes in: names of columns, and rows of cells. Come out: lines. Prints nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

#: Blanks between columns of a folded table, and of one that rich draws; and the least width that a
#: column of words can be broken to.
_GAP, _WIDE_GAP, _NARROWEST = 2, 3, 12


def _widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    return [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]


def fitting_columns(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, width: int
) -> int:
    """How many columns, from the first, fit into ``width``; columns of words may be broken."""
    widths = _widths(columns, rows)
    least = [min(n, _NARROWEST) if i < left else n for i, n in enumerate(widths)]
    if sum(least) + _WIDE_GAP * (len(least) - 1) <= width:
        return len(columns)
    n_kept, used = 1, widths[0]
    while n_kept < len(columns) and used + _GAP + widths[n_kept] <= width:
        used += _GAP + widths[n_kept]
        n_kept += 1
    return min(n_kept, len(columns) - 1)


def folded_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], left: int, n_kept: int, width: int
) -> list[str]:
    """A table's lines: each row's first columns, then the others with their names."""
    widths = _widths(columns, rows)[:n_kept]

    def line(cells: Sequence[str]) -> str:
        kept = zip(cells, widths, strict=False)
        aligned = [c.ljust(n) if i < left else c.rjust(n) for i, (c, n) in enumerate(kept)]
        return (" " * _GAP).join(aligned).rstrip()

    lines = [line(columns), "─" * min(width, sum(widths) + _GAP * (n_kept - 1))]
    for row in rows:
        lines.append(line(row))
        rest = zip(columns[n_kept:], row[n_kept:], strict=True)
        others = ", ".join(f"{name} {cell}".strip() for name, cell in rest if cell)
        lines += textwrap.wrap(others, width, initial_indent="  ", subsequent_indent="  ")
    return lines
