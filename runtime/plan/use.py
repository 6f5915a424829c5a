"""What a process will do with a model, and the plan of that: one computation for every command.

Goes in: a model's shape, the settings it is loaded with, whether it is one text or a batch, what
else the process does (:class:`~..settings.Extra`), and a budget. Comes out: a plan, or the
:class:`~.memory_plan.Planner` of all plans in question. Nothing is read or loaded here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from infer_os.models.shape import ModelShape
from infer_os.native.backend import kernel_status, own_kernels
from infer_os.native.constraint import constraint_bytes
from infer_os.native.kv_state import KvFormat
from infer_os.native.scoring import evaluation_batch

from ..kv.schedule import KvSchedule, KvStage, choose_schedule, schedule_from_spec
from ..settings import EngineSettings, Extra
from .choice import Wish, choose
from .memory_plan import (
    VOCABULARY_BYTES,
    Beside,
    Budget,
    Plan,
    Planner,
    Sizes,
    kv_model,
)
from .positions import context_for
from .step_rows import MOST_GUESSING, output_rows, scoring_rows, slots_for

#: Most rows that a step of a batch computes.
N_BATCH = 512
#: A batch's records, answers and arrays, what each of its sequences adds, a sampler and a place in
#: the graph, and what drawing takes of each token of the vocabulary (measured with 1 to 32
#: sequences of full prompts, and with 2 k to 250 k tokens).
BATCH_BYTES, SEQUENCE_BYTES, _TOKEN_DRAWN = 4_000_000, 250_000, 40
#: Guessing: filters, counts and what verifies them. A draft model's context has a graph of its own.
GUESSING_BYTES, DRAFT_BYTES = 2_500_000, 2_000_000
#: What bringing adapters into a model's layout leaves behind: mostly modules of ``convert``.
ADAPTERS_READ = 5_000_000
#: What a second engine adds to its plan: a graph, and its part of the vocabulary.
ENGINE_BYTES = 4_000_000

_MB = 1_000_000


#: Bytes that other work leaves behind while the model runs (benchmarks/plan_peaks.py).
_LEFT = {
    Extra.CONVERSION: 5 * _MB, Extra.DOWNLOAD: 12 * _MB, Extra.SESSION: 5 * _MB,
    Extra.TERMINAL: 12 * _MB, Extra.PARQUET: 22 * _MB, Extra.BENCH: 12 * _MB,
    Extra.TEMPLATE: 22 * _MB, Extra.EVALUATION: 6 * _MB, Extra.SCORING: 7 * _MB,
    Extra.EMBEDDING: 1 * _MB, Extra.SEARCH: 2 * _MB,
    # 20 MB are log-probabilities of prompts
    Extra.SERVER: 50 * _MB,
}  # fmt: skip
#: What a conversion leaves behind per token of the vocabulary.
_TOKEN_LEFT = 140
#: Blocks of a conversion and the pages that it has read, before there is an engine; of a small
#: model all of it, but for what an engine would have taken.
_CONVERTING, _ENGINE_ALONE = 54 * _MB, 10 * _MB
#: Freed memory that the C library may keep: twice the largest M_MMAP_THRESHOLD of mallopt(3).
_KEPT_FREE = 64 * _MB
#: What drawing a report takes when the engines are closed.
_DRAWING = 50 * _MB


@dataclass(frozen=True, slots=True)
class Use:
    """How a model is used. ``parallel`` is a batch's setting; 0 is one text at a time.

    ``draft`` is the shape of a draft model, whose guesses the settings ask for.
    """

    settings: EngineSettings
    parallel: int = 0
    draft: ModelShape | None = None

    @property
    def n_seq(self) -> int:
        """Sequences to make room for."""
        return slots_for(self.parallel) if self.parallel else 1

    @property
    def n_drafts(self) -> int:
        """Times that the draft model is opened: for each sequence that may have guesses."""
        return 0 if self.draft is None else min(MOST_GUESSING, self.n_seq)

    def sizes(self, n_ctx: int) -> Sizes:
        """Of the context."""
        settings = self.settings
        rows = settings.n_outputs
        if self.parallel:
            # clients of a server may ask for log-probabilities of prompts
            scores = {Extra.SCORING, Extra.EMBEDDING, Extra.SERVER} & settings.extras
            rows = scoring_rows(self.n_seq) if scores else output_rows(self.n_seq)
            if Extra.SEARCH in settings.extras:  # a row of each text that is followed
                rows = self.n_seq
        return Sizes(n_ctx, self.n_seq, N_BATCH, rows, settings.n_threads, bool(settings.adapters))


def beside(shape: ModelShape, use: Use, budget: Budget) -> Beside:
    """What the process holds apart from the model, by name, and what only before or after it."""
    parts: list[tuple[str, int]] = []
    if use.parallel:
        # what these keep is counted as their own part, and nothing is drawn
        apart = {Extra.SCORING, Extra.EMBEDDING, Extra.SEARCH} & use.settings.extras
        once = 0 if apart else BATCH_BYTES + _TOKEN_DRAWN * shape.n_vocab
        parts.append(("records", once + SEQUENCE_BYTES * use.n_seq))
    if use.settings.draft != "none":
        parts.append(("guessing", GUESSING_BYTES + DRAFT_BYTES * use.n_drafts))
    if use.settings.adapters:
        parts.append(("adapters", sum(adapter.n_bytes for adapter in use.settings.adapters)))
        parts.append(("reading adapters", ADAPTERS_READ))
    passing = 0
    largest = max(option.n_bytes for option in shape.options)
    for extra in sorted(use.settings.extras, key=lambda extra: extra.name):
        if extra is Extra.TEMPLATE and not shape.has_template:
            continue
        if extra in _LEFT:
            tokens = _TOKEN_LEFT * shape.n_vocab if extra.converts else 0
            tables = budget.tables if extra is Extra.PARQUET else 0
            parts.append((extra.value, _LEFT[extra] + tokens + tables))
        if extra is Extra.SESSION and use.parallel:  # in one piece: llama.cpp copies no less
            n_ctx, _ = context_for(None, shape.name, shape.n_ctx_train, use.settings.context)
            form = KvFormat("f16", "f16")
            rows = form.token_bytes(kv_model(shape).geometry)
            parts.append(("kept prompt", rows * n_ctx))
        if extra is Extra.CONSTRAINT:
            parts.append((extra.value, constraint_bytes(shape.n_vocab, shape.n_places)))
        if extra.converts:
            passing = max(passing, min(_CONVERTING, largest - _ENGINE_ALONE))
        if extra is Extra.REPORT:
            passing = max(passing, _DRAWING)
    return Beside(tuple(parts), passing, use.n_drafts, bool(use.parallel))


def plan_bench(
    shape: ModelShape, use: Use, kvs: Sequence[str], batches: Sequence[Sizes], budget: Budget
) -> Plan:
    """The plan of a benchmark: an engine for each cache, all open at once, then many sequences.

    Args:
        shape: the model's.
        use: of one engine.
        kvs: SPECs of the caches that are compared; the first engine has the first of them.
        batches: contexts made one after another, once the engines are closed; F16.
        budget: what it may take.

    Raises:
        SettingsError: a cache that is not possible for this model.
    """
    plans = [
        plan_use(shape, replace(use, settings=replace(use.settings, kv=kv)), budget)[0]
        for kv in kvs or (use.settings.kv,)
    ]
    planner, _, _ = make_planner(shape, Use(EngineSettings()), budget)
    contexts = []
    for sizes in batches:
        cache = KvSchedule((KvStage("f16", "f16", sizes.n_ctx),))
        one = replace(planner, sizes=sizes)
        contexts.append(one.plan(shape.options[0], cache, use.settings.load))
    first, *others = plans
    more = sum(plan.total - plan.program + ENGINE_BYTES for plan in others)
    parts = (*first.beside.parts, *((("other caches", more),) if others else ()))
    sequences = max((plan.total - plan.program for plan in contexts), default=0)
    # small amounts that an engine frees stay with the C library
    kept = min(first.kv + first.compute, _KEPT_FREE)
    passing = max(first.beside.passing, sequences + BATCH_BYTES + kept - more)
    return replace(first, beside=replace(first.beside, parts=parts, passing=passing))


def plan_eval(
    shape: ModelShape, reference: ModelShape | None, settings: EngineSettings, budget: Budget
) -> Plan:
    """The plan of an evaluation of one file with one cache, next to a reference with an F16 cache.

    Args:
        shape: the file's, in its only type.
        reference: the shape of what it is compared with, in its only type; None for none.
        settings: whose context is the window, and whose cache is the file's.
        budget: what it may take.

    Raises:
        SettingsError: a cache that is not possible for this model.
    """
    window = settings.context
    schedule, _ = schedule_from_spec(settings.kv, kv_model(shape, settings.n_threads), window)
    staged = len(schedule.stages) > 1
    batch = N_BATCH if staged else evaluation_batch(shape.n_vocab, window)
    # only a window's second half has logits, so the first batches have none
    ends = [min(start + batch, window) for start in range(0, window, batch)]
    rows = 1 if staged else max(min(batch, end - window // 2) for end in ends)
    sizes = Sizes(window, 1, batch, rows, settings.n_threads)
    around = beside(shape, Use(settings), budget)
    parts = list(around.parts)
    if reference is not None:
        plain = KvSchedule((KvStage("f16", "f16", window),))
        other = Planner(reference, sizes, budget).plan(reference.options[0], plain, "mmap")
        parts.append(("reference", other.total - budget.program + ENGINE_BYTES))
    if staged:  # all rows of a window, of which one model's are copied; and a vocabulary of its own
        scored = (window - window // 2) * shape.n_vocab * 4
        copies = 2 if reference is None else 3
        parts.append(("rows of logits", copies * scored + VOCABULARY_BYTES * shape.n_vocab))
    planner = Planner(shape, sizes, budget, beside=replace(around, parts=tuple(parts)))
    return planner.plan(shape.options[0], schedule, "mmap")


def exact_window(shape: ModelShape, *, native: bool) -> int:
    """Tokens up to which windows that are not computed make no difference; 0 for no such limit."""
    if not shape.window:
        return 0
    own = own_kernels(kernel_status(native), kv_model(shape).geometry)
    return 0 if own is not None and own.caches else shape.window


def make_planner(
    shape: ModelShape, use: Use, budget: Budget
) -> tuple[Planner, KvSchedule | None, tuple[str, ...]]:
    """What all plans of a use share, the requested cache (None: to be chosen), and notes.

    Raises:
        SettingsError: a context or a cache that is not possible for this model.
    """
    settings = use.settings
    n_ctx, notes = context_for(
        shape.positions, shape.name, shape.n_ctx_train, settings.context,
        exact_window(shape, native=settings.native),
    )  # fmt: skip
    planner = Planner(shape, use.sizes(n_ctx), budget, use.draft, beside(shape, use, budget))
    if settings.kv == "auto" and not settings.kv_budget:
        return planner, None, notes
    model = kv_model(shape, settings.n_threads)
    schedule, said = choose_schedule(settings.kv, settings.kv_budget, model, n_ctx, use.n_seq)
    planner = replace(planner, sizes=use.sizes(schedule.n_ctx))
    if use.parallel and len(schedule.stages) > 1:
        last = schedule.stages[-1]
        said = (
            *said,
            f"--kv {schedule.spec}: a batch keeps one type throughout, that of the last stage: "
            f"{last.name}",
        )
    return planner, schedule, (*notes, *said)


def plan_use(
    shape: ModelShape, use: Use, budget: Budget, *, type: str | None = None
) -> tuple[Plan, tuple[str, ...]]:
    """The plan of a use with its load mode, and notes; it need not fit.

    Args:
        shape: the model's.
        use: what is done with it.
        budget: what it may take.
        type: of the weights; None chooses, a file has only one.

    Raises:
        SettingsError: a context or a cache that is not possible for this model.
    """
    planner, schedule, notes = make_planner(shape, use, budget)
    return choose(planner, Wish(type, schedule, use.settings.load)), notes
