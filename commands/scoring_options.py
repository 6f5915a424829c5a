"""The options of ``score`` and ``embed``, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ScoreRecords = Annotated[
    Path,
    typer.Option(
        "-i", "--input", metavar="FILE",
        help="Records: .jsonl, .csv, .parquet, or .txt with one text per line; - is stdin.",
    ),
]  # fmt: skip
Scores = Annotated[
    Path,
    typer.Option(
        "-o", "--output", metavar="FILE",
        help="Scores: .jsonl, .csv or .parquet; - is stdout, as JSON lines.",
    ),
]  # fmt: skip
ScoreParallel = Annotated[
    str,
    typer.Option(
        "--parallel", metavar="N|auto", help="Sequences at once; auto: 8, or fewer if 8 do not fit."
    ),
]
Totals = Annotated[
    bool, typer.Option("--totals", help="Write only the sums, without the list of tokens.")
]
