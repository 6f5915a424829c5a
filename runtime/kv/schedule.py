"""How the KV cache's precision steps down as a context grows: pure functions, no model needed.

In: what the user asked for (types and token counts, or a number of bytes) and the sizes of the
model's rows. Out: a :class:`KvSchedule`, whose stages say which types hold how many tokens.

A change of stage exports the rows a few at a time, each batch re-encoded at once; then the new
context replaces the old one, and the rows are imported. So the most that is held at any moment is

    old context + rows in the new types + one batch in the old types, or
    new context + rows in the new types,

and a budget holds for both (:func:`migration_bytes`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.kv_state import KV_TYPES, OWN_CACHES, KvFormat, KvGeometry

from ..errors import SettingsError

#: llama.cpp rounds the cells of a context up to a multiple of this (``GGML_PAD(n_ctx, 256)``).
CELL_STEP = 256
#: Rows to export at once: about this many bytes, and at most this part of a context.
_BATCH_BYTES = 8 << 20
_BATCH_SHARE = 16
#: What a budget chooses from, best first, by measured loss (docs/quality.md). Keys lose eleven
#: times what values do, so they keep their bits for longer.
_LADDER = ("f16", "q8_0", "q8_0/q4_0", "q5_1", "q5_1/q4_0", "q4_0")
#: What may come before the last stage: our own attention computes these.
_EARLIER = ("f16", "q8_0", "q8_0/q4_0")

_STAGE = re.compile(r"([a-z0-9_]+)(?:/([a-z0-9_]+))?(?::([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class KvModel:
    """What a schedule needs to know about a model.

    ``rotates``: llama.cpp rotates quantized rows; it does not if the weights already do.
    ``windows``: some layers see only a window, which is computed in caches of some types.
    """

    geometry: KvGeometry
    rotates: bool = True
    flash_attention: bool = True
    n_threads: int = 1
    windows: bool = False


@dataclass(frozen=True, slots=True)
class KvStage:
    """Types that hold up to ``up_to`` tokens."""

    type_k: str
    type_v: str
    up_to: int

    @property
    def name(self) -> str:
        """As the user writes it: ``q8_0`` or ``q8_0/q4_0``."""
        return self.type_k if self.type_k == self.type_v else f"{self.type_k}/{self.type_v}"

    @property
    def n_cells(self) -> int:
        """Cells of a context for it."""
        return cells_for(self.up_to)

    def form(self, model: KvModel) -> KvFormat:
        """How a cache of these types stores rows."""
        return KvFormat(self.type_k, self.type_v, model.rotates)

    def n_bytes(self, model: KvModel) -> int:
        """Bytes of a cache of this stage."""
        return self.n_cells * self.form(model).token_bytes(model.geometry)


@dataclass(frozen=True, slots=True)
class KvSchedule:
    """Stages in order, the last of which reaches the whole context.

    With a ``budget``, no stage or change of stage holds more bytes than that.
    """

    stages: tuple[KvStage, ...]
    budget: int | None = None

    @property
    def n_ctx(self) -> int:
        """Tokens that fit in the last stage."""
        return self.stages[-1].up_to

    @property
    def spec(self) -> str:
        """As ``--kv`` takes it."""
        if len(self.stages) == 1:
            return self.stages[0].name
        return ",".join(f"{stage.name}:{stage.up_to}" for stage in self.stages)

    def index_for(self, n_tokens: int) -> int:
        """Number of the first stage that holds ``n_tokens`` tokens, else of the last."""
        fitting = (i for i, stage in enumerate(self.stages) if n_tokens <= stage.up_to)
        return next(fitting, len(self.stages) - 1)

    def peak_bytes(self, model: KvModel) -> int:
        """Most bytes at any time, if tokens come one by one."""
        moves = [
            migration_bytes(model, old, new, old.up_to)
            for old, new in zip(self.stages, self.stages[1:], strict=False)
        ]
        return max([stage.n_bytes(model) for stage in self.stages] + moves)

    def prompt_stage(self, model: KvModel, n_tokens: int) -> KvStage:
        """The stage in which to compute a prompt of ``n_tokens`` tokens from an empty cache.

        The first stage's types, in a cache as large as the prompt; it is quantized afterwards. If a
        budget forbids that, those of the finest stage that it allows, down to the prompt's own.
        """
        target = self.index_for(n_tokens)
        for stage in self.stages[:target]:
            wide = replace(stage, up_to=n_tokens)
            # the first token after the prompt may need the next stage
            goals = self.stages[target : self.index_for(min(n_tokens + 1, self.n_ctx)) + 1]
            peak = max(migration_bytes(model, wide, goal, n_tokens) for goal in goals)
            if self.budget is None or peak <= self.budget:
                return wide
        return self.stages[target]


def cells_for(n_tokens: int) -> int:
    """Cells of the context that llama.cpp makes for ``n_tokens`` tokens."""
    return -(-n_tokens // CELL_STEP) * CELL_STEP


def batch_tokens(form: KvFormat, geometry: KvGeometry, n_cells: int) -> int:
    """Tokens whose rows are exported at once from a context of ``n_cells``."""
    by_size = _BATCH_BYTES // max(1, form.token_bytes(geometry))
    return max(1, min(by_size, n_cells // _BATCH_SHARE))


def migration_bytes(model: KvModel, old: KvStage, new: KvStage, n_tokens: int) -> int:
    """Most bytes held while ``n_tokens`` go from one cache to another: caches, rows, scratch."""
    geometry, source, target = model.geometry, old.form(model), new.form(model)
    batch = min(n_tokens, batch_tokens(source, geometry, old.n_cells))
    n_batches = -(-n_tokens // batch) if batch else 0
    saved = target.state_bytes(geometry, n_tokens)
    saved += max(0, n_batches - 1) * target.state_bytes(geometry, 0)
    scratch = model.n_threads * max(geometry.widths) * 4
    exporting = old.n_bytes(model) + saved + source.state_bytes(geometry, batch) + scratch
    return max(exporting, new.n_bytes(model) + saved)


def parse_spec(spec: str) -> tuple[KvStage, ...]:
    """Stages of a ``--kv`` value; ``up_to`` 0 reaches as far as the context.

    Raises:
        SettingsError: an unknown type, or token counts that do not grow.
    """
    stages: list[KvStage] = []
    parts = spec.strip().lower().split(",")
    for i, part in enumerate(parts):
        found = _STAGE.fullmatch(part.strip())
        if not found:
            raise SettingsError(
                f"--kv {spec}: {part.strip()!r} is not a stage; expected TYPE or "
                "TYPE:N,TYPE:N,..., such as f16:512,q8_0:2048"
            )
        type_k, type_v = found[1], found[2] or found[1]
        for name in (type_k, type_v):
            if name not in KV_TYPES:
                raise SettingsError(f"--kv {spec}: unknown type {name}; known: {_KNOWN}")
        if found[3] is None and i < len(parts) - 1:
            raise SettingsError(f"--kv {spec}: only the last stage may lack a token count")
        up_to = int(found[3]) if found[3] is not None else 0
        if found[3] is not None and up_to <= (stages[-1].up_to if stages else 0):
            raise SettingsError(
                f"--kv {spec}: stages out of order: {part.strip()} must reach further than the "
                "stage before it"
            )
        stages.append(KvStage(type_k, type_v, up_to))
    return tuple(stages)


_KNOWN = ", ".join(KV_TYPES)


def check_types(spec: str, stages: tuple[KvStage, ...], model: KvModel) -> None:
    """Check that the model's heads and attention can have these types.

    Raises:
        SettingsError: they cannot, or a later stage takes more memory than the one before.
    """
    geometry = model.geometry
    for stage in stages:
        for which, name, head in (
            ("K", stage.type_k, geometry.head_k),
            ("V", stage.type_v, geometry.head_v),
        ):
            kind = ggml_type_named(name)
            if model.windows and name not in OWN_CACHES:
                raise SettingsError(
                    f"{spec}: layers of this model see windows, which are computed in caches of "
                    f"{', '.join(sorted(OWN_CACHES))}; take one of them"
                )
            if head % kind.block:
                raise SettingsError(
                    f"{spec}: {name} stores blocks of {kind.block} values, which do not divide "
                    f"this model's {which} heads of {head}; take f16"
                )
            if which == "V" and kind.quantized and not model.flash_attention:
                raise SettingsError(
                    f"{spec}: a V cache of {name} needs flash attention, which this model does "
                    f"not have; take {stage.type_k}/f16"
                )
    sizes = [stage.form(model).token_bytes(geometry) for stage in stages]
    for before, after, size, next_size in zip(stages, stages[1:], sizes, sizes[1:], strict=False):
        if next_size >= size:
            raise SettingsError(
                f"{spec}: stages out of order: {after.name} after {before.name} saves no memory"
            )


def schedule_from_spec(spec: str, model: KvModel, n_ctx: int) -> tuple[KvSchedule, tuple[str, ...]]:
    """The schedule of a ``--kv`` value for a context of ``n_ctx`` tokens, and notes.

    A last stage that ends earlier caps the context; stages past the context are left out.

    Raises:
        SettingsError: see :func:`parse_spec` and :func:`check_types`.
    """
    stages = parse_spec(spec)
    check_types(f"--kv {spec}", stages, model)
    last = stages[-1].up_to or n_ctx
    notes: tuple[str, ...] = ()
    if last < n_ctx:
        notes = (f"--kv {spec}: the last stage ends at {last} tokens, and so does the context",)
    n_ctx = min(n_ctx, last)
    kept: list[KvStage] = []
    for stage in stages:
        kept.append(replace(stage, up_to=min(stage.up_to or n_ctx, n_ctx)))
        if kept[-1].up_to == n_ctx:
            break
    if unreached := stages[len(kept) :]:
        names = ", ".join(stage.name for stage in unreached)
        notes = (*notes, f"--kv {spec}: the context ends at {n_ctx} tokens, before {names}")
    return KvSchedule(tuple(kept)), notes


def schedule_from_budget(
    budget: int, model: KvModel, n_ctx: int, option: str = "--kv-budget"
) -> tuple[KvSchedule, tuple[str, ...]]:
    """The best schedule that never holds more than ``budget`` bytes, and notes.

    The last stage has the finest of ``_LADDER`` that fits the whole context; before it come
    ``_EARLIER`` ones for as many tokens, in steps of 256, as the changes of stage allow. If even
    q4_0 does not fit, the context is capped.

    Raises:
        SettingsError: not even the smallest cache of 256 cells fits.
    """
    usable = [name for name in _LADDER if _suits(name, model)]
    step = _stage(usable[-1], CELL_STEP).n_bytes(model)
    if budget < step:
        raise SettingsError(
            f"{option} {budget}: too small for one token: llama.cpp's smallest cache has "
            f"{CELL_STEP} cells, which take {step} bytes as {usable[-1]}"
        )
    notes: tuple[str, ...] = ()
    longest = budget // step * CELL_STEP
    if longest < n_ctx:
        notes = (f"{option}: the context is cut from {n_ctx} to {longest} tokens",)
        n_ctx = longest
    fitting = [name for name in usable if _stage(name, n_ctx).n_bytes(model) <= budget]
    stages = [_stage(fitting[0], n_ctx)]
    for name in reversed(usable[: usable.index(fitting[0])]):
        if name not in _EARLIER:
            continue
        up_to = (stages[0].up_to - 1) // CELL_STEP * CELL_STEP
        while up_to and not _holds(budget, model, _stage(name, up_to), stages[0]):
            up_to -= CELL_STEP
        if up_to:
            stages.insert(0, _stage(name, up_to))
    return KvSchedule(tuple(stages), budget), notes


def _stage(name: str, up_to: int) -> KvStage:
    return replace(parse_spec(name)[0], up_to=up_to)


def _suits(name: str, model: KvModel) -> bool:
    stage, geometry = _stage(name, CELL_STEP), model.geometry
    types = ((stage.type_k, geometry.head_k), (stage.type_v, geometry.head_v))
    divides = all(head % ggml_type_named(kind).block == 0 for kind, head in types)
    own = {stage.type_k, stage.type_v} <= OWN_CACHES or not model.windows
    return divides and own and (model.flash_attention or name == "f16")


def _holds(budget: int, model: KvModel, stage: KvStage, following: KvStage) -> bool:
    worst = migration_bytes(model, stage, following, stage.up_to)
    return max(stage.n_bytes(model), worst) <= budget


def coarsest_type(model: KvModel) -> str:
    """The smallest type that a budget can choose for a model."""
    return next(name for name in reversed(_LADDER) if _suits(name, model))


def choose_schedule(
    spec: str, budget: int, model: KvModel, n_ctx: int, n_seq: int = 1
) -> tuple[KvSchedule, tuple[str, ...]]:
    """The schedule of ``--kv`` and ``--kv-budget``, and notes.

    ``auto`` without a budget depends on everything else in memory: ``choice.automatic_schedule``.

    Args:
        spec: a SPEC, or empty: F16 throughout.
        budget: bytes of all sequences together, or 0 for none. It determines the stages, so only
            ``auto`` goes with it.
        model: what is known of the model.
        n_ctx: wanted tokens of context of each sequence.
        n_seq: sequences.

    Raises:
        SettingsError: the options do not go together or do not suit the model.
    """
    if budget:
        if spec not in ("", "auto"):
            raise SettingsError(
                f"--kv {spec} and --kv-budget: the budget derives the stages; give one of them"
            )
        option = "--kv-budget" if n_seq == 1 else "--kv-budget of each sequence"
        return schedule_from_budget(budget // n_seq, model, n_ctx, option)
    return schedule_from_spec(spec or "f16", model, n_ctx)
