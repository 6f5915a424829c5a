"""Convert with statistics of activations collected in the same command, and measure the benefit.

Goes in: a checkpoint and a text. A fine intermediate file (removed afterwards) runs over the first
nine tenths of the text to collect the statistics; the last tenth, which was not used for that, then
shows how far the file is from the intermediate one with and without them. By the method, they are
second moments, which compensate errors (GPTQ), or an importance matrix, which weighs them.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from infer_os.files import take_name, working_folder
from infer_os.models.weight_types import Recipe
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import Divergence, Subject, WindowSettings, compare_models

from .calibrate import collect_importance, open_windows
from .collecting import DEFAULT_MEMORY, collect_statistics
from .errors import FileFormatError, OutputError, SourceError, UnsupportedError
from .gguf_writer import check_output, complete_file, part_path
from .imatrix import ImportanceMatrix, write_imatrix
from .mixture import WeightBudget
from .pipeline import chosen_recipe, convert
from .plain_file import read_start
from .report import CalibrationReport, ConversionReport, PlacedQuality
from .sensitivity import Sensitivity, measure_sensitivity, read_sensitivity, write_sensitivity
from .settings import ConvertSettings, refuse_idle_weights
from .source import HubSource
from .statistics import FEWEST_TOKENS, Statistics, is_compensated, refuse_idle_statistics
from .types import recipe_named

Progress = Callable[[int, int], None]
#: Called at the start of each step with its name; returns the callback for its progress.
Steps = Callable[[str], Progress | None]

# share of the text used to collect; the rest is used to compare
_CALIBRATION_SHARE = 0.9
# the intermediate file: its own loss is far below what is measured
_INTERMEDIATE = "q8_0"
_COMPARED_WINDOWS = 32
_WINDOW = 512
_SMALLEST_WINDOW = 16
_LARGEST_TEXT = 64 << 20
#: What a text can be used for.
METHODS = ("auto", "gptq", "imatrix")


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """The text, and where to keep what is collected from it (None: nowhere).

    ``method`` is "gptq", "imatrix", or "auto": the first where the type and the text allow it.
    ``statistics`` is a folder for second moments, ``matrix`` a file for the importance matrix;
    ``memory`` is how many bytes of moments to hold at a time.
    """

    text: Path
    matrix: Path | None = None
    method: str = "imatrix"
    statistics: Path | None = None
    memory: int = DEFAULT_MEMORY

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UnsupportedError(
                f"--method {self.method}: unknown; there are {', '.join(METHODS)}"
            )
        if self.method == "imatrix" and self.statistics is not None:
            raise UnsupportedError("--statistics has no effect with --method imatrix; drop one")


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
        OutputError: likewise; or only the matrix could not be kept, as the message then says.
    """
    if settings.dry_run:
        raise UnsupportedError("--calibrate has no effect with --dry-run; drop one of them")
    if isinstance(settings.source, HubSource) and not settings.keep_source:
        raise UnsupportedError(
            "--calibrate reads the checkpoint three times: add --keep-source, so that it is "
            "downloaded once"
        )
    method = _method(settings, calibration)
    seen, unseen = _split(calibration.text)
    target = settings.target
    _check_outputs(settings, calibration)
    check_output(target, _room(settings), force=settings.force, source=settings.folder)
    with _working_folder(target) as place:
        made = {name: Path(place, f"{name}.gguf") for name in ("fine", "without", "with")}
        plain = replace(settings, verify=False)
        fine = replace(plain, output=made["fine"], type=_INTERMEDIATE, budget=None)
        convert(fine, steps("intermediate file"))
        held_out = _held_out_tokens(made["fine"], unseen, calibration.text)
        collected = steps("calibrating")
        statistics, matrix = _weights(settings, calibration, made["fine"], seen, method, collected)
        method = "imatrix" if statistics is None else "gptq"
        recipe, predicted = _types(settings, statistics, made["fine"], seen, steps)
        convert(replace(plain, output=made["without"]), steps("without weights"), recipe=recipe)
        report = convert(
            replace(settings, output=made["with"]), steps("with weights"), matrix, statistics,
            recipe,
        )  # fmt: skip
        without, with_weights = (
            _quality(made["fine"], made[name], held_out, settings, steps(f"comparing {name}"))
            for name in ("without", "with")
        )
        # another process may have made the output in the minutes that this took
        _check_outputs(settings, calibration)
        take_name(made["with"], target)
    if calibration.matrix is not None:
        _keep(matrix, calibration.matrix, target)
    quality = CalibrationReport(
        calibration.text.name, matrix.chunk_count, without=without, with_weights=with_weights,
        method=method, predicted_kl=predicted,
    )  # fmt: skip
    if method == "imatrix" and calibration.method == "auto" and is_compensated(settings.type):
        note = f"method: auto: {calibration.text.name} is too short for gptq; weighted instead"
        report = replace(report, notes=(note, *report.notes))
    return replace(report, output=target, calibration=quality)


