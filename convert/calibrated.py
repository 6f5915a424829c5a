"""Convert with importance weights collected in the same command, and say what they were worth.

Goes in: a checkpoint and a text. A fine intermediate file (removed afterwards) runs over the first
nine tenths of the text to collect the weights; the last tenth, which they never saw, then tells how
far the file is from the intermediate one with them and without them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from infer_os.native.errors import EvaluateError
from infer_os.native.evaluate import Divergence, Subject, WindowSettings, compare_models
from infer_os.native.interrupt import interruptible
from infer_os.native.model import Model

from .calibrate import collect_importance
from .errors import SourceError, UnsupportedError
from .gguf_writer import check_output
from .imatrix import ImportanceMatrix, write_imatrix
from .pipeline import convert
from .report import CalibrationReport, ConversionReport, PlacedQuality
from .settings import ConvertSettings, refuse_idle_weights
from .source import HubSource

Progress = Callable[[int, int], None]
#: Called at the start of each step with its name; returns where the step's progress goes.
Steps = Callable[[str], Progress | None]

# share of the text that collects; the rest compares
_CALIBRATION_SHARE = 0.9
# the intermediate file: what it loses itself is far below what is measured
_INTERMEDIATE = "q8_0"
_COMPARED_WINDOWS = 32
_WINDOW = 512
_LARGEST_TEXT = 64 << 20


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """The text, and where to keep the importance matrix (None: nowhere)."""

    text: Path
    matrix: Path | None = None


def convert_calibrated(
    settings: ConvertSettings, calibration: CalibrationSettings, steps: Steps
) -> ConversionReport:
    """Convert with weights collected from a text.

    Args:
        settings: the conversion; a model on the hub must be kept (``keep_source``), since it is
            read three times.
        calibration: the text.
        steps: shows the steps and their progress.

    Raises:
        ConvertError: nothing was written; the text is too short, or has no effect on the type.
    """
    if isinstance(settings.source, HubSource) and not settings.keep_source:
        raise UnsupportedError(
            "--calibrate reads the checkpoint three times: add --keep-source, so that it is "
            "downloaded once"
        )
    refuse_idle_weights("--calibrate", settings.type)
    seen, unseen = _split(calibration.text)
    target = settings.target
    check_output(target, 0, force=settings.force)
    # beside the output, which has the disk for it
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as place:
        plain = replace(settings, verify=False, force=False, dry_run=False)
        reference = Path(place, "intermediate.gguf")
        convert(replace(plain, output=reference, type=_INTERMEDIATE), steps("intermediate file"))
        matrix = collect_importance(
            reference, seen, n_threads=settings.n_threads, progress=steps("calibrating")
        )
        matrix = replace(matrix, datasets=(calibration.text.name,))
        without = Path(place, "without.gguf")
        convert(replace(plain, output=without), steps("without weights"))
        report = convert(settings, steps("with weights"), matrix)
        quality = CalibrationReport(
            text=calibration.text.name,
            chunks=matrix.chunk_count,
            without=_quality(reference, without, unseen, settings, steps("comparing without")),
            with_weights=_quality(reference, target, unseen, settings, steps("comparing with")),
        )
        if calibration.matrix is not None:
            _keep(matrix, calibration.matrix)
    return replace(report, calibration=quality)


def _split(path: Path) -> tuple[str, str]:
    """The text that collects and the text that compares, cut at the end of a line."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_TEXT).decode("utf-8", "replace")
    except OSError as error:
        raise SourceError(f"--calibrate {path}: cannot be read: {error.strerror}") from error
    cut = text.find("\n", int(len(text) * _CALIBRATION_SHARE)) + 1 or int(
        len(text) * _CALIBRATION_SHARE
    )
    return text[:cut], text[cut:]


def _quality(
    reference: Path,
    candidate: Path,
    text: str,
    settings: ConvertSettings,
    progress: Progress | None,
) -> PlacedQuality:
    with Model(reference) as fine, Model(candidate) as coarse, interruptible():
        tokens = fine.vocab.tokenize(text, parse_special=False)
        window = min(_WINDOW, fine.n_ctx_train or _WINDOW, max(2, len(tokens)))
        windows = WindowSettings(settings.n_threads, window, _COMPARED_WINDOWS)
        try:
            result: Divergence = compare_models(
                Subject(fine), Subject(coarse), tokens, windows, progress
            )
        except EvaluateError as error:
            raise SourceError(f"the held-out end of the calibration text: {error}") from error
    return PlacedQuality(
        perplexity=result.candidate.value,
        reference_perplexity=result.reference.value,
        kl=result.mean_kl,
        top1=result.top1,
        n_tokens=result.n_tokens,
    )


def _keep(matrix: ImportanceMatrix, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    try:
        write_imatrix(matrix, part)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SourceError(f"--imatrix {path}: cannot be written: {error.strerror}") from error
