"""The batch engine: records in, results out, many sequences in each decode.

It owns the model and a context of many sequences, and is pushed: records are submitted at any time,
and :meth:`BatchEngine.step` computes what there is. :meth:`BatchEngine.run` does both for a source
of records.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Set
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np

from infer_os.locks import in_use
from infer_os.models.catalog import style_for
from infer_os.models.rotation import ROTATION_KEY
from infer_os.native.batch_context import BatchContext, BatchContextParams, Rows
from infer_os.native.constraint import constraint_bytes
from infer_os.native.gguf_file import GgufHeader
from infer_os.native.graph_check import read_model_header
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.owner import Owner
from infer_os.sizes import size_text

from ..errors import SettingsError
from ..interface import chosen_adapter
from ..plan.memory_plan import MemoryShortage, Plan
from ..plan.shapes import header_shape
from ..plan.step_rows import LEAST_ROWS, STOCK, UNBOUND, Bounds
from ..plan.use import N_BATCH
from ..prepare import load_model
from ..sampler import LlamaSampler
from ..settings import EngineSettings, Extra
from ..speculative.rounding import rounding_of
from ..text import TextStream
from ..threads import ThreadCount
from .beam_run import BeamRun
from .drafts import BatchDraft, make_drafters, read_draft
from .feeding import Pulled, Source
from .guesses import Guesses
from .kept_prompt import KeptPrompt
from .parallel import CurvePoint, best_parallel, first_plan, measure_curve, plan_batch
from .prompts import ModelInfo, Prompts
from .records import BadRecord, Record, Result
from .running import BatchStatistics, Parts, Running
from .scheduler import Limits
from .sequence import Listener, Sequence
from .settings import BatchSettings

#: Identifies a sample: its record's id, and its number.
SampleKey = tuple[str | int, int]


class BatchEngine(Owner):
    """A model that answers many records at once. A context manager.

    One thread owns it and makes all calls; others hand their records to that thread. The owner
    submits records, at least as many as :attr:`n_wanted` says, and steps while there is something
    to do; after each step it takes what is finished. A submission between two steps costs next to
    nothing. Neither what else runs nor when a record comes shows in its results.
    """

    def __init__(
        self,
        path: Path,
        settings: EngineSettings,
        batch: BatchSettings | None = None,
        *,
        warmed: Callable[[int, int], None] | None = None,
        model: LlamaModel | None = None,
    ) -> None:
        """Plan, check, load, allocate; with ``parallel`` 0 measure how many sequences are worth it.

        Args:
            path: a GGUF file.
            settings: how it is loaded.
            batch: how it is run.
            warmed: called with bytes done and in all while the file is prefetched.
            model: the file's weights, if already loaded as the settings say; whoever loaded them
                closes them, after this.

        Raises:
            GgufError: the file cannot be used.
            SettingsError: options that are not possible for this model.
            MemoryShortage: it does not fit.
            ModelLoadError: llama.cpp refuses it.
            TemplateFailure: its chat template was requested and cannot be used.
        """
        batch = batch or BatchSettings()
        if batch.is_search and settings.draft != "none":
            raise SettingsError("--draft and --beams: a beam search guesses nothing; drop one")
        if batch.is_search:
            settings = replace(settings, extras=settings.extras | {Extra.SEARCH})
        self._batch = batch
        draft = read_draft(path, settings)
        header = read_model_header(path)
        plan, notes = first_plan(header, settings, batch.n_sequences, draft)
        self.path = path
        self._rotates = ROTATION_KEY not in header.metadata
        self._plans_constraint = Extra.CONSTRAINT in settings.extras
        #: Most bytes of the plans, including that of the measurement.
        self.planned_bytes = plan.total
        self.curve: tuple[CurvePoint, ...] = ()
        with ExitStack() as stack:
            stack.enter_context(in_use(path))
            self._model = model or stack.enter_context(
                load_model(path, settings, plan, warmed=warmed)
            )
            self.vocab = self._model.vocab
            self._context = self._new_context(plan)
            stack.callback(lambda: self._context.close())
            if not batch.n_sequences and plan.sizes.n_seq > 1:
                self.curve = measure_curve(plan.sizes.n_seq, self._probe)
                best = best_parallel(self.curve)
                if best < plan.sizes.n_seq:
                    plan, notes = plan_batch(header, settings, best, draft)
                    self._context.close()
                    self._context = self._new_context(plan)
            info = ModelInfo(path, self._model.chat_template, style_for(header.metadata))
            #: Makes prompts of records.
            self.prompts = Prompts(info, self.vocab, batch)
            self._owned = stack.pop_all()
        self.plan: Plan = plan
        self.n_ctx, self.n_seq = plan.sizes.n_ctx, plan.sizes.n_seq
        self._plan_notes, self._n_told = notes, 0
        #: What sequences run on, and how they begin.
        self.parts = self._make_parts(header, settings, draft, batch.logprobs)
        #: What prompts begin with, from a file and back to it; None where that was not asked for.
        self.kept: KeptPrompt | None = None
        #: Who guesses; None where that was not asked for.
        self.guesses = self.parts.guesses
        self._running = Running(self.parts)

    def _new_context(self, plan: Plan) -> BatchContext:
        stage, sizes = plan.schedule.stages[-1], plan.sizes
        return BatchContext(self._model, BatchContextParams(
            sizes.n_ctx, sizes.n_seq, sizes.n_threads, sizes.n_batch, sizes.n_outputs,
            stage.type_k, stage.type_v, self._rotates,
        ))  # fmt: skip

    def _make_parts(
        self, header: GgufHeader, settings: EngineSettings, draft: BatchDraft | None, logprobs: int
    ) -> Parts:
        rounding = rounding_of(
            header, settings.load, self._model.kernels, with_adapters=bool(settings.adapters)
        )
        last = self.plan.schedule.stages[-1]
        types = (last.type_k, last.type_v)
        # where our own kernels compute everything, any step computes a row alike
        alike = rounding.rows_alike(types, self.n_ctx)
        bounds = UNBOUND if alike > N_BATCH else STOCK
        is_fixed = bool(settings.threads) or not rounding.may_take_threads_away([types])
        guesses = None
        if settings.draft != "none":
            guesses = Guesses(
                lambda: make_drafters(draft, settings, self.n_ctx), settings.draft_max
            )
        return Parts(
            self._context, self.vocab, self._limits(bounds),
            ThreadCount(settings.n_threads, fixed=is_fixed), guesses, logprobs,
            self.prompt_tokens, self._begin, tuple(self._model.adapters),
        )  # fmt: skip

    def _limits(self, bounds: Bounds) -> Limits:
        n_outputs = self.plan.sizes.n_outputs
        return Limits(self.n_ctx, self.n_seq, N_BATCH, bounds=bounds, n_outputs=n_outputs)

    def _probe(self, n_seq: int) -> None:
        """A decode step of the first ``n_seq`` sequences, which hold nothing before and after."""
        height = -(-LEAST_ROWS // n_seq)
        n = n_seq * height
        positions = np.tile(np.arange(height, dtype=np.int32), n_seq)
        sequences = np.repeat(np.arange(n_seq, dtype=np.int32), height)
        self._context.decode(Rows(np.zeros(n, np.int32), positions, sequences, np.ones(n, np.int8)))
        for sequence in range(n_seq):
            self._context.trim(sequence, 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know; the first conversation may add to it."""
        kept = self.kept.notes if self.kept is not None else ()
        return (*self._plan_notes, *kept, *self.prompts.notes)

    def take_notes(self) -> tuple[str, ...]:
        """The notes that were not taken before."""
        new = self.notes[self._n_told :]
        self._n_told += len(new)
        return new

    @property
    def model(self) -> LlamaModel:
        """The loaded model."""
        return self._model

    @property
    def context(self) -> BatchContext:
        """The context, to inspect its memory."""
        return self._context

    # ---- pushed

    def submit(
        self,
        record: Record | BadRecord,
        *,
        without: Collection[int] = (),
        listener: Listener | None = None,
        prompt: tuple[int, ...] | None = None,
    ) -> None:
        """Put a record in line; it is looked at when there is a free slot for it.

        One that cannot be answered gives a result with an error: a BadRecord at once, others when
        they are looked at. Records should have ids of their own, by which results are known.

        Args:
            record: what is asked for.
            without: numbers of samples to leave out.
            listener: called within :meth:`step`, in the owner's thread, with what has just been
                added to a sample, so that an answer can be shown while it is written. What it
                gets is final, and all of it put together is the result. It must be quick and not
                use the engine; what it raises ends the step.
            prompt: what :meth:`prompt_tokens` said, which another thread may ask beforehand: it
                may take a while, and nothing is computed meanwhile if it is left to a step. Such
                a prompt must have tokens, and fit.
        """
        self._running.submit(record, without, listener, prompt)

    @property
    def n_wanted(self) -> int:
        """How many records it can use: for its free slots, and one more.

        Further ones wait, and are held, without advantage; a caller bounds his queue by this.
        """
        return self._running.n_wanted

    @property
    def is_busy(self) -> bool:
        """Whether a record waits or runs."""
        return self._running.is_busy

    def step(self, begins: Callable[[], None] | None = None) -> bool:
        """Give waiting records their slots and compute one decode: of prompts, or of next tokens.

        Ctrl-C stops it at once. After an error everything that waited or ran is lost; results that
        were finished before can be taken, and new records submitted.

        Args:
            begins: called just before the decode, if there is one: the moment to let other threads
                work, which do not hold this one up until it ends.

        Returns:
            Whether there is anything left to do.

        Raises:
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
        """
        try:
            with interruptible():
                return self._running.step(begins)
        except BaseException:
            self._running.abandon()
            raise

    def take(self) -> list[Result]:
        """The results that were finished since the last call, each sample's once."""
        return self._running.take()

    def cancel(self, identity: str | int) -> bool:
        """Forget a record with all of its samples, whether it waits or runs. Its slots are free.

        No result of it is given any more, not even of a sample that was finished but not taken.

        Returns:
            Whether there was something to forget: False for an id that is not known, or whose
            results were all taken.
        """
        return self._running.cancel(identity)

    def restart(self) -> None:
        """Cancel everything, forget what slots hold of prompts, and begin new statistics."""
        self._running.close()
        self._running = Running(self.parts)

    @property
    def statistics(self) -> BatchStatistics:
        """Of all that was submitted since the start, or the latest :meth:`restart`."""
        return self._running.statistics

    # ---- pulled

    def keep_prompt(self, file: Path, cache_folder: Path) -> None:
        """Let :meth:`run` start behind what a file has of prompts, and keep what they begin with.

        Args:
            file: that of ``--prompt-cache``.
            cache_folder: where its key is.
        """
        adapter = self._model.adapters.get(self.parts.adapter)
        identity = adapter.identity if adapter is not None else ""
        self.kept = KeptPrompt(file, cache_folder, self.path, identity)

    def run(
        self,
        records: Iterable[Record | BadRecord] | Source[Record | BadRecord],
        done: Set[SampleKey] = frozenset(),
    ) -> Generator[Result, None, None]:
        """Answer records; each sample's result comes as soon as it is finished.

        Records are taken as there is room for them. A record that cannot be answered gives a
        result with an error. Ctrl-C stops a step at once; what is unfinished then is lost.

        Args:
            records: any iterable, which is read no further than needed, and in this thread: one
                that waits holds up what runs. :class:`~.feeding.ReadAhead` does not.
            done: samples to leave out.

        Raises:
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
        """
        source = Pulled(records) if isinstance(records, Iterable) else records
        self.restart()
        if self.kept is not None:
            self.kept.take(self._running, self._context)
        if self._batch.is_search:
            search = BeamRun(self.parts, self._batch.beams, self.statistics)
            while (record := source.take(wait=True)) is not None:
                yield from search.answer(record, _done_samples(record, done))
            return
        running = self._running
        try:
            while True:
                while self.n_wanted:
                    record = source.take(wait=not self.is_busy)
                    if record is None:
                        break
                    self.submit(record, without=_done_samples(record, done))
                    # it hears what cannot be answered before the next one is waited for
                    yield from self.take()
                # results are handed out between steps, where signals are Python's own
                going = self.step()
                yield from self.take()
                if source.is_over and not going:
                    if self.kept is not None:
                        self.kept.keep(running, self._context)
                    return
        finally:
            running.abandon()

    # ---- what sequences are made of

    def prompt_tokens(self, record: Record) -> tuple[int, ...]:
        """A record's prompt as the model gets it. For any thread, but one at a time.

        Raises:
            PromptError: the prompt has far more tokens than the context holds.
            TemplateFailure: the model's chat template refuses the conversation.
        """
        return self.prompts.tokens(record, self.n_ctx)

    def _begin(self, record: Record, index: int, prompt: tuple[int, ...]) -> Sequence:
        """A sample's sequence, before its first token."""
        settings, sampler = record.sampling, None
        adapter = chosen_adapter(record.adapter, self.parts.adapters)
        if settings.constraint:
            self.plan_constraint()
        if not settings.takes_the_models_likeliest:
            sampler = LlamaSampler(record.sampling_of(index), self.vocab)
            sampler.remember(prompt)
        text = TextStream(self.prompts.stops(record))
        frame = self.prompts.frame(record)
        return Sequence(record, index, prompt, sampler, text, frame, adapter)

    def plan_constraint(self) -> None:
        """Count the memory of a constraint, which only a record may ask for, before the first one.

        Raises:
            MemoryShortage: it does not fit in addition to the plan.
        """
        if self._plans_constraint:
            return
        shape = header_shape(self.model.header, constrained=True)
        n_bytes = constraint_bytes(shape.n_vocab, shape.n_places)
        if self.planned_bytes + n_bytes > self.plan.limit:
            raise MemoryShortage(
                f"a constraint takes {size_text(n_bytes)} more, and {size_text(self.plan.limit)} "
                "may be used; raise --memory or lower --parallel"
            )
        self.planned_bytes += n_bytes
        self._plans_constraint = True

    def close(self) -> None:
        """Cancel everything; free what guesses, the context, then the model."""
        self._running.close()
        if self.guesses is not None:
            self.guesses.close()
        self._owned.close()


def _done_samples(record: Record | BadRecord, done: Set[SampleKey]) -> tuple[int, ...]:
    if isinstance(record, BadRecord) or not done:
        return ()
    return tuple(index for index in range(record.n) if (record.id, index) in done)
