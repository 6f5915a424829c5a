"""``infer-os plan`` and ``infer-os system``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..terminal import console
from . import options
from .typed_numbers import count_option, size_option


def plan(
    model: options.PlanModel,
    lora: options.Lora = None,
    memory: options.Memory = "",
    context: options.Context = None,
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="T", help="Type of the weights.", show_default="chosen"),
    ] = None,
    kv: options.PlanKv = "auto",
    kv_budget: options.KvBudget = "",
    load: options.Load = "",
    draft: options.PlanDraft = "none",
    parallel: options.PlanParallel = None,
    threads: options.Threads = None,
    no_native: options.NoNative = False,
    as_json: options.Json = False,
) -> None:
    """Show what a model will take, what fits, and what to choose. Nothing is loaded or downloaded.

    Example: infer-os plan gpt-j-6B --memory 8GB --context 2048
    """  # fmt: skip
    from ..runtime.settings import EngineSettings
    from ..store.planning import PlanRequest, make_answer
    from ..terminal import render_plan

    settings = EngineSettings(
        count_option("context", context), load or "mmap", count_option("threads", threads), kv,
        size_option("--kv-budget", kv_budget),
        size_option("--memory", memory), native=not no_native,
    )  # fmt: skip
    request = PlanRequest(model, settings, load, type, draft, parallel, tuple(lora or ()))
    answer = make_answer(request)
    if as_json:
        console.answer_json(render_plan.plan_json(answer))
    else:
        render_plan.show_answer(answer)


def system(as_json: options.Json = False) -> None:
    """Check this machine, and rank the known models on it.

    Looks at its memory, limits, processor and bandwidth.
    """
    from ..store.planning import make_report
    from ..terminal import render_plan

    report = make_report()
    if as_json:
        console.answer_json(render_plan.system_json(report))
    else:
        render_plan.show_system(report)
