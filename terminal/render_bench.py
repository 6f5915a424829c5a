"""Turn rows into what ``bench`` and ``eval`` print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import console

if TYPE_CHECKING:
    from ..measure.rows import Place, Row


def result_json(rows: Sequence[Row], place: Place, notes: Sequence[str]) -> dict[str, Any]:
    """``bench --json``: every row says where it was measured."""
    from ..measure.rows import row_json

    return {"rows": [row_json(row, place) for row in rows], "notes": list(notes)}


def show_rows(rows: Sequence[Row]) -> None:
    """All tables, and why some claims were not reached."""
    from ..measure.tables import all_tables, reasons

    for i, table in enumerate(all_tables(rows)):
        if i:
            console.answer("")
        console.table(table.columns, table.rows, left=table.left)
    found = reasons(rows)
    if found:
        console.answer("\nNot reached, because:")
    for name, reason in found:
        console.answer(f"  {name}: {reason}")


def quality_json(rows: Sequence[Row], place: Place, notes: Sequence[str]) -> dict[str, Any]:
    """``eval --json``: the first file's figures with its first cache, and all rows."""
    from ..measure.rows import select

    first = {metric: select(rows, metric)[:1] for metric in ("perplexity", "kl", "top1")}
    figures = {metric: found[0].median if found else None for metric, found in first.items()}
    return figures | result_json(rows, place, notes)
