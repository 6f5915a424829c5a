"""The records of a batch engine: what waits, what runs in which slot, what is finished.

Goes in: records, at any time between two steps. Comes out: results, each once. The scheduler says
what a step computes; here it is computed, tokens are drawn, and slots change hands. What is said of
the order of steps and submissions nowhere shows in a result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Collection
from collections.abc import Sequence as TokenSequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infer_os.native.batch_context import BatchContext
from infer_os.native.errors import ConstraintFailed, GrammarError, NotFinite
from infer_os.native.model import Vocab

from ..errors import ModelClosed, PromptError, SettingsError, TemplateFailure
from ..generate import FinishReason
from ..interface import shared_prefix
from ..plan.memory_plan import MemoryShortage
from ..threads import ThreadCount
from .guesses import Guesses
from .prompt_scores import PromptRows, first_token, score_prompts
from .records import BadRecord, Record, Result
from .scheduler import Counts, Limits, Scheduler, Step
from .sequence import Listener, Sequence, token_logprobs
from .stepping import compute_step


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


@dataclass(frozen=True, slots=True)
class Parts:
    """What sequences run on, and how they begin.

    ``prompt_of`` gives the tokens of a record's prompt (raises PromptError, TemplateFailure);
    ``begin`` makes the sequence of a sample, by its number (raises GrammarError, SettingsError,
    MemoryShortage). ``adapters`` are loaded; the first is that of records that name none.
    """

    context: BatchContext
    vocab: Vocab
    limits: Limits
    threads: ThreadCount
    guesses: Guesses | None
    n_logprobs: int
    prompt_of: Callable[[Record], tuple[int, ...]]
    begin: Callable[[Record, int, tuple[int, ...]], Sequence]
    adapters: tuple[str, ...] = ()

    @property
    def adapter(self) -> str:
        """The adapter of records that name none; "" for none."""
        return self.adapters[0] if self.adapters else ""


@dataclass(slots=True, eq=False)
class _Waiting:
    """A record in line: samples that have no slot yet, and its prompt once it was looked at."""

    record: Record
    samples: deque[int]
    listener: Listener | None
    prompt: tuple[int, ...] | None = None


class Running:
    """Records on their way to results."""

    def __init__(self, parts: Parts) -> None:
        """Begin with nothing; what slots of the context hold is forgotten."""
        self._parts, self._context, self._guesses = parts, parts.context, parts.guesses
        self._scheduler = Scheduler(parts.limits)
        self._waiting: deque[_Waiting] = deque()
        # the next to get a slot
        self._next: Sequence | None = None
        self._running: dict[int, Sequence] = {}
        self._results: list[Result] = []
        self._is_closed = False
        self._started = time.perf_counter()
        #: What all prompts of the run's own adapter so far begin with, but for their last tokens;
        #: None before the first.
        self.common: list[int] | None = None
        self.statistics = BatchStatistics(counts=self._scheduler.counts)
        self._forget_slots()

    # ---- what the engine's owner asks for

    @property
    def is_busy(self) -> bool:
        """Whether a record waits or runs."""
        return bool(self._waiting or self._running)

    @property
    def n_wanted(self) -> int:
        """Records that fill the free slots, and one more to go on with when a sequence ends."""
        free = self._parts.limits.n_slots - self._scheduler.n_busy
        return max(0, free + 1 - sum(len(entry.samples) for entry in self._waiting))

    def submit(
        self, record: Record | BadRecord, without: Collection[int], listener: Listener | None,
        prompt: tuple[int, ...] | None = None,
    ) -> None:  # fmt: skip
        """Put a record in line, without the samples of these numbers."""
        self._check_open()
        if isinstance(record, BadRecord):
            self._fail(record.id, record.line, record.error)
            return
        samples = deque(index for index in range(record.n) if index not in without)
        if samples:
            self._waiting.append(_Waiting(record, samples, listener, prompt))

    def step(self, begins: Callable[[], None] | None = None) -> bool:
        """Fill free slots, compute a step, draw; whether there is more to do.

        ``begins`` is called just before it is computed.
        """
        self._check_open()
        self._fill()
        step = self._scheduler.next_step()
        if step is not None:
            self._compute(step, begins)
        self.statistics.seconds = time.perf_counter() - self._started
        return self.is_busy

    def take(self) -> list[Result]:
        """What was finished since the last call."""
        results, self._results = self._results, []
        return results

    def cancel(self, identity: str | int) -> bool:
        """Drop all samples of a record that were not taken; whether there were any."""
        waiting = [entry for entry in self._waiting if entry.record.id == identity]
        for entry in waiting:
            self._drop(entry)
        running = [slot for slot, s in self._running.items() if s.record.id == identity]
        for slot in running:
            self._release(slot)
        kept = [result for result in self._results if result.id != identity]
        n_taken_back, self._results = len(self._results) - len(kept), kept
        return bool(waiting or running or n_taken_back)

    def abandon(self) -> None:
        """Drop everything that waits or runs, and what slots hold; results stay to be taken."""
        if self._is_closed:
            return
        self._drop_all()
        self._forget_slots()

    def close(self) -> None:
        """Drop everything; the context is not touched any more."""
        self._drop_all()
        self._results.clear()
        self._is_closed = True

    def hold(self, slot: int, tokens: TokenSequence[int]) -> None:
        """A slot that nothing runs in holds these tokens, whose rows are in the context."""
        self._scheduler.hold(slot, tokens, self._parts.adapter)

    def slot_with(self, tokens: TokenSequence[int]) -> tuple[int, int]:
        """The slot that holds the most of these tokens' beginning, and how many that are."""
        slots = range(self._parts.limits.n_slots)
        held = [self._scheduler.held_with(slot, self._parts.adapter) for slot in slots]
        counts = [shared_prefix(one, tokens) for one in held]
        best = max(slots, key=lambda slot: counts[slot])
        return best, counts[best]

    def cut(self, slot: int, n_tokens: int) -> None:
        """A slot that nothing runs in holds only its first tokens."""
        self._scheduler.cut(slot, n_tokens)
        self._context.trim(slot, n_tokens)

    def _check_open(self) -> None:
        if self._is_closed:
            raise ModelClosed("the batch engine is closed")

    def _drop_all(self) -> None:
        for sequence in (*self._running.values(), *([self._next] if self._next else [])):
            sequence.close()
        if self._guesses is not None:
            for slot in self._running:
                self._guesses.end(slot)
        self._running.clear()
        self._waiting.clear()
        self._next = None

    def _forget_slots(self) -> None:
        self._scheduler.clear()
        for slot in range(self._parts.limits.n_slots):
            self._context.trim(slot, 0)

    # ---- from the line into the slots

    def _fill(self) -> None:
        is_new = False
        while self._waiting and self._scheduler.n_busy < self._parts.limits.n_slots:
            if self._next is None:
                self._next = self._begin(self._waiting[0])
                if self._next is None:
                    continue
            sequence = self._next
            admission = self._scheduler.admit(sequence.fed, sequence.n_wanted, sequence.adapter)
            if admission is None:
                break
            self._next = None
            entry = self._waiting[0]
            entry.samples.popleft()
            if not entry.samples:
                self._waiting.popleft()
            if admission.source is not None:
                self._context.copy(admission.source, admission.slot)
            self._context.trim(admission.slot, admission.n_kept)
            self._running[admission.slot] = sequence
            self.statistics.prompt_tokens += len(sequence.prompt)
            is_new = True
        if is_new and self._guesses is not None:
            # they were made for the sequences that there were then
            for slot in self._scheduler.drop_guesses():
                self._guesses.drop(slot)
        if not self._waiting and (move := self._scheduler.move()):
            source, target = move
            self._context.copy(source, target)
            self._context.trim(source, 0)
            self._running[target] = self._running.pop(source)
            if self._guesses is not None:
                self._guesses.move(source, target)

    def _begin(self, entry: _Waiting) -> Sequence | None:
        """The next sample of the first record in line; None if the record cannot be answered."""
        record, n_ctx = entry.record, self._parts.limits.n_ctx
        try:
            if entry.prompt is None:
                prompt = self._parts.prompt_of(record)
                if not prompt:
                    raise PromptError("the prompt is empty")
                if len(prompt) > n_ctx:
                    raise PromptError(
                        f"the prompt has {len(prompt)} tokens, but the context holds {n_ctx}; "
                        "shorten it or raise --context"
                    )
                entry.prompt = prompt
            sequence = self._parts.begin(record, entry.samples[0], entry.prompt)
        except (TemplateFailure, PromptError, GrammarError, SettingsError, MemoryShortage) as error:
            self._drop(entry)
            lacks_memory = isinstance(error, MemoryShortage)
            message = f"{record.place}: {error}"
            self._fail(record.id, record.line, message, lacks_memory=lacks_memory)
            return None
        if sequence.adapter == self._parts.adapter:
            known = list(entry.prompt[:-1])
            before = known if self.common is None else self.common
            self.common = known[: shared_prefix(before, known)]
        sequence.listener = entry.listener
        if sequence.scores_prompt:
            sequence.prompt_logprobs.append(first_token(sequence.prompt[0], self._parts.vocab))
        if not sequence.fed:  # nothing is drawn after one token
            self._drop(entry)
            self._finish(sequence, FinishReason.LENGTH)
            return None
        return sequence

    def _drop(self, entry: _Waiting) -> None:
        if entry is self._waiting[0] and self._next is not None:
            self._next.close()
            self._next = None
        self._waiting.remove(entry)

    def _fail(
        self, identity: str | int | None, line: int, error: str, *, lacks_memory: bool = False
    ) -> None:
        self.statistics.records += 1
        self.statistics.failed += 1
        self._results.append(Result(identity, line, error=error, lacks_memory=lacks_memory))

    # ---- a step

    def _compute(self, step: Step, begins: Callable[[], None] | None) -> None:
        started = time.perf_counter()
        self._context.use_threads(self._parts.threads.now())
        compute_step(self._context, step, begins)
        if self._guesses is not None and step.outputs:
            self._guesses.step_took(time.perf_counter() - started, self._scheduler.n_busy)
        self._scheduler.computed(step)
        if step.outputs:
            self._draw(step, self._score(step))

    def _score(self, step: Step) -> set[int]:
        """Find what rows say of the prompts' tokens behind them; slots that have nothing to draw.

        Those are not at the end of their prompt yet, or get no more than it.
        """
        wanted: list[PromptRows] = []
        row = 0
        for rows in step.slots:
            sequence = self._running.get(rows.slot)
            if rows.n_wanted and sequence is not None and sequence.is_in_prompt:
                skipped = rows.n_real - rows.n_wanted
                wanted.append(PromptRows(
                    sequence, row + skipped, rows.position + skipped, rows.n_wanted,
                    self._n_logprobs(sequence.record) or 0,
                ))  # fmt: skip
            row += len(rows.tokens)
        if not wanted:
            return set()
        logits = self._context.logits(step.n_rows)
        score_prompts(logits, wanted, self._parts.threads.now(), self._parts.vocab)
        silent: set[int] = set()
        for rows in step.slots:
            sequence = self._running.get(rows.slot)
            if not rows.n_wanted or sequence is None or not sequence.scores_prompt:
                continue
            if not all(math.isfinite(one.logprob) for one in sequence.prompt_logprobs[1:]):
                self._break_off(rows.slot, sequence, str(NotFinite()))
            elif rows.position + rows.n_real < len(sequence.fed):
                pass
            elif not sequence.record.draws:
                self._finish(sequence, FinishReason.LENGTH)
                self._release(rows.slot)
            else:
                continue
            silent.add(rows.slot)
        return silent

    def _draw(self, step: Step, silent: set[int]) -> None:
        if all(rows.slot in silent for rows in step.slots if rows.n_wanted):
            return
        logits = self._context.logits(step.n_rows)
        likeliest = logits.argmax(axis=1).tolist()
        row = 0
        for rows in step.slots:
            end = row + rows.n_real
            row += len(rows.tokens)
            if not rows.n_wanted or rows.slot in silent:
                continue
            sequence = self._running[rows.slot]
            # what was fed behind the token that is certain are guesses, but not of a prompt
            n_guesses = rows.n_wanted - 1 if sequence.tokens else 0
            first = end - 1 - n_guesses
            guesses = rows.tokens[rows.n_real - n_guesses : rows.n_real]
            n_right = 0
            while True:
                try:
                    token = self._drawn(sequence, logits, likeliest, first + n_right)
                except (ConstraintFailed, NotFinite) as error:
                    self._break_off(rows.slot, sequence, str(error))
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
        if not math.isfinite(logits[row, likeliest[row]]):  # NaN is the largest
            raise NotFinite
        if sequence.sampler is None:
            token = likeliest[row]
        else:
            token = sequence.sampler.draw_from(self._context, row, logits[row])
        if (n_logprobs := self._n_logprobs(sequence.record)) is not None:
            sequence.logprobs.append(
                token_logprobs(logits[row], token, n_logprobs, self._parts.vocab)
            )
        return token

    def _n_logprobs(self, record: Record) -> int | None:
        """How many of the likeliest tokens are told with each of a record's; None for no word."""
        return record.logprobs if record.logprobs is not None else self._parts.n_logprobs or None

    def _take(self, slot: int, sequence: Sequence, token: int) -> bool:
        """Take a drawn token; whether the sequence is finished."""
        self.statistics.completion_tokens += 1
        reason = sequence.push(token, self._parts.vocab, self._parts.limits.n_ctx)
        if reason is None:
            if self._guesses is not None:
                self._guesses.push(slot, token)
            return False
        self._finish(sequence, reason)
        self._release(slot)
        return True

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        told = sequence.record.draws and self._n_logprobs(sequence.record) is not None
        self._results.append(sequence.result(reason, with_logprobs=told))
        self.statistics.records += 1

    def _break_off(self, slot: int, sequence: Sequence, error: str) -> None:
        """A sample that cannot go on becomes an error; the others go on."""
        record = sequence.record
        self._fail(record.id, record.line, f"line {record.line}: {error}")
        self._release(slot)

    def _release(self, slot: int) -> None:
        """Free a slot for another sequence."""
        self._running.pop(slot).close()
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
                self._parts.limits.n_ctx - held,
            )
            spare = self._scheduler.spare_rows(more=bool(self._waiting))
            limit = min(spare, rest - 1)
            if limit > 0 and not self._guesses.has(slot):
                self._guesses.begin(slot, [*sequence.prompt, *sequence.tokens])
            more = self._guesses.propose(slot, limit) if limit > 0 else []
        self._scheduler.push(slot, [token, *more], 1 + len(more))