def _method(settings: ConvertSettings, calibration: CalibrationSettings) -> str:
    """What the text is used for, as far as the type decides it.

    Raises:
        UnsupportedError: it would have no effect on the type.
    """
    method = calibration.method
    if settings.budget is not None:
        if method == "imatrix":
            raise UnsupportedError(
                f"{settings.budget.option}: needs the statistics of --method gptq; drop --method"
            )
        return "gptq"
    if method == "gptq":
        refuse_idle_statistics("--method gptq", settings.type)
    elif method == "auto" and is_compensated(settings.type):
        return "gptq"
    else:
        refuse_idle_weights("--calibrate", settings.type)
    return "imatrix" if method == "auto" else method


def _weights(
    settings: ConvertSettings,
    calibration: CalibrationSettings,
    model: Path,
    text: str,
    method: str,
    progress: Progress | None,
) -> tuple[Statistics | None, ImportanceMatrix]:
    """What the text says: statistics if the method is gptq and it suffices for them, or weights.

    Raises:
        SourceError: it is too short.
    """
    if method == "gptq":
        statistics = _collected(settings, calibration, model, text, progress)
        if settings.budget is not None or statistics.suffices:
            return statistics, statistics.importance
        _refuse_short(statistics, settings, calibration)
        return None, statistics.importance
    matrix = collect_importance(model, text, n_threads=settings.n_threads, progress=progress)
    return None, replace(matrix, datasets=(calibration.text.name,))


def _types(
    settings: ConvertSettings,
    statistics: Statistics | None,
    model: Path,
    text: str,
    steps: Steps,
) -> tuple[Recipe | None, float]:
    """The types that a budget allows, and the loss they should have; None without a budget."""
    if settings.budget is None or statistics is None:
        return None, 0.0
    measured = _sensitivity(settings, settings.budget, statistics, model, text, steps)
    return chosen_recipe(settings, statistics, measured)


def _collected(
    settings: ConvertSettings,
    calibration: CalibrationSettings,
    model: Path,
    text: str,
    progress: Progress | None,
) -> Statistics:
    """Second moments, in the folder that is to keep them or next to the intermediate file."""
    return collect_statistics(
        model, text, calibration.statistics or model.with_name("statistics"),
        dataset=calibration.text.name, n_threads=settings.n_threads, memory=calibration.memory,
        force=settings.force, progress=progress,
    )  # fmt: skip


def _sensitivity(
    settings: ConvertSettings,
    budget: WeightBudget,
    statistics: Statistics,
    model: Path,
    text: str,
    steps: Steps,
) -> Sensitivity:
    """What every matrix loses in every type; measured once, and kept with the statistics."""
    with contextlib.suppress(FileFormatError):
        return read_sensitivity(statistics, budget)
    with open_windows(model, text, n_threads=settings.n_threads) as (_, windows, _):
        pass
    found = measure_sensitivity(
        model, statistics, windows, model.parent, n_threads=settings.n_threads, steps=steps
    )
    write_sensitivity(found, statistics.folder)
    return found


