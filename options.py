"""The command line's options, each declared once and reused by every command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A GGUF file.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Threads = Annotated[
    int,
    typer.Option(
        "--threads", metavar="N", help="Threads to compute with.",
        show_default="one per usable core",
    ),
]  # fmt: skip

# ---- engine
Context = Annotated[
    int,
    typer.Option(
        "--context", metavar="N", help="Tokens of context.",
        show_default="what the model was trained for, at most 4096",
    ),
]  # fmt: skip
Load = Annotated[
    str,
    typer.Option(
        "--load", metavar="mmap|fast",
        help="mmap: use the file's own pages, shared between processes. fast: copy the weights "
        "into the layout that computes fastest.",
    ),
]  # fmt: skip

# ---- sampling
MaxTokens = Annotated[
    int, typer.Option("-n", "--max-tokens", metavar="N", help="Most tokens to write.")
]
Temperature = Annotated[
    float,
    typer.Option("--temperature", metavar="T", help="0 takes the likeliest token; more, bolder."),
]
TopK = Annotated[
    int, typer.Option("--top-k", metavar="K", help="Draw from the K likeliest; 0 is off.")
]
TopP = Annotated[
    float,
    typer.Option("--top-p", metavar="P", help="Draw from the likeliest that sum to P; 1 is off."),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", metavar="P", help="Leave out what is less than P times the likeliest; 0 is off."
    ),
]
RepeatPenalty = Annotated[
    float,
    typer.Option("--repeat-penalty", metavar="R", help="Make recent tokens less likely; 1 is off."),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed", metavar="S", help="Makes a run repeatable.", show_default="a random one"
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        "--stop", metavar="TEXT", help="Stop before this text; may be given several times.",
        show_default=False,
    ),
]  # fmt: skip
