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
_SMALLEST_WINDOW = 16
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
        made = {name: Path(place, f"{name}.gguf") for name in ("fine", "without", "with")}
        plain = replace(settings, verify=False)
        fine = replace(plain, output=made["fine"], type=_INTERMEDIATE)
        convert(fine, steps("intermediate file"))
        held_out = _held_out_tokens(made["fine"], unseen)
        matrix = collect_importance(
            made["fine"], seen, n_threads=settings.n_threads, progress=steps("calibrating")
        )
        matrix = replace(matrix, datasets=(calibration.text.name,))
        convert(replace(plain, output=made["without"]), steps("without weights"))
        report = convert(replace(settings, output=made["with"]), steps("with weights"), matrix)
        without, with_weights = (
            _quality(made["fine"], made[name], held_out, settings, steps(f"comparing {name}"))
            for name in ("without", "with")
        )
        if calibration.matrix is not None:
            _keep(matrix, calibration.matrix)
        # nothing can fail any more: the file takes its name
        check_output(target, 0, force=settings.force)
        made["with"].replace(target)
    quality = CalibrationReport(
        calibration.text.name, matrix.chunk_count, without=without, with_weights=with_weights
    )
    return replace(report, output=target, calibration=quality)


def _split(path: Path) -> tuple[str, str]:
    """The text that collects and the text that compares, cut at a line's end if one is near."""
    try:
        with path.open("rb") as file:
            text = file.read(_LARGEST_TEXT).decode("utf-8", "replace")
    except OSError as error:
        raise SourceError(f"--calibrate {path}: cannot be read: {error.strerror}") from error
    cut = int(len(text) * _CALIBRATION_SHARE)
    end = text.find("\n", cut, cut + len(text) // 20)
    cut = end + 1 if end >= 0 else cut
    return text[:cut], text[cut:]


def _held_out_tokens(model: Path, text: str) -> list[int]:
    """The text that compares, as tokens.

    Raises:
        SourceError: there is too little of it.
    """
    with Model(model, vocab_only=True) as loaded:
        tokens = loaded.vocab.tokenize(text, parse_special=False)
    if len(tokens) < _SMALLEST_WINDOW:
        raise SourceError(
            f"--calibrate: the text is too short: its last tenth, which compares, has "
            f"{len(tokens)} tokens; expected at least {_SMALLEST_WINDOW}"
        )
    return tokens


def _quality(
    reference: Path,
    candidate: Path,
    tokens: list[int],
    settings: ConvertSettings,
    progress: Progress | None,
) -> PlacedQuality:
    with Model(reference) as fine, Model(candidate) as coarse, interruptible():
        window = min(_WINDOW, fine.n_ctx_train or _WINDOW, len(tokens))
        windows = WindowSettings(settings.n_threads, window, _COMPARED_WINDOWS)
        result: Divergence = compare_models(
            Subject(fine), Subject(coarse), tokens, windows, progress
        )
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