def _refuse_short(
    statistics: Statistics, settings: ConvertSettings, calibration: CalibrationSettings
) -> None:
    """Refuse a text that is too short for every matrix, unless an importance matrix will do.

    Raises:
        SourceError: compensation was asked for, or weights alone have no effect on the type.
    """
    if calibration.method == "gptq" or not recipe_named(settings.type).is_weighted:
        raise SourceError(
            f"--calibrate {calibration.text}: too short for gptq: {statistics.n_tokens} tokens; "
            f"the narrowest matrix needs {statistics.fewest_tokens} ({FEWEST_TOKENS} per column)"
        )


def _check_outputs(settings: ConvertSettings, calibration: CalibrationSettings) -> None:
    """Check that both files can be made, and that text, model and matrix are different files.

    Raises:
        OutputError: they cannot, or are not.
    """
    target, matrix = settings.target, calibration.matrix
    check_output(target, 0, force=settings.force, source=settings.folder)
    places = [("-o", target), ("--calibrate", calibration.text)]
    if matrix is not None:
        check_output(matrix, 0, force=settings.force, source=settings.folder)
        places.append(("--imatrix", matrix))
    for (option, one), (other, two) in itertools.combinations(places, 2):
        if one.resolve() == two.resolve():
            raise OutputError(f"{option} and {other} name the same file: {two}; name two")


def _room(settings: ConvertSettings) -> int:
    """Bytes on the disk: the intermediate file, and the file without weights and with them."""
    plan = replace(settings, dry_run=True, verify=False, keep_source=False, budget=None)
    fine = convert(replace(plan, type=_INTERMEDIATE)).n_bytes
    if settings.budget is not None:
        return 4 * fine  # a copy to probe with, and files of sizes that are not known yet
    return fine + 2 * convert(replace(plan, type=settings.type)).n_bytes


@contextmanager
def _working_folder(target: Path) -> Iterator[Path]:
    """A folder next to the output, where there is disk space for it.

    Raises:
        OutputError: it cannot be made, or the disk failed.
    """
    try:
        with working_folder(target) as place:
            yield place
    except OSError as error:
        raise OutputError(f"{target}: cannot be written: {error.strerror or error}") from error


def _split(path: Path) -> tuple[str, str]:
    """The texts to collect from and to compare on, cut at a line's end if one is near.

    Raises:
        SourceError: it cannot be read, or too little is left to compare with.
    """
    try:
        text = read_start(path, _LARGEST_TEXT).decode("utf-8", "replace")
    except OSError as error:
        raise SourceError(f"--calibrate {path}: cannot be read: {error.strerror}") from error
    cut = int(len(text) * _CALIBRATION_SHARE)
    end = text.find("\n", cut, cut + len(text) // 20)
    cut = end + 1 if end >= 0 else cut
    # no token is shorter than a byte
    n_bytes = len(text[cut:].encode())
    if n_bytes < _SMALLEST_WINDOW:
        raise SourceError(
            f"--calibrate {path}: too short: its last tenth, which is held out, has {n_bytes} "
            f"bytes; expected at least {_SMALLEST_WINDOW}"
        )
    return text[:cut], text[cut:]


def _held_out_tokens(model: Path, text: str, path: Path) -> list[int]:
    """The text to compare on, as tokens.

    Raises:
        SourceError: there is too little of it.
    """
    with LlamaModel(model, vocab_only=True) as loaded:
        tokens = loaded.vocab.tokenize(text, parse_special=False)
    if len(tokens) < _SMALLEST_WINDOW:
        raise SourceError(
            f"--calibrate {path}: too short: its last tenth, which is held out, has {len(tokens)} "
            f"tokens; expected at least {_SMALLEST_WINDOW}"
        )
    return tokens


def _quality(
    reference: Path,
    candidate: Path,
    tokens: list[int],
    settings: ConvertSettings,
    progress: Progress | None,
) -> PlacedQuality:
    with LlamaModel(reference) as fine, LlamaModel(candidate) as coarse, interruptible():
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


def _keep(matrix: ImportanceMatrix, path: Path, target: Path) -> None:
    """Write the matrix, after the model.

    Raises:
        OutputError: it cannot be written; the model is complete.
    """
    try:
        with complete_file(path):
            write_imatrix(matrix, part_path(path))
    except (OSError, OutputError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(
            f"--imatrix {path}: cannot be written: {reason}; {target} is complete"
        ) from error
