"""``infer-os bench``."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .. import console
from ..runtime.settings import EngineSettings
from . import loading, options
from .groups import grouped

if TYPE_CHECKING:
    from ..benching import BenchRequest, BenchResult


@grouped()
def bench(
    *,
    model: Annotated[
        str,
        typer.Argument(
            metavar="[MODEL]",
            help="As for generate; without one, the bundled model.",
            show_default=False,
        ),
    ] = "",
    type: options.ModelType = "",
    techniques: Annotated[
        bool,
        typer.Option(
            "--techniques",
            help="Each technique alone and all together against FP16 weights, one token at a time, "
            "with a loop that copies rows; beside what is claimed of them.",
        ),
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(
            "--baseline",
            metavar="FILE",
            help="With --techniques and a MODEL that is a file: its FP16 weights.",
            show_default=False,
        ),
    ] = None,
    depths: Annotated[
        str,
        typer.Option(
            "--depths",
            metavar="N,N,...",
            help="Tokens that are held before what is measured; "
            "of --techniques, the last is the length of the prompt.",
            show_default="0,512,1024,2048, as far as the context reaches",
        ),
    ] = "",
    batch: Annotated[
        str,
        typer.Option(
            "--batch",
            metavar="N,N,...",
            help="Sequences that are decoded together.",
            show_default="1,2,4,8,16,32",
        ),
    ] = "",
    compare_kv: Annotated[
        list[str] | None,
        typer.Option(
            "--compare-kv",
            metavar="SPEC,SPEC,...",
            help="Caches to compare over depth, as of --kv, in turns; may be given several times.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[
        int, typer.Option("--repeats", metavar="N", help="Rounds, after one that warms up.")
    ] = 3,
    prompt_tokens: Annotated[
        int, typer.Option("--prompt-tokens", metavar="N", help="Tokens of a prefill.")
    ] = 128,
    tokens: Annotated[
        int, typer.Option("--tokens", metavar="N", help="Tokens that are decoded one by one.")
    ] = 32,
    rows: options.RowsFile = None,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report",
            metavar="DIR",
            help="Write DIR/index.html with plots and tables; needs infer-os[plot].",
            show_default=False,
        ),
    ] = None,
    settings: EngineSettings,
    as_json: options.Json = False,
) -> None:
    """Measure speed and memory, with medians and quartiles.

    Example: infer-os bench gpt-j-6B --depths 0,512 --rows rows.jsonl
    """  # fmt: skip
    from ..benching import BenchRequest
    from ..model_store import ModelWish
    from ..runtime.benchmark.report import check_outputs, write_report, write_rows
    from ..runtime.benchmark.settings import (
        MOST_SEQUENCES,
        BenchSettings,
        parse_counts,
        split_specs,
    )

    sizes = BenchSettings(
        parse_counts("--depths", depths, 0, 1 << 20),
        parse_counts("--batch", batch, 1, MOST_SEQUENCES),
        repeats, prompt_tokens, tokens,
    )  # fmt: skip
    kvs = split_specs("--compare-kv", tuple(compare_kv or ()))
    _check_together(techniques, settings, {
        "--batch": batch, "--compare-kv": kvs, "--baseline": baseline,
    })  # fmt: skip
    wish = ModelWish(model, type) if model else None
    if wish is None:
        ModelWish("", type)  # an unknown type is said before anything is converted
    check_outputs(rows, report)
    request = BenchRequest(wish, settings, sizes, kvs, baseline, type or "q8_0")
    result = _measure(request, techniques)
    if rows is not None:
        write_rows(rows, result.rows, result.place)
    if report is not None:
        page = write_report(report, result.rows, result.place, result.notes)
        console.note(f"wrote {page}")
    _show(result, as_json)


def _check_together(techniques: bool, settings: EngineSettings, given: dict[str, object]) -> None:
    from ..runtime.errors import SettingsError

    idle = [name for name in ("--batch", "--compare-kv") if techniques and given[name]]
    if techniques and (settings.kv or settings.kv_budget):
        idle.append("--kv")
    if not techniques and given["--baseline"]:
        raise SettingsError("--baseline has no effect without --techniques; drop one of them")
    if idle:
        raise SettingsError(f"{idle[0]} has no effect with --techniques; drop one of them")
    if settings.kv and given["--compare-kv"]:
        raise SettingsError("--kv and --compare-kv: give one of them")


def _measure(request: BenchRequest, techniques: bool) -> BenchResult:
    from ..benching import Output, bench_speed, bench_techniques
    from ..model_store import Reporter

    command = shlex.join(["infer-os", *sys.argv[1:]])
    with console.progress_steps() as steps:
        output = Output(Reporter(console.note, console.progress_bar), steps)
        if techniques:
            return bench_techniques(request, command, output)
        return bench_speed(request, command, loading.load_engine, output)


def _show(result: BenchResult, as_json: bool) -> None:
    from .. import render_bench

    if as_json:
        console.answer_json(render_bench.result_json(result.rows, result.place, result.notes))
    else:
        render_bench.show_rows(result.rows)
        console.notes(result.notes)
