"""``infer-os eval``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import console
from . import options


def evaluate(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL]...",
            help="As for generate; several GGUF files are compared with each other. Without one, "
            "the bundled model.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(
            "--text",
            metavar="FILE",
            help="A text that the model has not seen.",
            show_default="the bundled model's held-out text",
        ),
    ] = None,
    reference: Annotated[
        str,
        typer.Option(
            "--reference",
            metavar="REF",
            help="A GGUF file, a folder or a name to be close to.",
            show_default="a folder's own weights as f32",
        ),
    ] = "",
    types: Annotated[
        str,
        typer.Option(
            "--types",
            metavar="T,T,...",
            help="Types to convert a folder or a name to; all.",
            show_default="q8_0,q4_k_m,q4_0",
        ),
    ] = "",
    kv: Annotated[
        list[str] | None,
        typer.Option(
            "--kv",
            metavar="SPEC,SPEC,...",
            help="Caches, as of generate; may be given several times. One in stages is evaluated "
            "token by token.",
            show_default="f16",
        ),
    ] = None,
    window: Annotated[
        int,
        typer.Option("--window", metavar="N", help="Tokens of a window; its second half counts."),
    ] = 512,
    windows: Annotated[
        int, typer.Option("--windows", metavar="N", help="Windows at most; of stages, 8.")
    ] = 32,
    rows: options.RowsFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            help="Write DIR/index.html with a plot and the table; needs infer-os[plot].",
            show_default=False,
        ),
    ] = None,
    threads: options.Threads = 0,
    as_json: options.Json = False,
) -> None:
    """Measure perplexity, and KL divergence and top-1 agreement with a reference.

    Example: infer-os eval models/bundled/austen-6m --types q8_0,q4_0 --kv f16,q8_0
    """  # fmt: skip
    from .. import render_bench
    from ..benching import Output
    from ..evaluating import EvalRequest, parse_types, run_eval
    from ..model_store import Reporter
    from ..runtime.benchmark.quality import QualitySettings
    from ..runtime.benchmark.report import check_outputs, write_report, write_rows
    from ..runtime.benchmark.settings import split_specs

    request = EvalRequest(
        tuple(models or ()), text, reference, parse_types(types),
        split_specs("--kv", tuple(kv or ("f16",))), QualitySettings(window, windows, threads),
    )  # fmt: skip
    check_outputs(rows, report)
    command = shlex.join(["infer-os", *sys.argv[1:]])
    with console.progress_steps() as steps:
        output = Output(Reporter(console.note, console.progress_bar), steps)
        result = run_eval(request, command, output)
    if rows is not None:
        write_rows(rows, result.rows, result.place)
    if report is not None:
        page = write_report(report, result.rows, result.place, result.notes)
        console.note(f"wrote {page}")
    if as_json:
        console.answer_json(render_bench.quality_json(result.rows, result.place, result.notes))
    else:
        render_bench.show_rows(result.rows)
        console.notes(result.notes)
