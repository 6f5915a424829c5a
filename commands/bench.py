"""``infer-os bench``."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ..runtime.settings import EngineSettings, Extra
from ..terminal import console
from . import loading, measuring, options
from .groups import grouped

if TYPE_CHECKING:
    from ..measure.bench import BenchRequest, BenchResult


@grouped()
def bench(
    *,
    model: measuring.BenchModel = "",
    type: options.ModelType = "",
    lora: options.Lora = None,
    techniques: measuring.Techniques = False,
    baseline: measuring.Baseline = None,
    depths: measuring.Depths = "",
    batch: measuring.Batches = "",
    compare_kv: measuring.CompareKv = None,
    repeats: measuring.Repeats = 3,
    prompt_tokens: measuring.PromptTokens = 128,
    tokens: measuring.Tokens = 32,
    rows: options.RowsFile = None,
    report: measuring.Report = None,
    settings: EngineSettings,
    as_json: options.Json = False,
) -> None:
    """Measure speed and memory, with medians and quartiles.

    Example: infer-os bench gpt-j-6B --depths 0,512 --rows rows.jsonl
    """  # fmt: skip
    from ..measure.bench import BenchRequest
    from ..measure.report_page import check_outputs
    from ..measure.settings import (
        MOST_DEPTH,
        MOST_SEQUENCES,
        BenchSettings,
        parse_counts,
        split_specs,
    )
    from ..store.wish import ModelWish
    from ..terminal import render_bench

    sizes = BenchSettings(
        parse_counts("--depths", depths, 0, MOST_DEPTH),
        parse_counts("--batch", batch, 1, MOST_SEQUENCES),
        repeats, prompt_tokens, tokens,
    )  # fmt: skip
    kvs = split_specs("--compare-kv", tuple(compare_kv or ()))
    _check_together(techniques, settings, {
        "--batch": batch, "--compare-kv": kvs, "--baseline": baseline, "--lora": lora,
        "MODEL": model,
    })  # fmt: skip
    wish = ModelWish(model or "", type, tuple(lora or ()))  # an unknown type is an error first
    check_outputs(rows, report)
    work = {Extra.BENCH} | ({Extra.REPORT} if report else set())
    settings = replace(settings, extras=settings.extras | work)
    request = BenchRequest(wish if model else None, settings, sizes, kvs, baseline, type or "q8_0")
    result = _measure(request, techniques)
    shown = render_bench.result_json(result.rows, result.place, result.notes) if as_json else None
    measuring.deliver(result, rows, report, shown)


def _check_together(techniques: bool, settings: EngineSettings, given: dict[str, object]) -> None:
    from ..runtime.errors import SettingsError

    if given["--lora"] and not given["MODEL"]:
        raise SettingsError("--lora adds an adapter to a MODEL; name one")
    idle = [name for name in ("--batch", "--compare-kv", "--lora") if techniques and given[name]]
    if techniques and (settings.kv or settings.kv_budget):
        idle.append("--kv")
    if not techniques and given["--baseline"]:
        raise SettingsError("--baseline has no effect without --techniques; drop one of them")
    if idle:
        raise SettingsError(f"{idle[0]} has no effect with --techniques; drop one of them")
    if settings.kv and given["--compare-kv"]:
        raise SettingsError("--kv and --compare-kv: give one of them")


def _measure(request: BenchRequest, techniques: bool) -> BenchResult:
    from ..measure.bench import Output, bench_speed, bench_techniques
    from ..store.reporter import Reporter

    command = measuring.command_line()
    with console.progress_steps() as steps:
        output = Output(Reporter(console.note, console.progress_bar), steps)
        if techniques:
            return bench_techniques(request, command, output)
        return bench_speed(request, command, loading.load_engine, output)
