"""What ``bench`` and ``eval`` share: their options, declared once, and where their rows go."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..terminal import console
from .typed_numbers import whole

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
        metavar="MODEL", help="As for generate; by default, the bundled model.",
        show_default=False,
    ),
]  # fmt: skip
Techniques = Annotated[
    bool,
    typer.Option(
        "--techniques",
        help="Each technique alone and all together against a baseline: FP16 weights, one token "
        "at a time, in a loop that copies rows; with what is claimed for each.",
    ),
]
Baseline = Annotated[
    Path | None,
    typer.Option(
        "--baseline", metavar="FILE",
        help="With --techniques and a file as MODEL: its FP16 weights.",
        show_default=False,
    ),
]  # fmt: skip
Depths = Annotated[
    str,
    typer.Option(
        "--depths", metavar="N,N,...",
        help="Tokens in the cache before each measurement; "
        "for --techniques, the last is the length of the prompt.",
        show_default="0,512,1024,2048, as far as the context reaches",
    ),
]  # fmt: skip
Batches = Annotated[
    str,
    typer.Option(
        "--batch", metavar="N,N,...",
        help="Sequences to decode together.  [default: 1,2,4,8,16,32]", show_default=False,
    ),
]  # fmt: skip
CompareKv = Annotated[
    list[str] | None,
    typer.Option(
        "--compare-kv", metavar="SPEC,SPEC,...",
        help="KV caches to compare at each depth (syntax of --kv), measured alternately; may be "
        "given several times.",
        show_default=False,
    ),
]  # fmt: skip
Repeats = Annotated[
    int, typer.Option("--repeats", parser=whole, metavar="N", help="Rounds, after one to warm up.")
]
PromptTokens = Annotated[
    int, typer.Option("--prompt-tokens", parser=whole, metavar="N", help="Tokens of a prefill.")
]
Tokens = Annotated[
    int, typer.Option("--tokens", parser=whole, metavar="N", help="Tokens to decode one by one.")
]

# ---- eval
EvalModels = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="MODEL",
        help="As for generate; several GGUF files are compared with each other. By default, "
        "the bundled model.",
        show_default=False,
    ),
]
EvalText = Annotated[
    Path | None,
    typer.Option(
        "--text", metavar="FILE",
        help="A text that the model has not seen; required unless the model is the bundled one.",
        show_default=False,
    ),
]  # fmt: skip
Reference = Annotated[
    str,
    typer.Option(
        "--reference", metavar="REF", help="A GGUF file, a folder or a name to compare with.",
        show_default="a folder's own weights as f32",
    ),
]  # fmt: skip
Types = Annotated[
    str,
    typer.Option(
        "--types", metavar="T,T,...",
        help="Types to convert a folder or a name to, or all.  [default: q8_0,q4_k_m,q4_0]",
        show_default=False,
    ),
]  # fmt: skip
EvalKv = Annotated[
    list[str] | None,
    typer.Option(
        "--kv", metavar="SPEC,SPEC,...",
        help="KV caches (syntax of generate's --kv); may be given several times. A staged one is "
        "evaluated token by token.  [default: f16]",
        show_default=False,
    ),
]  # fmt: skip
Window = Annotated[
    int,
    typer.Option(
        "--window", parser=whole, metavar="N", help="Tokens per window; its second half is scored."
    ),
]
Windows = Annotated[
    int,
    typer.Option(
        "--windows",
        parser=whole,
        metavar="N",
        help="Maximum number of windows; at most 8 for a staged cache.",
    ),
]


def command_line() -> str:
    """The command line as typed, for the rows."""
    return shlex.join(["infer-os", *sys.argv[1:]])


def deliver(
    result: BenchResult, rows: Path | None, report: Path | None, as_json: dict[str, Any] | None
) -> None:
    """Append the rows, write the page, and print: JSON if given, else tables and notes.

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
