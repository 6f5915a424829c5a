"""The engine: a model with one context, and the tokens that its cache holds.

Everything above it uses the protocol :class:`~.interface.Engine`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from infer_os.locks import in_use
from infer_os.models.catalog import style_for
from infer_os.native.context import Context
from infer_os.native.errors import Interrupted, NotFinite, StateError
from infer_os.native.graph_check import read_model_header
from infer_os.native.kv_state import KvFormat
from infer_os.native.owner import Owner

from .errors import PromptError
from .interface import EngineInfo, check_adapter, shared_prefix
from .kv.schedule import cells_for
from .kv.staged import FAILED, INTERRUPTED, RELEASED, KvStatus, SavedRows, StagedCache
from .memory import MemoryUse, read_memory_use
from .pages import drop_pages
from .plan.shapes import header_kv_model
from .prepare import load_model, plan_file
from .sampler import LlamaFilter, LlamaSampler, Sampler
from .settings import MOST_GUESSES, EngineSettings, SamplingSettings
from .speculative.rounding import rounding_of
from .threads import ThreadCount

if TYPE_CHECKING:
    from infer_os.models.shape import ModelShape

    from .speculative.speculation import Speculation

#: Bytes of rows held in addition to the cache while a session is saved.
_SAVED_BATCH = 1 << 20
#: A prompt's tokens that are held in a coarser type than a new prompt would get are kept if they
#: are at least one in this many.
_WORTH_KEEPING = 8


class LlamaEngine(Owner):
    """The engine that runs llama.cpp. A context manager."""

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        *,
        progress: Callable[[float], None] | None = None,
        warmed: Callable[[int, int], None] | None = None,
        draft: ModelShape | None = None,
    ) -> None:
        """Plan, check, load and allocate.

        Args:
            path: a GGUF file.
            settings: how.
            progress: called with 0.0 to 1.0 while llama.cpp loads.
            warmed: called with bytes done and in all while the file is prefetched.
            draft: the shape of a draft model that the plan must also have room for.

        Raises:
            GgufError: the file cannot be used.
            SettingsError: the context is not possible for this model.
            MemoryShortage: it does not fit, or cannot be locked.
            ModelLoadError: llama.cpp refuses it.
        """
        header = read_model_header(path)
        kv = header_kv_model(header, settings.n_threads)
        plan, notes = plan_file(header, settings, draft)
        with ExitStack() as stack:
            stack.enter_context(in_use(path))
            if settings.drop_pages:
                stack.callback(_drop_pages, path)
            model = stack.enter_context(
                load_model(path, settings, plan, progress=progress, warmed=warmed)
            )
            cache = stack.enter_context(StagedCache(model, kv, plan.schedule, settings.n_outputs))
            self._owned = stack.pop_all()
        self.model = model
        self._cache = cache
        self._stage_end = cache.stage.up_to
        self._tokens: list[int] = []
        self._dirty = False
        self.speculation: Speculation | None = None
        self._adapter = ""
        #: How batches round; see :meth:`rows_alike`.
        self.rounding = rounding_of(
            header, settings.load, model.kernels, with_adapters=bool(settings.adapters)
        )
        caches = ((stage.type_k, stage.type_v) for stage in plan.schedule.stages)
        self._threads = ThreadCount(
            settings.n_threads,
            fixed=bool(settings.threads) or not self.rounding.may_take_threads_away(caches),
        )
        self.vocab = model.vocab
        # llama.cpp rounds the size of a cache up; only what was asked for is promised
        self.n_ctx = plan.sizes.n_ctx
        self.info = EngineInfo(
            path=path,
            graph=header.architecture,
            source=str(header.metadata.get("inferos.source.architecture", header.architecture)),
            n_ctx=self.n_ctx,
            n_threads=settings.n_threads,
            plan=plan,
            chat_template=model.chat_template,
            notes=(*notes, *model.notes),
            style=style_for(header.metadata),
            kernels=model.kernels,
            adapters=tuple(model.adapters),
        )
        self.use_adapter(next(iter(model.adapters), ""))

    @property
    def tokens(self) -> Sequence[int]:
        """Tokens that the cache holds."""
        return self._tokens

    @property
    def context(self) -> Context:
        """The context, for reading logits."""
        return self._cache.context

    def new_sampler(self, settings: SamplingSettings) -> LlamaSampler:
        """A sampler for this model; the caller closes it."""
        return LlamaSampler(settings, self.vocab)

    @property
    def adapter(self) -> str:
        """See :meth:`Engine.adapter`."""
        return self._adapter

    @property
    def adapter_identity(self) -> str:
        """See :meth:`Engine.adapter_identity`."""
        return self.model.adapters[self._adapter].identity if self._adapter else ""

    def use_adapter(self, name: str) -> None:
        """See :meth:`Engine.use_adapter`."""
        if name == self._adapter:
            return
        check_adapter(name, self.info.adapters)
        if self._cache.is_open:
            self._cut(0)
        self._cache.use_adapter(name)
        self._adapter = name

    @property
    def room(self) -> int:
        """See :meth:`Engine.room`."""
        return self._stage_end - len(self._tokens)

    def rows_alike(self) -> int:
        """See :meth:`Engine.rows_alike`."""
        stage = self._cache.stage
        n_cells = cells_for(len(self._tokens) + MOST_GUESSES + 1)
        return self.rounding.rows_alike((stage.type_k, stage.type_v), n_cells)

    def new_filter(self, settings: SamplingSettings) -> LlamaFilter:
        """See :meth:`Engine.new_filter`."""
        return LlamaFilter(settings, self.vocab.n_tokens, self.vocab)

    def feed(self, tokens: Sequence[int]) -> int:
        """See :meth:`Engine.feed`."""
        if not tokens:
            raise PromptError("the prompt is empty: it has no tokens to continue from")
        if len(tokens) > self.n_ctx:
            raise PromptError(
                f"the prompt has {len(tokens)} tokens, but the context holds {self.n_ctx}; "
                "shorten it or raise --context"
            )
        # the last token is computed again even if it is held: its logits are gone
        shared = min(shared_prefix(self._tokens, tokens), len(tokens) - 1)
        shared = self._make_room(shared, len(tokens))
        n_batch = self.context.n_batch
        for first in range(shared, len(tokens), n_batch):
            part = tokens[first : first + n_batch]
            last = first + len(part) == len(tokens)
            self._dirty = True
            self.context.use_threads(self._threads.now())
            self.context.decode(part, first, outputs=int(last))
            self._tokens.extend(part)
            self._dirty = False
        return len(tokens) - shared

    def forget(self) -> None:
        """Empty the cache."""
        self._cut(0)

    def release(self) -> None:
        """Free the cache and its context, to use the weights for something else.

        The next prompt makes a new one, and is computed from its beginning.
        """
        self._drop(RELEASED)

    def step(self, token: int) -> None:
        """See :meth:`Engine.step`."""
        held = len(self._tokens)
        if self._dirty or held >= self._stage_end:
            self._make_room(held, held + 1)
        self._dirty = True
        self._cache.context.use_threads(self._threads.now())
        self._cache.context.decode_one(token, held)
        self._tokens.append(token)
        self._dirty = False

    def extend(self, tokens: Sequence[int]) -> None:
        """See :meth:`Engine.extend`."""
        held = len(self._tokens)
        if self._dirty or held + len(tokens) > self._stage_end:
            self._make_room(held, held + len(tokens))
        self._dirty = True
        self._cache.context.use_threads(self._threads.now())
        self._cache.context.decode(tokens, held, outputs=len(tokens))
        self._tokens.extend(tokens)
        self._dirty = False

    def trim(self, n_tokens: int) -> None:
        """See :meth:`Engine.trim`."""
        self._cut(n_tokens)

    def sample(self, sampler: Sampler, row: int = -1) -> int:
        """See :meth:`Engine.sample`."""
        self.logits(row)
        return sampler.draw(self._cache.context, row)

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """See :meth:`Engine.logits`."""
        logits = self._cache.context.logits(row)
        if not math.isfinite(logits.max()):  # NaN is the largest
            raise NotFinite
        return logits

    def _cut(self, n_tokens: int) -> None:
        # after an interrupted decode the cache may hold more than the list says
        if self._dirty or n_tokens < len(self._tokens):
            self._cache.context.trim(n_tokens)
            del self._tokens[n_tokens:]
            self._dirty = False

    def _make_room(self, shared: int, n_tokens: int) -> int:
        """Keep ``shared`` tokens, in a cache that holds ``n_tokens``; returns how many are kept."""
        cache = self._cache
        few = shared * _WORTH_KEEPING < n_tokens and cache.is_coarse(n_tokens)
        shared = 0 if few else shared
        try:
            self._cut(shared)
            if not shared:
                cache.start(n_tokens)
            elif not cache.fits(n_tokens) and n_tokens <= self.n_ctx:
                cache.grow(self._tokens, n_tokens)
            self._stage_end = cache.stage.up_to
        except BaseException as error:
            # an aborted change of stage leaves nothing to rely on
            cut_short = isinstance(error, Interrupted) or not isinstance(error, Exception)
            self._drop(INTERRUPTED if cut_short else FAILED)
            raise
        return shared

    def _drop(self, reason: str) -> None:
        """Drop everything with its context; the next prompt makes a new one."""
        self._cache.drop(reason)
        self._tokens.clear()
        self._dirty, self._stage_end = False, 0

    def export_rows(self, n_tokens: int) -> tuple[KvFormat, Iterator[SavedRows]]:
        """See :meth:`Engine.export_rows`."""
        if self._dirty:
            self._cut(len(self._tokens))
        return self._cache.form, self._cache.export(n_tokens, _SAVED_BATCH)

    def restore(self, tokens: Sequence[int], form: KvFormat, batches: Iterator[SavedRows]) -> None:
        """See :meth:`Engine.restore`."""
        if len(tokens) > self.n_ctx:
            raise PromptError(
                f"{len(tokens)} tokens are held, but the context has {self.n_ctx}; raise --context"
            )
        self._drop(FAILED)
        try:
            self._cache.restore(len(tokens), form, batches)
        except StateError as error:
            self._cache.notes.append(f"{error}; {len(tokens)} tokens were computed again")
            self.feed(tokens)
            return
        self._stage_end = self._cache.stage.up_to
        self._tokens = list(tokens)

    @property
    def kv(self) -> KvStatus:
        """See :meth:`Engine.kv`."""
        return self._cache.status(len(self._tokens))

    def take_notes(self) -> tuple[str, ...]:
        """See :meth:`Engine.take_notes`."""
        notes = tuple(self._cache.notes)
        self._cache.notes.clear()
        return notes

    def memory(self) -> MemoryUse:
        """See :meth:`Engine.memory`."""
        plan = self.info.plan
        planned = plan.total if plan else 0
        if not self._cache.is_open:
            return MemoryUse(planned=planned)
        return read_memory_use(self.info.path, self.context, self.vocab.n_tokens, planned)

    def close(self) -> None:
        """Free the drafters, the context, then the model."""
        if self.speculation is not None:
            self.speculation.close()
        self._owned.close()


def _drop_pages(path: Path) -> None:
    # a file deleted in the meantime has no pages to release
    with suppress(OSError):
        drop_pages(path)
