"""``infer-os eval``."""

from __future__ import annotations

from ..terminal import console
from . import measuring, options
from .typed_numbers import count_option, size_option


def evaluate(
    models: measuring.EvalModels = None,
    lora: options.Lora = None,
    text: measuring.EvalText = None,
    reference: measuring.Reference = "",
    types: measuring.Types = "",
    kv: measuring.EvalKv = None,
    window: measuring.Window = 512,
    windows: measuring.Windows = 32,
    rows: options.RowsFile = None,
    report: measuring.Report = None,
    memory: options.Memory = "",
    threads: options.Threads = None,
    as_json: options.Json = False,
) -> None:
    """Measure perplexity, and agreement with a reference.

    Agreement means KL divergence, and how often the likeliest token is the same.

    Example: infer-os eval models/bundled/austen-6m --types q8_0,q4_0 --kv f16,q8_0
    """  # fmt: skip
    from ..measure.bench import Output
    from ..measure.evaluation import EvalRequest, parse_types, run_eval
    from ..measure.quality import QualitySettings
    from ..measure.report_page import check_outputs
    from ..measure.settings import split_specs
    from ..runtime.settings import Extra
    from ..store.reporter import Reporter
    from ..terminal import render_bench

    work = {Extra.EVALUATION} | ({Extra.REPORT} if report else set())
    request = EvalRequest(
        tuple(models or ()), text, reference, parse_types(types),
        split_specs("--kv", tuple(kv or ("f16",))),
        QualitySettings(window, windows, count_option("threads", threads)),
        size_option("--memory", memory), frozenset(work), tuple(lora or ()),
    )  # fmt: skip
    check_outputs(rows, report)
    with console.progress_steps() as steps:
        output = Output(Reporter(console.note, console.progress_bar), steps)
        result = run_eval(request, measuring.command_line(), output)
    shown = render_bench.quality_json(result.rows, result.place, result.notes) if as_json else None
    measuring.deliver(result, rows, report, shown)
