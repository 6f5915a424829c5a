"""Open a model as the settings say: alone, or with drafters."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from infer_os.native.backend import exact_context
from infer_os.native.gguf_file import GgufHeader
from infer_os.native.graph_check import read_model_header
from infer_os.sizes import count_text

from .engine import LlamaEngine
from .plan.shapes import header_shape
from .settings import EngineSettings
from .speculative.draft import Drafter
from .speculative.lookup import LookupDrafter
from .speculative.model_drafter import ModelDrafter
from .speculative.speculation import Speculation
from .speculative.stored import cost_store
from .speculative.vocabularies import shared_tokens


def open_engine(
    path: Path,
    settings: EngineSettings,
    *,
    progress: Callable[[float], None] | None = None,
    warmed: Callable[[int, int], None] | None = None,
    cache: Path | None = None,
) -> LlamaEngine:
    """Load a model, and its draft if the settings name one.

    Args:
        path: a GGUF file.
        settings: how; ``draft`` may be a GGUF file.
        progress: called with 0.0 to 1.0 while llama.cpp loads.
        warmed: called with bytes done and in all while the file is prefetched.
        cache: a folder that keeps the measured costs of verifications.

    Raises:
        GgufError: a file cannot be used.
        SettingsError: the context is not possible, or the draft has other tokens.
        MemoryShortage: both together do not fit.
        ModelLoadError: llama.cpp refuses one of them.
    """
    if settings.draft == "none":
        return LlamaEngine(path, settings, progress=progress, warmed=warmed)
    store = cost_store(cache, path, settings) if cache is not None and path.exists() else None
    drafters: list[tuple[Drafter, bool]] = [(LookupDrafter(), True)]
    if settings.draft == "lookup":
        engine = LlamaEngine(path, settings, progress=progress, warmed=warmed)
        engine.speculation = Speculation(drafters, settings.draft_max, store)
        engine.info = replace(engine.info, notes=(*engine.info.notes, *_limits(engine)))
        return engine
    target, draft = read_model_header(path), read_model_header(Path(settings.draft))
    shared = shared_tokens(target, draft)
    notes = _warnings(target, draft)
    with ExitStack() as stack:
        engine = stack.enter_context(
            LlamaEngine(path, settings, progress=progress, warmed=warmed, draft=header_shape(draft))
        )
        # the plan for both was checked; on its own, the draft has the target's limit
        theirs = replace(
            settings, draft="none", kv="", kv_budget=0, prefetch=False, adapters=(),
            context=min(engine.n_ctx, exact_context(engine.info.kernels, draft)),
        )  # fmt: skip
        helper = stack.enter_context(LlamaEngine(draft.path, theirs))
        drafters.append((ModelDrafter(helper, shared), False))
        engine.speculation = Speculation(drafters, settings.draft_max, store)
        engine.info = replace(engine.info, notes=(*engine.info.notes, *notes, *_limits(engine)))
        stack.pop_all()
    return engine


def _limits(engine: LlamaEngine) -> tuple[str, ...]:
    """A note if guesses could change the text; see :mod:`.speculative.rounding`."""
    plan = engine.info.plan
    stages = plan.schedule.stages if plan else ()
    reasons = (
        engine.rounding.why_unlike((stage.type_k, stage.type_v), stage.n_cells) for stage in stages
    )
    reason = next(filter(None, reasons), "")
    if not reason:
        return ()
    return (
        f"--draft: with {reason}, llama.cpp's kernels round a batch differently from single "
        "tokens, so greedy, seeded and constrained text is written without guesses there",
    )


def _warnings(target: GgufHeader, draft: GgufHeader) -> tuple[str, ...]:
    if draft.n_params >= target.n_params:
        return (
            f"--draft {draft.path.name} has {count_text(draft.n_params)} parameters, no fewer than "
            f"the model itself ({count_text(target.n_params)}): its guesses will not pay",
        )
    return ()
