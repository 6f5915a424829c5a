"""``infer-os convert``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..terminal import console, render
from . import completing, options
from .groups import count_option

if TYPE_CHECKING:
    from ..convert.report import ConversionReport
    from ..convert.settings import ConvertSettings


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A checkpoint folder, a catalog name (gpt-j-6B) or a hub id (EleutherAI/gpt-j-6B);"
            " a folder of that name wins.",
            show_default=False,
            autocompletion=completing.model_names,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="The GGUF file to write.",
            show_default="SOURCE's name and the type, in this folder",
        ),
    ] = None,
    type: Annotated[
        str,
        typer.Option(
            "--type",
            metavar="T",
            help="f32, f16, q8_0, q4_0, ... (a wrong one lists all); auto: the finest that fits "
            "into this machine's memory.",
            autocompletion=completing.type_names,
        ),
    ] = "q4_0",
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT",
            help="Run the model over a text first and weigh the quantization by its activations; "
            "the text's end tells what that was worth.",
            show_default=False,
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="An importance matrix (llama.cpp's GGUF form) to weigh with; with --calibrate, "
            "the file to keep it in.",
            show_default=False,
        ),
    ] = None,
    rotate: Annotated[
        bool,
        typer.Option(
            "--fold-rotation",
            help="Fold a rotation into the attention weights, so that a quantized KV cache loses "
            "less; the model computes the same.",
        ),
    ] = False,
    threads: options.Threads = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only plan: sizes and types, nothing is written.")
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify", help="Read the file back, compare it with its source, run a few tokens."
        ),
    ] = False,
    keep_source: Annotated[
        bool,
        typer.Option(
            "--keep-source",
            help="Keep what is downloaded, in ~/.cache/infer-os or INFER_OS_CACHE; else a shard "
            "goes when it is converted.",
        ),
    ] = False,
    revision: Annotated[
        str | None,
        typer.Option(
            "--revision",
            metavar="R",
            help="Branch, tag or commit on the hub.",
            show_default="the catalog's, else main",
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Convert a Hugging Face checkpoint to one quantized GGUF file.

    A model on the hub is downloaded shard by shard; interrupted, the same command continues.

    Example: infer-os convert EleutherAI/gpt-j-6B --type q4_0 -o gpt-j.gguf
    """  # fmt: skip
    from ..convert.settings import ConvertSettings
    from ..convert.source import find_source

    automatic = type.lower() == "auto"
    settings = ConvertSettings(
        find_source(source, revision), output, "q4_0" if automatic else type,
        count_option("threads", threads), force, dry_run, verify, keep_source,
        None if calibrate else imatrix, rotate,
    )  # fmt: skip
    if automatic:
        from ..store.planning import finest_type

        settings = replace(settings, type=finest_type(source, revision))
    try:
        report = _run_conversion(settings, calibrate, imatrix)
    except (KeyboardInterrupt, SystemExit):
        if not isinstance(settings.source, Path) and not dry_run:
            console.note("interrupted; the same command continues where it stopped")
        raise
    if automatic:
        note = f"type: auto: {settings.type} is the finest that fits into this machine's memory"
        report = replace(report, notes=(note, *report.notes))
    if as_json:
        console.answer_json(render.report_json(report))
    else:
        render.show_report(report)


def _run_conversion(
    settings: ConvertSettings, calibrate: Path | None, imatrix: Path | None
) -> ConversionReport:
    from ..convert.pipeline import convert as run

    if calibrate is None:
        with console.progress_bar(f"converting to {settings.type}") as progress:
            return run(settings, progress)
    from ..convert.calibrated import CalibrationSettings, convert_calibrated

    with console.progress_steps() as steps:
        return convert_calibrated(settings, CalibrationSettings(calibrate, imatrix), steps)
