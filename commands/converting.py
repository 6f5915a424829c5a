"""The options of ``convert``, and the record that they make."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import completing, options
from .loading import reporter
from .typed_numbers import count_option, number, size_option

if TYPE_CHECKING:
    from ..convert.calibrated import CalibrationSettings
    from ..convert.mixture import WeightBudget
    from ..convert.settings import ConvertSettings

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="A checkpoint folder, a catalog name (gpt-j-6B) or a hub id (EleutherAI/gpt-j-6B);"
        " a folder of that name wins. Or an old ggml file of GPT-J (.bin), with --tokenizer.",
        show_default=False,
        autocompletion=completing.model_names,
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "-o",
        "--output",
        metavar="FILE",
        help="The GGUF file to write.",
        show_default="SOURCE's name and the type, in this folder",
    ),
]
ConvertType = Annotated[
    str | None,
    typer.Option(
        "--type",
        metavar="T",
        help="f32, f16, q8_0, q4_0, ... (a wrong one lists all); auto: the finest that fits "
        "into this machine's memory.  [default: q4_0]",
        show_default=False,
        autocompletion=completing.type_names,
    ),
]
Bits = Annotated[
    float | None,
    typer.Option(
        "--bits",
        parser=number,
        metavar="N",
        help="Instead of --type: choose a type for each matrix so that the file has at most N bits "
        "per weight and loses the least. Needs --calibrate, or the --statistics of such a run.",
        show_default=False,
    ),
]
Size = Annotated[
    str,
    typer.Option(
        "--size",
        metavar="SIZE",
        help="Like --bits, but with the largest size that the file may have, such as 10GB.",
        show_default=False,
    ),
]
Calibrate = Annotated[
    Path | None,
    typer.Option(
        "--calibrate",
        metavar="TEXT",
        help="Run the model over a text first and quantize by its activations; the end of the "
        "text measures the benefit.",
        show_default=False,
    ),
]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="M",
        help="What the text is used for. gptq: rounding makes up for earlier rounding errors; "
        "imatrix: important columns weigh more; auto: gptq where the text is long enough.",
    ),
]
Statistics = Annotated[
    Path | None,
    typer.Option(
        "--statistics",
        metavar="DIR",
        help="A folder of statistics for gptq; with --calibrate, the folder to save them in, where "
        "an interrupted run continues.",
        show_default=False,
    ),
]
StatisticsMemory = Annotated[
    str,
    typer.Option(
        "--memory",
        metavar="SIZE",
        help="With --calibrate: memory for statistics. With less, the text is read more often, "
        "and the file is the same.  [default: 2GB]",
        show_default=False,
    ),
]
Imatrix = Annotated[
    Path | None,
    typer.Option(
        "--imatrix",
        metavar="FILE",
        help="An importance matrix (llama.cpp's GGUF form) to weight with; with --calibrate, "
        "the file to save it to.",
        show_default=False,
    ),
]
FoldRotation = Annotated[
    bool,
    typer.Option(
        "--fold-rotation",
        help="Fold a rotation into the attention weights, so that a quantized KV cache loses "
        "less; the model computes the same function.",
    ),
]
Tokenizer = Annotated[
    Path | None,
    typer.Option(
        "--tokenizer",
        metavar="DIR",
        help="The folder of the tokenizer, for an old ggml file of GPT-J, which has none.",
        show_default=False,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing output.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Only plan: show sizes and types, write nothing.")
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify", help="Read the file back, compare it with its source, run a few tokens."
    ),
]
KeepSource = Annotated[
    bool,
    typer.Option(
        "--keep-source",
        help="Keep the downloads, in ~/.cache/infer-os or INFER_OS_CACHE; otherwise a shard is "
        "deleted once converted.",
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision",
        metavar="R",
        help="Branch, tag or commit on the hub.",
        show_default="the catalog's, else main",
    ),
]


@dataclass(frozen=True, slots=True)
class Conversion:
    """A conversion as it was asked for.

    ``is_automatic`` says that the type was chosen for this machine. ``calibration`` is the text to
    run the model over, if any, and what it is used for.
    """

    settings: ConvertSettings
    is_automatic: bool
    calibration: CalibrationSettings | None


def conversion(
    source: Source,
    output: Output = None,
    type: ConvertType = None,
    bits: Bits = None,
    size: Size = "",
    calibrate: Calibrate = None,
    imatrix: Imatrix = None,
    method: Method = "auto",
    statistics: Statistics = None,
    memory: StatisticsMemory = "",
    rotate: FoldRotation = False,
    threads: options.Threads = None,
    force: Force = False,
    dry_run: DryRun = False,
    verify: Verify = False,
    keep_source: KeepSource = False,
    revision: Revision = None,
    lora: options.Lora = None,
    tokenizer: Tokenizer = None,
) -> Conversion:
    """What the options ask for.

    Raises:
        UnsupportedError, SettingsError: options that cannot work.
        SourceError: a source that cannot be one.
    """
    from ..convert.settings import ConvertSettings
    from ..store.lora import fetch_adapters
    from ..store.resolve import find_checkpoint

    if calibrate is None and (method != "auto" or memory):
        option = "--memory" if memory else f"--method {method}"
        from ..runtime.errors import SettingsError

        raise SettingsError(f"{option} has no effect without --calibrate; drop it")
    budget = _budget(type, bits, size)
    is_automatic = type is not None and type.lower() == "auto"
    settings = ConvertSettings(
        find_checkpoint(source, revision), output, "q4_0" if is_automatic else type or "q4_0",
        count_option("threads", threads), force, dry_run, verify, keep_source,
        None if calibrate else imatrix, None if calibrate else statistics, rotate,
        fetch_adapters(lora or (), reporter()),
        tokenizer, budget,
    )  # fmt: skip
    if is_automatic:
        from ..store.planning import finest_type

        settings = replace(settings, type=finest_type(settings.source))
    if calibrate is None:
        return Conversion(settings, is_automatic, None)
    from ..convert.calibrated import CalibrationSettings
    from ..convert.collecting import DEFAULT_MEMORY

    n_bytes = size_option("--memory", memory) or DEFAULT_MEMORY
    calibration = CalibrationSettings(calibrate, imatrix, method, statistics, n_bytes)
    return Conversion(settings, is_automatic, calibration)


def _budget(type: str | None, bits: float | None, size: str) -> WeightBudget | None:
    """How large the file may be, if that is what was asked for.

    Raises:
        SettingsError: more than one of the three options.
        UnsupportedError: a number that cannot be.
    """
    given = [("--type", type is not None), ("--bits", bits is not None), ("--size", bool(size))]
    names = [name for name, is_given in given if is_given]
    if len(names) > 1:
        from ..runtime.errors import SettingsError

        raise SettingsError(f"{' and '.join(names)}: each decides the types; drop all but one")
    if bits is None and not size:
        return None
    from ..convert.mixture import WeightBudget

    return WeightBudget(bits or 0.0, size_option("--size", size))
