"""Before a batch: the plan of a file with many sequences, and how many of them are worth it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from infer_os.native.backend import faster_layouts, kernel_status, layout_notes
from infer_os.native.gguf_file import GgufHeader
from infer_os.native.model import LOAD_MODES

from ..choice import automatic_schedule, smallest_schedule
from ..kv_schedule import KvModel, KvSchedule, KvStage, choose_schedule
from ..machine import read_memory
from ..plan import Budget, Plan, Planner, Sizes, check_plan
from ..prepare import choose_context
from ..settings import EngineSettings
from ..shapes import header_shape
from .drafts import MOST_GUESSING, BatchDraft
from .scheduler import output_rows

#: Rows that a step computes at most.
N_BATCH = 512
#: What a batch keeps besides what any process does: records, answers, samplers, its arrays, and the
#: pages of our kernels and of what reads grammars (measured: 7.8 MB at most, with 300 prompts).
BATCH_BYTES = 10_000_000
#: Numbers of sequences that are tried; a step has at least 8 rows in any case.
CANDIDATES = (8, 16, 32)
#: A larger number must give so much more throughput.
_WORTH = 1.05
_REPEATS = 3
_LONGEST_S = 10.0


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Tokens per second of decode steps of so many sequences."""

    n_seq: int
    tokens_per_s: float


def plan_batch(
    header: GgufHeader,
    settings: EngineSettings,
    kv: KvModel,
    n_seq: int,
    draft: BatchDraft | None = None,
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of ``n_seq`` sequences, and notes; it need not fit.

    A batch has one context for its whole life, and so one type: that of the last stage, which is
    the one that holds a whole sequence.

    Raises:
        GgufError: a size in the header that is no number.
        SettingsError: a context or a cache that is not possible for this model.
    """
    n_ctx, notes = choose_context(header, settings.context)
    shape = header_shape(header)
    limit = settings.memory or read_memory().usable
    sizes = Sizes(n_ctx, n_seq, N_BATCH, n_outputs(n_seq), settings.n_threads)
    budget = Budget(limit, repacked=faster_layouts(kernel_status(settings.native)))
    planner = Planner(shape, sizes, budget, draft.shape if draft else None)
    if settings.kv == "auto" and not settings.kv_budget:
        schedule = automatic_schedule(planner, shape.options[0], settings.load)
        schedule = schedule or smallest_schedule(planner)
    else:
        schedule, kv_notes = choose_schedule(settings.kv, settings.kv_budget, kv, n_ctx, n_seq)
        notes = (*notes, *kv_notes)
        n_ctx = schedule.n_ctx
        planner = replace(planner, sizes=replace(sizes, n_ctx=n_ctx))
    last = schedule.stages[-1]
    if len(schedule.stages) > 1:
        notes = (
            *notes,
            f"--kv {schedule.spec}: a batch keeps one type throughout, that of the last stage: "
            f"{last.name}",
        )
    if LOAD_MODES[settings.load].repack:
        kinds = (t.type.name for t in header.tensors)
        notes = (*notes, *layout_notes(kinds, kernel_status(settings.native)))
    single = KvSchedule((KvStage(last.type_k, last.type_v, n_ctx),))
    plan = planner.plan(shape.options[0], single, settings.load)
    # every sequence that may have guesses opens the draft for itself
    drafts = plan.draft * min(MOST_GUESSING, n_seq)
    return replace(plan, process=plan.process + BATCH_BYTES, draft=drafts), notes


def n_outputs(n_seq: int) -> int:
    """Rows of logits that a decode step may have, fillers included."""
    return output_rows(n_seq)


def most_that_fit(
    header: GgufHeader, settings: EngineSettings, kv: KvModel, draft: BatchDraft | None = None
) -> tuple[int, Plan, tuple[str, ...]]:
    """The largest of the candidates whose plan fits, or 1, with its plan and notes.

    Raises:
        MemoryShortage: not even one sequence fits.
    """
    for n_seq in (*reversed(CANDIDATES), 4, 2, 1):
        plan, notes = plan_batch(header, settings, kv, n_seq, draft)
        if plan.fits:
            return n_seq, plan, notes
    check_plan(plan)
    raise AssertionError("unreachable: a plan that does not fit is refused")


def measure_curve(
    most: int,
    step: Callable[[int], None],
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[CurvePoint, ...]:
    """Throughput of decode steps of 8, 16, ... sequences, until it stops growing.

    Args:
        most: sequences that there are.
        step: computes a decode step of so many sequences.
        clock: seconds.
    """
    curve: list[CurvePoint] = []
    started = clock()
    for n_seq in [n for n in CANDIDATES if n < most] + [most]:
        step(n_seq)  # warms up
        best = float("inf")
        for _ in range(_REPEATS):
            before = clock()
            step(n_seq)
            best = min(best, clock() - before)
            if clock() - started > _LONGEST_S:
                break
        curve.append(CurvePoint(n_seq, n_seq / best))
        if len(curve) > 1 and curve[-1].tokens_per_s < _WORTH * curve[-2].tokens_per_s:
            break
    return tuple(curve)


def best_parallel(curve: tuple[CurvePoint, ...]) -> int:
    """The number from which on more sequences give no more throughput."""
    best = curve[0]
    for point in curve[1:]:
        if point.tokens_per_s < _WORTH * best.tokens_per_s:
            break
        best = point
    return best.n_seq
