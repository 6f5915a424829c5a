"""The batch engine: records in, results out, many sequences in each decode.

It owns the model and a context of many sequences; the scheduler decides what each step computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Set
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.models.catalog import style_for
from infer_os.models.rotation import ROTATION_KEY
from infer_os.native.backend import own_kernels
from infer_os.native.batch_context import BatchContext, BatchContextParams, Rows
from infer_os.native.constraint import constraint_bytes
from infer_os.native.errors import ConstraintFailed, GrammarError
from infer_os.native.graph_check import read_model_header
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.owner import Owner

from ..engine import kv_model
from ..errors import PromptError, TemplateFailure
from ..plan.memory_plan import MemoryShortage, Plan, check_plan
from ..plan.shapes import header_shape
from ..plan.sizes import size_text
from ..plan.step_rows import STOCK, UNBOUND, slots_for
from ..plan.use import N_BATCH
from ..prepare import load_model
from ..sampler import LlamaSampler
from ..settings import EngineSettings, Extra
from ..speculative.rounding import Rounding
from ..text import TextStream
from ..threads import ThreadCount
from .drafts import make_drafters, read_draft
from .guesses import Guesses
from .parallel import CurvePoint, best_parallel, measure_curve, most_that_fit, plan_batch
from .prompts import ModelInfo, Prompts
from .records import BadRecord, Record, Result
from .scheduler import Counts, Limits, Scheduler, Step
from .sequence import Sequence, is_plain_greedy, token_logprobs
from .settings import BatchSettings

#: Names a sample: its record's id, and its number.
SampleKey = tuple[str | int, int]


@dataclass(slots=True)
class BatchStatistics:
    """What a run has done so far. ``counts`` are rows; seconds are of the whole run."""

    records: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)

    @property
    def tokens_per_s(self) -> float:
        """Drawn tokens per second."""
        return self.completion_tokens / self.seconds if self.seconds else 0.0


class BatchEngine(Owner):
    """A model that answers many records at once. A context manager; not for several threads."""

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
            model: the file's weights if they are loaded already, as the settings say; whoever
                loaded them closes them, after this.

        Raises:
            GgufError: the file cannot be used.
            SettingsError: options that are not possible for this model.
            MemoryShortage: it does not fit.
            ModelLoadError: llama.cpp refuses it.
            TemplateFailure: its chat template was asked for and cannot be used.
        """
        batch = batch or BatchSettings()
        draft = read_draft(path, settings)
        header = read_model_header(path)
        kv = kv_model(header, settings.n_threads)
        if batch.parallel:
            n_seq = slots_for(batch.parallel)
            plan, notes = plan_batch(header, settings, n_seq, draft)
            check_plan(plan)
        else:
            n_seq, plan, notes = most_that_fit(header, settings, draft)
        self._rotates = ROTATION_KEY not in header.metadata
        self._batch = batch
        self.curve: tuple[CurvePoint, ...] = ()
        with ExitStack() as stack:
            #: Bytes that the plans foresee at most, the measurement's included.
            self.planned_bytes = plan.total
            self._plans_constraint = Extra.CONSTRAINT in settings.extras
            self._model = model or stack.enter_context(
                load_model(path, settings, plan, warmed=warmed)
            )
            self._context = self._new_context(plan)
            stack.callback(lambda: self._context.close())
            if not batch.parallel and n_seq > 1:
                self.curve = measure_curve(n_seq, self._probe)
                best = best_parallel(self.curve)
                if best < n_seq:
                    plan, notes = plan_batch(header, settings, best, draft)
                    self._context.close()
                    self._context = self._new_context(plan)
            info = ModelInfo(path, self._model.chat_template, style_for(header.metadata))
            #: What it gets of records.
            self.prompts = Prompts(info, self._model.vocab, batch)
            self._owned = stack.pop_all()
        self.plan: Plan = plan
        last = plan.schedule.stages[-1]
        rounding = Rounding(
            frozenset(t.type.name for t in header.tensors if len(t.shape) > 1), settings.load,
            own_kernels(self._model.kernels, kv.geometry),
        )  # fmt: skip
        alike = rounding.rows_alike((last.type_k, last.type_v), plan.sizes.n_ctx)
        is_own = rounding.is_own([(last.type_k, last.type_v)])
        #: How many threads compute the next step.
        self.threads = ThreadCount(settings.n_threads, fixed=bool(settings.threads) or not is_own)
        #: Where our own kernels compute everything, any step computes a row alike.
        self.bounds = UNBOUND if alike > N_BATCH else STOCK
        self._plan_notes, self._n_told = notes, 0
        self.n_ctx = plan.sizes.n_ctx
        self.n_seq = plan.sizes.n_seq
        self.path = path
        self.vocab = self._model.vocab
        self.statistics = BatchStatistics()
        self.guesses = (
            Guesses(lambda: make_drafters(draft, settings, plan.sizes.n_ctx), settings.draft_max)
            if settings.draft != "none"
            else None
        )

    def _new_context(self, plan: Plan) -> BatchContext:
        stage, sizes = plan.schedule.stages[-1], plan.sizes
        return BatchContext(self._model, BatchContextParams(
            sizes.n_ctx, sizes.n_seq, sizes.n_threads, sizes.n_batch, sizes.n_outputs,
            stage.type_k, stage.type_v, self._rotates,
        ))  # fmt: skip

    def _probe(self, n_seq: int) -> None:
        """A decode step of the first ``n_seq`` sequences, which hold nothing before and after."""
        height = max(1, -(-8 // n_seq))
        n = n_seq * height
        positions = np.tile(np.arange(height, dtype=np.int32), n_seq)
        sequences = np.repeat(np.arange(n_seq, dtype=np.int32), height)
        self._context.decode(Rows(np.zeros(n, np.int32), positions, sequences, np.ones(n, np.int8)))
        for sequence in range(n_seq):
            self._context.trim(sequence, 0)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know; conversations may add to it, which the first one shows."""
        return (*self._plan_notes, *self.prompts.notes)

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
        """The context, for those who look at its memory."""
        return self._context

    def run(
        self, records: Iterable[Record | BadRecord], done: Set[SampleKey] = frozenset()
    ) -> Generator[Result, None, None]:
        """Answer records; each sample's result comes as soon as it is finished.

        Records are taken as there is room for them. A record that cannot be answered gives a
        result with an error. Ctrl-C stops a step at once; what is unfinished then is lost.

        Args:
            records: any iterable; a pipe is read no further than needed.
            done: samples to leave out.

        Raises:
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
        """
        run = _Run(self, self._batch, self._context, iter(records), done)
        self.statistics = run.statistics
        try:
            while True:
                # results are handed out between steps, where signals are Python's own
                with interruptible():
                    going = run.advance()
                yield from run.take_results()
                if not going:
                    return
        finally:
            run.close()

    def prompt_tokens(self, record: Record) -> tuple[int, ...]:
        """A record's prompt as the model gets it.

        Raises:
            PromptError: the prompt has far more tokens than the context holds.
            TemplateFailure: the model's chat template refuses the conversation.
        """
        return self.prompts.tokens(record, self.n_ctx)

    def new_sampler(self, record: Record, index: int, prompt: tuple[int, ...]) -> LlamaSampler:
        """A sample's sampler; the caller closes it."""
        sampler = LlamaSampler(record.sampling_of(index), self.vocab)
        sampler.remember(prompt)
        return sampler

    def plan_constraint(self) -> None:
        """Count what a constraint takes, which only a record may ask for, before the first is made.

        Raises:
            MemoryShortage: it does not fit beside the plan.
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
        """Free what guesses, the context, then the model."""
        if self.guesses is not None:
            self.guesses.close()
        self._owned.close()


class _Run:
    """One pass over records: what waits, what runs in which slot, what is finished."""

    def __init__(
        self, engine: BatchEngine, batch: BatchSettings, context: BatchContext,
        records: Iterator[Record | BadRecord], done: Set[SampleKey],
    ) -> None:  # fmt: skip
        self._engine, self._context, self._records = engine, context, records
        self._n_logprobs = batch.logprobs
        self._done = done
        self._scheduler = Scheduler(
            Limits(engine.n_ctx, engine.n_seq, N_BATCH, bounds=engine.bounds)
        )
        self._running: dict[int, Sequence] = {}
        self._pending: list[Sequence] = []
        self._exhausted = False
        self._results: list[Result] = []
        self._started = time.perf_counter()
        self.statistics = BatchStatistics(counts=self._scheduler.counts)
        self._guesses = engine.guesses
        for slot in range(engine.n_seq):
            context.trim(slot, 0)

    def advance(self) -> bool:
        """Fill free slots, compute a step, draw. False when there is nothing left."""
        self._fill()
        step = self._scheduler.next_step()
        if step is None:
            # between two records that cannot be answered there may be nothing to compute
            return bool(self._pending) or not self._exhausted
        started = time.perf_counter()
        self._context.use_threads(self._engine.threads.now())
        self._context.decode(_rows(step))
        if self._guesses is not None and step.outputs:
            self._guesses.step_took(time.perf_counter() - started, self._scheduler.n_busy)
        for rows in step.slots:
            if rows.n_real < len(rows.tokens):
                self._context.trim(rows.slot, rows.position + rows.n_real)
        self._scheduler.computed(step)
        if step.outputs:
            self._draw(step)
        self.statistics.seconds = time.perf_counter() - self._started
        return True

    def take_results(self) -> list[Result]:
        """What was finished since the last call."""
        results, self._results = self._results, []
        return results

    def _fill(self) -> None:
        while self._scheduler.n_busy < self._engine.n_seq:
            if not self._pending and not self._take_record():
                break
            sequence = self._pending[0]
            admission = self._scheduler.admit(sequence.prompt)
            if admission is None:
                break
            del self._pending[0]
            if admission.source is not None:
                self._context.copy(admission.source, admission.slot)
            self._context.trim(admission.slot, admission.n_kept)
            self._running[admission.slot] = sequence
            self.statistics.prompt_tokens += len(sequence.prompt)
        if self._exhausted and not self._pending and (move := self._scheduler.move()):
            source, target = move
            self._context.copy(source, target)
            self._context.trim(source, 0)
            self._running[target] = self._running.pop(source)
            if self._guesses is not None:
                self._guesses.move(source, target)

    def _take_record(self) -> bool:
        """Put the samples of the next good record in line; False if there is none left."""
        for record in self._records:
            if isinstance(record, BadRecord):
                self._fail(record.id, record.line, record.error)
                # it is told before the next one is read, which may take its time
                return False
            if self._prepare(record):
                return True
        self._exhausted = True
        return False

    def _prepare(self, record: Record) -> bool:
        engine = self._engine
        wanted = [i for i in range(record.n) if (record.id, i) not in self._done]
        if not wanted:
            return False
        try:
            prompt = engine.prompt_tokens(record)
        except (TemplateFailure, PromptError) as error:
            self._fail(record.id, record.line, f"{record.place}: {error}")
            return False
        if not 1 <= len(prompt) <= engine.n_ctx:
            what = (
                f"the prompt has {len(prompt)} tokens, but the context holds {engine.n_ctx}; "
                "shorten it or raise --context" if prompt else "the prompt is empty"
            )  # fmt: skip
            self._fail(record.id, record.line, f"{record.place}: {what}")
            return False
        for index in wanted:
            settings = record.sampling
            try:
                if settings.constraint:
                    engine.plan_constraint()
                sampler = None if is_plain_greedy(settings) else (
                    engine.new_sampler(record, index, prompt)
                )  # fmt: skip
            except (GrammarError, MemoryShortage) as error:
                self._fail(record.id, record.line, f"{record.place}: {error}")
                return False
            text = TextStream(engine.prompts.stops(record))
            frame = engine.prompts.frame(record)
            self._pending.append(Sequence(record, index, prompt, sampler, text, frame))
        return True

    def _fail(self, identity: str | int | None, line: int, error: str) -> None:
        self.statistics.records += 1
        self.statistics.failed += 1
        self._results.append(Result(identity, line, error=error))

    def _draw(self, step: Step) -> None:
        n_rows = step.n_rows
        logits = self._context.logits(n_rows)
        likeliest = logits.argmax(axis=1).tolist()
        row = 0
        for rows in step.slots:
            first = row + rows.n_real - rows.n_wanted
            row += len(rows.tokens)
            if not rows.n_wanted:
                continue
            # what was fed behind the token that is certain are guesses
            guesses = rows.tokens[rows.n_real - rows.n_wanted + 1 : rows.n_real]
            sequence = self._running[rows.slot]
            n_right = 0
            while True:
                try:
                    token = self._drawn(sequence, logits, likeliest, first + n_right)
                except ConstraintFailed as error:
                    self._break_off(rows.slot, sequence, error)
                    ended = True
                    break
                ended = self._take(rows.slot, sequence, token)
                if ended or guesses[n_right : n_right + 1] != (token,):
                    break
                n_right += 1
            if not ended:
                self._go_on(rows.slot, sequence, token, len(guesses), n_right)

    def _drawn(
        self, sequence: Sequence, logits: NDArray[np.float32], likeliest: list[int], row: int
    ) -> int:
        if sequence.sampler is None:
            token = likeliest[row]
        else:
            token = sequence.sampler.draw_from(self._context, row, logits[row])
        if self._n_logprobs:
            sequence.logprobs.append(
                token_logprobs(logits[row], token, self._n_logprobs, self._engine.vocab)
            )
        return token

    def _take(self, slot: int, sequence: Sequence, token: int) -> bool:
        """Take a drawn token; whether the sequence is finished."""
        self.statistics.completion_tokens += 1
        reason = sequence.push(token, self._engine.vocab, self._engine.n_ctx)
        if reason is None:
            if self._guesses is not None:
                self._guesses.push(slot, token)
            return False
        self._results.append(sequence.result(reason, with_logprobs=self._n_logprobs > 0))
        self.statistics.records += 1
        self._release(slot, sequence)
        return True

    def _break_off(self, slot: int, sequence: Sequence, error: ConstraintFailed) -> None:
        """A sample that cannot go on becomes an error; the others go on."""
        record = sequence.record
        self._fail(record.id, record.line, f"line {record.line}: {error}")
        self._release(slot, sequence)

    def _release(self, slot: int, sequence: Sequence) -> None:
        """Free a slot for another sequence."""
        _close(sequence)
        del self._running[slot]
        if self._guesses is not None:
            self._guesses.end(slot)
        self._scheduler.release(slot)
        self._context.trim(slot, len(self._scheduler.held(slot)))

    def _go_on(
        self, slot: int, sequence: Sequence, token: int, n_guessed: int, n_right: int
    ) -> None:
        """Forget the guesses that were wrong, and feed the next token, with others behind it."""
        held = len(self._scheduler.held(slot)) - (n_guessed - n_right)
        if n_right < n_guessed:
            self._scheduler.cut(slot, held)
            self._context.trim(slot, held)
        more: list[int] = []
        if self._guesses is not None:
            self._guesses.learn(slot, n_right)
            rest = min(
                sequence.record.stops.limit - len(sequence.tokens),
                self._engine.n_ctx - held,
            )
            more_come = bool(self._pending) or not self._exhausted
            limit = min(self._scheduler.spare_rows(more=more_come), rest - 1)
            if limit > 0 and not self._guesses.has(slot):
                self._guesses.begin(slot, [*sequence.prompt, *sequence.tokens])
            more = self._guesses.propose(slot, limit) if limit > 0 else []
        self._scheduler.push(slot, [token, *more], 1 + len(more))

    def close(self) -> None:
        """Free the samplers of what is unfinished."""
        for sequence in (*self._running.values(), *self._pending):
            _close(sequence)


def _close(sequence: Sequence) -> None:
    if sequence.sampler is not None:
        sequence.sampler.close()
        sequence.sampler = None


def _rows(step: Step) -> Rows:
    """The arrays of a step, slot by slot."""
    tokens: list[int] = []
    positions: list[int] = []
    sequences: list[int] = []
    for rows in step.slots:
        n = len(rows.tokens)
        tokens += rows.tokens
        positions += range(rows.position, rows.position + n)
        sequences += [rows.slot] * n
    return Rows(
        np.array(tokens, np.int32), np.array(positions, np.int32), np.array(sequences, np.int32),
        np.full(len(tokens), step.outputs, np.int8),
    )  # fmt: skip
