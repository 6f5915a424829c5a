"""The memory plan: how many bytes a model will take, what fits, and what to choose.

Goes in: a model's shape and a request. Comes out: a :class:`Plan`, whose parts sum to the peak of
the process. Nothing is read or loaded here; every formula was fitted to what the pinned llama.cpp
reserves (``no_alloc`` contexts of all four families) and is compared with measured peaks by
``benchmarks/memory_plan.py``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from infer_os.models.graphs import graph_named
from infer_os.models.shape import ModelShape, WeightOption
from infer_os.native.kv_state import KvGeometry
from infer_os.native.layouts import Repacking
from infer_os.sizes import size_text

from ..errors import RuntimeFailure
from ..kv.schedule import KvModel, KvSchedule, KvStage, migration_bytes

#: Interpreter, libraries and graphs, and what llama.cpp and we keep of each token of a vocabulary;
#: measured with vocabularies of 50 k and 250 k tokens (docs/memory.md).
PROCESS_BYTES = 73_000_000
VOCABULARY_BYTES = 325

#: Of that, pages of program files once llama.cpp is loaded, if the kernel maps them in large
#: pieces, as it does soon after an installation. Later it maps smaller ones.
MAPPED_BYTES = 33_000_000
#: The most pages of pyarrow's files, for the same reason; half of it is usual.
TABLES_BYTES = 50_000_000

#: When a process that converts a small model, or draws a report about one, is at its largest.
OUTSIDE = "before or after the model"

_DRAFT_TYPE = "q4_0"
_F32 = 4
_MASK_BYTES = 2  # flash attention takes its mask in F16


@dataclass(frozen=True, slots=True)
class Sizes:
    """How a context is used: tokens of each sequence, sequences, tokens per batch, logits rows.

    With ``adapters``, LoRA matrices add to the products.
    One row of logits beyond the sequences is reserved for the window, see ``ContextParams``.
    """

    n_ctx: int
    n_seq: int = 1
    n_batch: int = 512
    n_outputs: int = 1
    n_threads: int = 1
    adapters: bool = False

    @property
    def n_rows(self) -> int:
        """Rows of logits that are reserved."""
        return max(self.n_outputs, self.n_seq + 1)

    @property
    def n_ubatch(self) -> int:
        """Tokens that are computed at once."""
        return min(self.n_batch, self.n_ctx * self.n_seq)

    @property
    def n_mask_rows(self) -> int:
        """Rows of the attention's mask, which each sequence has over its own cells."""
        return -(-self.n_ubatch // self.n_seq) * self.n_seq


@dataclass(frozen=True, slots=True)
class Budget:
    """What a plan may use: bytes of memory, and the machine's measured read bandwidth.

    ``repacked`` says which weights get a faster layout here. ``cached`` are the rates of reading a
    number of bytes repeatedly, the fewest first. ``program`` are the bytes of a process without a
    model, as :func:`program_bytes` finds them; ``tables`` are the pages of the library that reads
    Parquet, which count only where it is used.
    """

    limit: int
    bandwidth: float | None = None
    repacked: Repacking = field(default_factory=Repacking)
    cached: tuple[tuple[int, float], ...] = ()
    program: int = PROCESS_BYTES
    tables: int = TABLES_BYTES

    def rate(self, n_bytes: int) -> float | None:
        """Most bytes per second when ``n_bytes`` are read repeatedly.

        Fewer bytes are never read more slowly, so the rate of the next smaller measured size is a
        bound.
        """
        if self.bandwidth is None:
            return None
        low = max((size for size, _ in self.cached if size <= n_bytes), default=0)
        return max(self.bandwidth, *(rate for size, rate in self.cached if size >= low), 0.0)


@dataclass(frozen=True, slots=True)
class Beside:
    """What a process holds apart from a model: bytes by name, as :func:`.use.beside` finds them.

    ``passing`` bytes are held only before the model is loaded or after it is closed. A ``batch``
    has one cache for its whole life, in which ``n_drafts`` sequences each open the draft.
    """

    parts: tuple[tuple[str, int], ...] = ()
    passing: int = 0
    n_drafts: int = 1
    batch: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """Bytes of everything, at their largest, for one choice of type, cache and load mode.

    ``kv`` is the most that the cache holds, changes of stage included. ``staging`` is what loading
    needs in addition to the weights, before the cache. ``tokens_per_s`` is a bound: what reading
    allows while little of the context is held; None if the bandwidth is unknown.
    """

    shape: ModelShape
    weights: WeightOption
    schedule: KvSchedule
    load: str
    sizes: Sizes
    kv: int
    compute: int
    logits: int
    process: int
    staging: int
    draft: int
    limit: int
    beside: Beside = Beside()
    tokens_per_s: float | None = None
    reasons: tuple[str, ...] = ()

    @property
    def program(self) -> int:
        """The program with all it holds apart from the model."""
        return self.process + sum(n_bytes for _, n_bytes in self.beside.parts)

    @property
    def total(self) -> int:
        """Peak of the whole process: running, loading, or before and after, whichever is most."""
        running = self.kv + self.compute + self.logits
        model = self.weights.n_bytes + self.draft + max(running, self.staging)
        return self.program + max(model, self.beside.passing)

    @property
    def when(self) -> str:
        """When the process is at its largest."""
        model = self.total - self.program
        if model == self.beside.passing:
            return OUTSIDE
        held = self.weights.n_bytes + self.draft
        return "while loading" if self.staging and model == held + self.staging else "running"

    @property
    def fits(self) -> bool:
        """Whether the peak stays within the limit."""
        return self.total <= self.limit

    @property
    def stage_bytes(self) -> tuple[int, ...]:
        """Bytes of the cache in each of its stages."""
        model = kv_model(self.shape)
        return tuple(stage.n_bytes(model) * self.sizes.n_seq for stage in self.schedule.stages)


def kv_model(shape: ModelShape, n_threads: int = 1) -> KvModel:
    """What a schedule needs to know about a model."""
    geometry = KvGeometry(shape.n_layer, shape.n_head_kv, shape.head_dim, shape.head_dim)
    flash_attention = graph_named(shape.graph).flash_attention
    return KvModel(geometry, shape.rotates, flash_attention, n_threads, bool(shape.window))


def kv_bytes(shape: ModelShape, schedule: KvSchedule, sizes: Sizes) -> int:
    """Most bytes that the caches of all sequences hold.

    Without a budget a prompt of any length is computed in the first stage's types and quantized
    afterwards: then that is the peak.
    """
    model = kv_model(shape, sizes.n_threads)
    peak = schedule.peak_bytes(model)
    first, last = schedule.stages[0], schedule.stages[-1]
    if schedule.budget is None and first is not last:
        wide = replace(first, up_to=schedule.n_ctx)
        peak = max(peak, migration_bytes(model, wide, last, schedule.n_ctx))
    return peak * sizes.n_seq


def compute_bytes(shape: ModelShape, sizes: Sizes, stage: KvStage) -> int:
    """Bytes of the compute buffer and of the matrix kernels' scratch.

    In a graph over ``n`` tokens, a layer holds at most several (n, n_embd) arrays in addition to
    the (n, n_ff) one, as the graph's row says; or the last one holds the logits. The mask of the
    attention, (cells, n), and the rotations of a quantized cache live throughout. What an adapter
    adds to a product is as large as the product, next to which it is held.
    """
    n = min(sizes.n_mask_rows, stage.up_to * sizes.n_seq)
    row = shape.n_embd * _F32
    graph = graph_named(shape.graph)
    arrays = graph.feed_forward_arrays if shape.parallel else graph.sequential_arrays
    layer = n * (arrays * row + shape.n_ff * _F32)
    # keys and values that heads share are narrower
    shared = 2 * (shape.n_embd - shape.n_head_kv * shape.head_dim) * _F32
    attention = n * (graph.attention_arrays * row - shared)
    if sizes.adapters:
        layer += n * shape.n_ff * _F32
        attention += n * 3 * row
    last = sizes.n_rows * (shape.n_vocab * _F32 + 2 * row) + n * row
    # a sequence's rows see only that sequence's cells
    mask = stage.n_cells * n * _MASK_BYTES
    model = kv_model(shape)
    rotations = sum(n * n * _F32 for n in stage.form(model).rotations(model.geometry))
    # a matrix product of quantized weights quantizes its input, at most to Q8_K: 292 bytes of 256
    scratch = n * shape.n_ff * 292 // 256
    return max(layer, attention, last) + mask + rotations + scratch


def staging_bytes(weights: WeightOption, load: str, repacked: Repacking) -> int:
    """What loading holds in addition to the weights: a buffer of one tensor.

    ``fast`` needs it for what gets another layout, ``direct`` for everything (aligned reads).
    """
    if load == "direct":
        return weights.largest
    if load == "fast":
        moved = repacked.of(weights.kinds)
        return max((size for kind, size in weights.largest_of if kind in moved), default=0)
    return 0


def program_bytes(mapped: int | None) -> int:
    """What a process takes without a model.

    Args:
        mapped: bytes of files that it has mapped, llama.cpp's among them; None if not known. What
            is beyond our own libraries is no part of a plan.
    """
    if mapped is None or mapped > MAPPED_BYTES:
        return PROCESS_BYTES
    # a part of what is not mapped yet will be
    return PROCESS_BYTES - (MAPPED_BYTES - mapped) * 3 // 4


def draft_bytes(shape: ModelShape, sizes: Sizes) -> int:
    """A draft model's weights, F16 cache, buffers and vocabulary.

    Its context is the target's, as far as it was trained for. A draft that is not yet a file counts
    as Q4_0.
    """
    n_ctx = min(sizes.n_ctx, shape.n_ctx_train)
    one = replace(sizes, n_ctx=n_ctx, n_seq=1, n_outputs=1)
    cache = KvStage("f16", "f16", n_ctx)
    weights = shape.options[0] if shape.is_file else shape.option(_DRAFT_TYPE)
    return (
        weights.n_bytes
        + cache.n_bytes(kv_model(shape))
        + compute_bytes(shape, one, cache)
        + one.n_rows * shape.n_vocab * _F32
        + VOCABULARY_BYTES * shape.n_vocab
    )


def decode_tokens_per_s(
    shape: ModelShape, weights: WeightOption, schedule: KvSchedule, budget: Budget, n_seq: int = 1
) -> float | None:
    """Most tokens per second without guesses, of all sequences that step together.

    A step reads every weight once, and what each sequence holds: here one token. More context only
    adds to what is read.
    """
    model = kv_model(shape)
    held = schedule.stages[0].form(model).token_bytes(model.geometry)
    n_bytes = weights.read_bytes + n_seq * held
    rate = budget.rate(n_bytes)
    return n_seq * rate / n_bytes if rate else None


@dataclass(frozen=True, slots=True)
class Planner:
    """What all plans of a question share."""

    shape: ModelShape
    sizes: Sizes
    budget: Budget
    draft: ModelShape | None = None
    beside: Beside = Beside()

    def plan(self, weights: WeightOption, schedule: KvSchedule, load: str) -> Plan:
        """The bytes of one choice; it need not fit.

        A batch has the types of the last stage, which holds a whole sequence.
        """
        if self.beside.batch:
            last = schedule.stages[-1]
            schedule = KvSchedule((KvStage(last.type_k, last.type_v, schedule.n_ctx),))
        shape, sizes = self.shape, self.sizes
        return Plan(
            shape=shape,
            weights=weights,
            schedule=schedule,
            load=load,
            sizes=sizes,
            kv=kv_bytes(shape, schedule, sizes),
            compute=max(compute_bytes(shape, sizes, stage) for stage in schedule.stages),
            logits=sizes.n_rows * shape.n_vocab * _F32,
            process=self.budget.program + VOCABULARY_BYTES * shape.n_vocab,
            staging=staging_bytes(weights, load, self.budget.repacked),
            draft=self.beside.n_drafts * draft_bytes(self.draft, sizes) if self.draft else 0,
            limit=self.budget.limit,
            beside=self.beside,
            tokens_per_s=decode_tokens_per_s(
                shape, weights, schedule, self.budget, sizes.n_seq if self.beside.batch else 1
            ),
        )


#: What makes a plan smaller, for most commands.
REMEDIES = (
    "convert to a smaller --type, lower --context, quantize the cache (--kv), or raise --memory"
)


def check_plan(plan: Plan, remedies: str = REMEDIES) -> None:
    """Refuse a model that can only thrash; ``remedies`` say what would help.

    Raises:
        MemoryShortage: the plan does not fit; has the plan.
    """
    if not plan.fits:
        parts = (
            ("weights", plan.weights.n_bytes), ("KV cache", plan.kv),
            ("compute buffers and logits", plan.compute + plan.logits), ("draft", plan.draft),
            ("program", plan.process), *plan.beside.parts,
        )  # fmt: skip
        listed = ", ".join(f"{size_text(n)} of {what}" for what, n in parts if n)
        needed = size_text(plan.total, up=True)
        raise MemoryShortage(
            f"{plan.shape.name}: does not fit: it needs {needed} ({listed}) for "
            f"{plan.sizes.n_ctx} tokens, but may use {size_text(plan.limit)}; {remedies}",
            plan,
        )


class MemoryShortage(RuntimeFailure):
    """The model does not fit in memory. ``plan`` has the figures, if there are any."""

    def __init__(self, message: str, plan: Plan | None = None) -> None:
        super().__init__(message)
        self.plan = plan


class LockShortage(MemoryShortage):
    """The weights cannot be locked."""
