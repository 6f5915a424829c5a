"""``infer-os convert``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..terminal import console
from . import options
from .converting import Conversion
from .groups import grouped

if TYPE_CHECKING:
    from ..convert.report import ConversionReport


@grouped()
def convert(*, job: Conversion, as_json: options.Json = False) -> None:
    """Convert a Hugging Face checkpoint to one quantized GGUF file.

    A model on the hub is downloaded shard by shard; the same command continues an interrupted run.

    Example: infer-os convert EleutherAI/gpt-j-6B --type q4_0 -o gpt-j.gguf
    """  # fmt: skip
    from ..terminal import render

    settings = job.settings
    try:
        report = _run_conversion(job)
    except (KeyboardInterrupt, SystemExit):
        if not isinstance(settings.source, Path) and not settings.dry_run:
            console.note("interrupted; the same command continues where it stopped")
        raise
    if job.is_automatic:
        note = f"type: auto: {settings.type} is the finest that fits in this machine's memory"
        report = replace(report, notes=(note, *report.notes))
    if as_json:
        console.answer_json(render.report_json(report))
    else:
        render.show_report(report)


def _run_conversion(job: Conversion) -> ConversionReport:
    from ..convert.pipeline import convert as run
    from ..store.resolve import naming_near

    if job.calibration is None:
        with naming_near(), console.progress_bar(f"converting to {job.settings.label}") as progress:
            return run(job.settings, progress)
    from ..convert.calibrated import convert_calibrated

    with naming_near(), console.progress_steps() as steps:
        return convert_calibrated(job.settings, job.calibration, steps)
