"""The KV cache of one sequence, whose precision follows a schedule.

Owns the context. A change of stage happens between tokens: rows are exported a few at a time and
re-encoded at once, the next context replaces the old one, the rows are imported. If the rows are
not what they should be, the tokens are computed again, and a note says so.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace

from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import StateError
from infer_os.native.kv_state import KvFormat, State, read_layout, reencode_state
from infer_os.native.model import LlamaModel
from infer_os.native.owner import Owner

from .schedule import KvModel, KvSchedule, KvStage, batch_tokens

#: Why a cache has no context.
FAILED = "llama.cpp could not create its next stage"
INTERRUPTED = "a change of its stage was interrupted"
RELEASED = "it was freed for a batch"


@dataclass(frozen=True, slots=True)
class KvStatus:
    """Where a cache stands. ``up_to`` is the number of tokens that this stage holds.

    Bytes and tokens are 0 if an aborted change of stage left none.
    """

    stage: int
    n_stages: int
    types: str
    n_bytes: int
    n_tokens: int
    up_to: int
    n_ctx: int
    peak_bytes: int
    schedule: str


@dataclass(frozen=True, slots=True)
class SavedRows:
    """Rows of consecutive positions from ``first`` on, as llama.cpp saves them."""

    first: int
    n_cells: int
    state: State


class KvBytes:
    """Counts the bytes of live caches and rows, and their peak."""

    def __init__(self) -> None:
        self.alive = 0
        self.peak = 0

    def add(self, n_bytes: int) -> None:
        """Add to the live bytes (or subtract)."""
        self.alive += n_bytes
        self.peak = max(self.peak, self.alive)

    @contextmanager
    def held(self, n_bytes: int) -> Iterator[None]:
        """Count ``n_bytes`` more while inside."""
        self.add(n_bytes)
        try:
            yield
        finally:
            self.add(-n_bytes)


class StagedCache(Owner):
    """One sequence's cache. A context manager; close it before its model.

    ``notes`` collects what the user should know about changes of stage.
    """

    def __init__(
        self, model: LlamaModel, kv: KvModel, schedule: KvSchedule, n_outputs: int = 1
    ) -> None:
        """Allocate the first stage.

        Args:
            model: its weights.
            kv: the model's cache.
            schedule: the stages.
            n_outputs: rows of logits that a batch may have.

        Raises:
            ModelLoadError: llama.cpp cannot create the context.
        """
        self._model, self._kv, self.schedule = model, kv, schedule
        self._n_outputs = n_outputs
        self.notes: list[str] = []
        self.bytes = KvBytes()
        self._context: Context | None = None
        self._adapter = ""
        self._gone = FAILED
        self._open(schedule.stages[0])

    @property
    def context(self) -> Context:
        """The context of the present stage; a change of stage replaces it.

        Raises:
            StateError: a change of stage failed or was interrupted, and left no context.
        """
        if self._context is None:
            raise StateError(f"the KV cache is gone: {self._gone}; the next prompt makes another")
        return self._context

    @property
    def is_open(self) -> bool:
        """Whether there is a context."""
        return self._context is not None

    @property
    def stage(self) -> KvStage:
        """The types in use and the tokens that fit."""
        return self._stage

    @property
    def form(self) -> KvFormat:
        """How rows are stored."""
        return replace(self._stage.form(self._kv), rotates=self._rotates)

    def status(self, n_tokens: int) -> KvStatus:
        """Where the cache stands with ``n_tokens`` tokens."""
        stage, stages = self._stage, self.schedule.stages
        names = [known.name for known in stages]
        n_bytes, up_to = (stage.n_bytes(self._kv), stage.up_to) if self.is_open else (0, 0)
        return KvStatus(
            names.index(stage.name) + 1, len(stages), stage.name, n_bytes,
            n_tokens, up_to, self.schedule.n_ctx, self.bytes.peak, self.schedule.spec,
        )  # fmt: skip

    # ---- stages

    def start(self, n_tokens: int) -> None:
        """Make an empty cache that can compute a prompt of ``n_tokens`` tokens.

        Raises:
            ModelLoadError: llama.cpp cannot create the context.
        """
        stage, finest = self.schedule.prompt_stage(self._kv, n_tokens), self.schedule.stages[0]
        if stage.name != finest.name:
            self._note(
                f"the KV budget has no room for {n_tokens} tokens in {finest.name}: the prompt is "
                f"computed in {stage.name}"
            )
        self._replace(stage)

    def is_coarse(self, n_tokens: int) -> bool:
        """Whether a prompt of ``n_tokens`` tokens would be computed in a finer type than now."""
        return self._stage.name != self.schedule.prompt_stage(self._kv, n_tokens).name

    def fits(self, n_tokens: int) -> bool:
        """Whether the present stage can hold ``n_tokens`` tokens."""
        return n_tokens <= self._stage.up_to

    def grow(self, tokens: Sequence[int], n_tokens: int) -> None:
        """Move what is held, ``tokens``, to the stage that holds ``n_tokens``.

        Raises:
            ModelLoadError: llama.cpp cannot create the context; the cache is then empty.
            Interrupted: while tokens were computed again; the cache is then empty.
        """
        stage = self.schedule.stages[self.schedule.index_for(n_tokens)]
        saved: list[SavedRows] = []
        try:
            self._collect(len(tokens), stage.form(self._kv), saved)
            self._replace(stage)
            self._import(saved)
            return
        except StateError as error:
            self._note(f"{error}; the {len(tokens)} tokens held were computed again")
        finally:
            self.bytes.add(-sum(len(rows.state) for rows in saved))
            saved.clear()
        self._replace(stage)
        self.compute(tokens)

    def compute(self, tokens: Sequence[int]) -> None:
        """Compute tokens from the first position on, without logits."""
        n_batch = self.context.n_batch
        for first in range(0, len(tokens), n_batch):
            self.context.decode(tokens[first : first + n_batch], first, outputs=0)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)

    # ---- rows

    def export(self, n_tokens: int, largest: int = 0) -> Generator[SavedRows]:
        """The first ``n_tokens`` tokens' rows, in batches, each checked.

        Args:
            n_tokens: how many are held.
            largest: bytes of a batch, if it should be smaller than for a change of stage.

        Raises:
            StateError: llama.cpp wrote another layout.
        """
        batch = batch_tokens(self.form, self._kv.geometry, self._stage.n_cells)
        if largest:
            batch = max(1, min(batch, largest // max(1, self.form.token_bytes(self._kv.geometry))))
        for first in range(0, n_tokens, batch):
            n_cells = min(batch, n_tokens - first)
            size = self.form.state_bytes(self._kv.geometry, n_cells)
            with self.bytes.held(size):
                state = self.context.export_rows(first, first + n_cells)
                read_layout(state, self._kv.geometry, self.form, first, n_cells)
                yield SavedRows(first, n_cells, state)
                del state

    def _collect(self, n_tokens: int, target: KvFormat, saved: list[SavedRows]) -> None:
        """Append all rows in another format; their bytes count until the caller drops them."""
        source, target = self.form, replace(target, rotates=self._rotates)
        scratch = self._kv.n_threads * max(self._kv.geometry.widths) * 4
        with closing(self.export(n_tokens)) as exported:
            for rows in exported:
                n_bytes = target.state_bytes(self._kv.geometry, rows.n_cells)
                with self.bytes.held(n_bytes + scratch):
                    state = self.convert(rows, source, target)
                saved.append(SavedRows(rows.first, rows.n_cells, state))
                self.bytes.add(len(state))
                del rows

    def convert(self, rows: SavedRows, source: KvFormat, target: KvFormat) -> State:
        """Rows in another format; the very same bytes if the format is the same.

        Raises:
            StateError: they are not in the source's.
        """
        if source == target:
            read_layout(rows.state, self._kv.geometry, source, rows.first, rows.n_cells)
            return rows.state
        return reencode_state(
            rows.state, self._kv.geometry, source, target,
            first=rows.first, n_cells=rows.n_cells, n_threads=self._kv.n_threads,
        )  # fmt: skip

    def _import(self, saved: list[SavedRows]) -> None:
        for rows in saved:
            read_layout(rows.state, self._kv.geometry, self.form, rows.first, rows.n_cells)
            self.context.import_rows(rows.state)

    def restore(self, n_tokens: int, source: KvFormat, batches: Iterator[SavedRows]) -> None:
        """Hold the rows that a cache of format ``source`` exported, and nothing else.

        Raises:
            StateError: they do not fit; nothing is held.
        """
        self._replace(self.schedule.stages[self.schedule.index_for(n_tokens)])
        held = 0
        try:
            for rows in batches:
                with self.bytes.held(len(rows.state)):
                    state = self.convert(rows, source, self.form)
                    with self.bytes.held(0 if state is rows.state else len(state)):
                        self.context.import_rows(state)
                held += rows.n_cells
            if held != n_tokens:
                raise StateError(f"saved KV state: rows of {held} tokens, expected {n_tokens}")
        except BaseException:
            self.context.trim(0)
            raise

    # ---- the context

    def _replace(self, stage: KvStage) -> None:
        """An empty cache of that stage; the present one is kept if it is identical."""
        if self._context is not None and stage == self._stage:
            self._context.trim(0)
            return
        self._shut()
        self._open(stage)

    def _open(self, stage: KvStage) -> None:
        self._context = Context(
            self._model,
            ContextParams(
                # the size of a batch follows what was asked for; the cells are rounded up
                n_ctx=stage.up_to, n_threads=self._kv.n_threads, type_k=stage.type_k,
                type_v=stage.type_v, window=True, rotate=self._kv.rotates,
                n_outputs_max=self._n_outputs,
            ),
        )  # fmt: skip
        self._context.use_adapter(self._adapter)
        self._stage, self._rotates = stage, self._context.rotates
        self.bytes.add(stage.n_bytes(self._kv))

    def use_adapter(self, name: str) -> None:
        """Compute with this adapter of the model from now on, in every stage; "" is none.

        The caller empties the cache first.
        """
        self._adapter = name
        if self._context is not None:
            self._context.use_adapter(name)

    def _shut(self) -> None:
        if self._context is not None:
            context, self._context = self._context, None
            self.bytes.add(-self._stage.n_bytes(self._kv))
            context.close()

    def drop(self, reason: str) -> None:
        """Free the context; :meth:`start` makes another. ``reason`` says why there is none."""
        self._gone = reason
        self._shut()

    def close(self) -> None:
        """Free the context."""
        self._shut()
