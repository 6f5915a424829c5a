"""What ``bench`` and ``eval`` share: their options, declared once, and where their rows go."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..terminal import console

if TYPE_CHECKING:
    from ..measure.bench import BenchResult

Report = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="DIR",
        help="Write plots and tables to DIR/index.html, one page; needs infer-os[plot].",
        show_default=False,
    ),
]  # fmt: skip

# ---- bench
BenchModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="As for generate; without one, the bundled model.",
        show_default=False,
    ),
]  # fmt: skip
Techniques = Annotated[
    bool,
    typer.Option(
        "--techniques",
        help="Each technique alone and all together against FP16 weights, one token at a time, "
        "with a loop that copies rows; beside what is claimed of them.",
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="FILE",
        help="With --techniques and a MODEL that is a file: its FP16 weights.",
        show_default=False,
    ),
]  # fmt: skip
Depths = Annotated[
    str,
    typer.Option(
        "--depths", metavar="N,N,...",
        help="Tokens that are held before what is measured; "
        "of --techniques, the last is the length of the prompt.",
        show_default="0,512,1024,2048, as far as the context reaches",
    ),
]  # fmt: skip
Batches = Annotated[
    str,
    typer.Option(
        "--batch", metavar="N,N,...", help="Sequences that are decoded together.",
        show_default="1,2,4,8,16,32",
    ),
]  # fmt: skip
CompareKv = Annotated[
    list[str] | None,
    typer.Option(
        "--compare-kv", metavar="SPEC,SPEC,...",
        help="Caches to compare over depth, as of --kv, in turns; may be given several times.",
        show_default=False,
    ),
]  # fmt: skip
Repeats = Annotated[
    int, typer.Option("--repeats", metavar="N", help="Rounds, after one that warms up.")
]
PromptTokens = Annotated[
    int, typer.Option("--prompt-tokens", metavar="N", help="Tokens of a prefill.")
]
Tokens = Annotated[
    int, typer.Option("--tokens", metavar="N", help="Tokens that are decoded one by one.")
]

# ---- eval
EvalModels = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="As for generate; several GGUF files are compared with each other. Without one, "
        "the bundled model.",
        show_default=False,
    ),
]
EvalText = Annotated[
    Path | None,
    typer.Option(
        "--text", metavar="FILE",
        help="A text that the model has not seen; the bundled model has one, any other needs it.",
        show_default=False,
    ),
]  # fmt: skip
Reference = Annotated[
    str,
    typer.Option(
        "--reference", metavar="REF", help="A GGUF file, a folder or a name to be close to.",
        show_default="a folder's own weights as f32",
    ),
]  # fmt: skip
Types = Annotated[
    str,
    typer.Option(
        "--types", metavar="T,T,...", help="Types to convert a folder or a name to; all.",
        show_default="q8_0,q4_k_m,q4_0",
    ),
]  # fmt: skip
EvalKv = Annotated[
    list[str] | None,
    typer.Option(
        "--kv", metavar="SPEC,SPEC,...",
        help="Caches, as of generate; may be given several times. One in stages is evaluated "
        "token by token.",
        show_default="f16",
    ),
]  # fmt: skip
Window = Annotated[
    int, typer.Option("--window", metavar="N", help="Tokens of a window; its second half counts.")
]
Windows = Annotated[
    int, typer.Option("--windows", metavar="N", help="Windows at most; of stages, 8.")
]


def command_line() -> str:
    """What was typed, as a row says it."""
    return shlex.join(["infer-os", *sys.argv[1:]])


def deliver(
    result: BenchResult, rows: Path | None, report: Path | None, as_json: dict[str, Any] | None
) -> None:
    """Append the rows, write the page, and print: JSON if there is any, else tables and notes.

    Raises:
        BenchError: a file cannot be written.
    """
    from ..measure.report_page import write_report, write_rows
    from ..terminal import render_bench

    if rows is not None:
        write_rows(rows, result.rows, result.place)
    if report is not None:
        page = write_report(report, result.rows, result.place, result.notes)
        console.note(f"wrote {page}")
    if as_json is not None:
        console.answer_json(as_json)
        return
    render_bench.show_rows(result.rows)
    console.notes(result.notes)
