"""``infer-os plan`` and ``infer-os system``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..terminal import console
from . import completing, options
from .typed_numbers import count_option, size_option, whole

_PlanDraft = Annotated[
    str,
    typer.Option(
        "--draft", metavar="MODEL|auto|lookup|none",
        help="Plan for this draft model as well; auto: the catalog's. lookup and none need no "
        "second model.",
    ),
]  # fmt: skip
_PlanParallel = Annotated[
    int | None,
    typer.Option(
        "--parallel", parser=whole, metavar="N",
        help="Sequences of a batch, each with its own context.",
        show_default="one text at a time",
    ),
]  # fmt: skip
_PlanKv = Annotated[
    str,
    typer.Option(
        "--kv", metavar="SPEC|auto", help="Types of the KV cache, as for generate; auto: the "
        "finest that fits.",
    ),
]  # fmt: skip
_PlanLoad = Annotated[
    str,
    typer.Option(
        "--load", metavar="mmap|fast|locked|direct",
        help="How the weights are loaded, as for generate.", show_default="chosen",
        autocompletion=completing.load_modes,
    ),
]  # fmt: skip


def plan(
    model: options.PlanModel,
    lora: options.Lora = None,
    memory: options.Memory = "",
    context: options.Context = None,
    type: Annotated[
        str | None,
        typer.Option("--type", metavar="T", help="Type of the weights.", show_default="chosen"),
    ] = None,
    kv: _PlanKv = "auto",
    kv_budget: options.KvBudget = "",
    load: _PlanLoad = "",
    draft: _PlanDraft = "none",
    parallel: _PlanParallel = None,
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
