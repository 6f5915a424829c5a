"""Before a batch: the plan of a file with many sequences, and how many of them pay."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from infer_os.native.backend import kernel_status, layout_notes
from infer_os.native.gguf_file import GgufHeader
from infer_os.native.model import LOAD_MODES

from ..plan.budget import own_budget
from ..plan.memory_plan import Plan, check_plan
from ..plan.shapes import header_shape
from ..plan.use import Use, plan_use
from ..settings import EngineSettings, Extra
from .drafts import BatchDraft

#: Numbers of sequences to try; a step has at least 8 rows in any case.
CANDIDATES = (8, 16, 32)
#: A larger number must give this much more throughput.
_WORTH = 1.05
_REPEATS = 3
_LONGEST_S = 10.0


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Tokens per second of decode steps of ``n_seq`` sequences."""

    n_seq: int
    tokens_per_s: float


def plan_batch(
    header: GgufHeader,
    settings: EngineSettings,
    parallel: int,
    draft: BatchDraft | None = None,
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of ``parallel`` sequences and the slots they get, and notes; it need not fit.

    A batch has one context for its whole life, and so one type: that of the last stage, which
    holds a whole sequence.

    Raises:
        GgufError: a size in the header is not a number.
        SettingsError: a context or a cache that is not possible for this model.
    """
    budget = own_budget(settings.memory, native=settings.native)
    use = Use(settings, parallel, draft.shape if draft else None)
    shape = header_shape(header, constrained=Extra.CONSTRAINT in settings.extras)
    plan, notes = plan_use(shape, use, budget)
    if LOAD_MODES[settings.load].repack:
        kinds = (t.type.name for t in header.tensors)
        notes = (*notes, *layout_notes(kinds, kernel_status(settings.native)))
    return plan, notes


def first_plan(
    header: GgufHeader, settings: EngineSettings, parallel: int, draft: BatchDraft | None = None
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of what was asked for, or, with ``parallel`` 0, of the most that fit; and notes.

    Raises:
        MemoryShortage: it does not fit.
    """
    if not parallel:
        return most_that_fit(header, settings, draft)[1:]
    plan, notes = plan_batch(header, settings, parallel, draft)
    check_plan(plan)
    return plan, notes


def most_that_fit(
    header: GgufHeader, settings: EngineSettings, draft: BatchDraft | None = None,
    candidates: tuple[int, ...] = CANDIDATES,
) -> tuple[int, Plan, tuple[str, ...]]:  # fmt: skip
    """The largest of the candidates whose plan fits, or 4, 2 or 1, with its plan and notes.

    Raises:
        MemoryShortage: not even one sequence fits.
    """
    for n_seq in (*reversed(candidates), 4, 2, 1):
        plan, notes = plan_batch(header, settings, n_seq, draft)
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
        most: the most sequences.
        step: computes a decode step of a number of sequences.
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
    """The number of sequences beyond which throughput no longer grows."""
    best = curve[0]
    for point in curve[1:]:
        if point.tokens_per_s < _WORTH * best.tokens_per_s:
            break
        best = point
    return best.n_seq
