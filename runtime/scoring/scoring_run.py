"""Records on their way to scores: what waits, what runs in which slot, what is finished.

Goes in: records, at any time between two steps. Comes out: results, each once. Records with one
context become a passage, which one slot computes: the context, then each continuation from where it
leaves the others. A text is cut into windows, each a passage. The scheduler says what a step
computes; what rows of logits say of the tokens behind them is found in C++, without a copy of them.
What else is in a step shows in no result.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infer_os.native.batch_context import BatchContext
from infer_os.native.errors import NotFinite
from infer_os.native.model import Vocab
from infer_os.native.scoring import score_rows

from ..batch.records import BadRecord
from ..batch.scheduler import Counts, Limits, Scheduler, SlotRows, Step
from ..batch.stepping import compute_step
from ..errors import PromptError
from ..plan.memory_plan import MemoryShortage
from ..threads import ThreadCount
from .joining import Window, cut_text, join_pair, text_tokens
from .paths import Path, make_paths
from .score_records import ScoreRecord, ScoreResult, TokenScore, count_bytes, count_words

#: Windows of a passage: of more continuations with one context, several slots take some each.
_MOST_WINDOWS = 16
#: Records that wait, so that those with one context are seen together; and bytes of their texts.
_MOST_WAITING, _MOST_WAITING_BYTES = 64, 256_000
#: Texts up to so many bytes are a part of the plan.
_SMALL_TEXT = 32_000
#: What such a text takes at most, per character: its tokens, their scores, and a line of them.
_TEXT_BYTES = 300


@dataclass(slots=True)
class ScoringStatistics:
    """What a run has done so far. ``counts`` are rows; seconds are of the whole run.

    ``prompt_tokens`` are those of contexts and texts, ``completion_tokens`` those that were scored.
    """

    records: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    counts: Counts = field(default_factory=Counts)

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second, contexts included."""
        return self.prompt_tokens / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class Parts:
    """What records are scored with.

    ``reserve`` counts bytes that the plan does not foresee, and raises MemoryShortage where they do
    not fit.
    """

    context: BatchContext
    vocab: Vocab
    limits: Limits
    threads: ThreadCount
    totals: bool
    reserve: Callable[[int], None]


@dataclass(slots=True, eq=False)
class _Job:
    """A record with what was found: of ``tokens`` (n,) the log-probability, and whether likeliest.

    ``n_reserved`` bytes are counted for it.
    """

    record: ScoreRecord
    tokens: NDArray[np.int32]
    n_left_out: int
    n_reserved: int
    logprobs: NDArray[np.float64] = field(init=False)
    greedy: NDArray[np.bool_] = field(init=False)
    n_missing: int = field(init=False)

    def __post_init__(self) -> None:
        n = len(self.tokens)
        self.logprobs, self.greedy = np.empty(n), np.empty(n, np.bool_)
        self.n_missing = n


@dataclass(slots=True, eq=False)
class _Share:
    """A window of a job, whose scores are those of its tokens from ``offset`` on."""

    job: _Job
    window: Window
    offset: int


@dataclass(slots=True, eq=False)
class _Passage:
    """Windows that one slot computes, path by path."""

    shares: list[_Share]
    paths: list[Path]

    @property
    def path(self) -> Path:
        """The one that is computed now."""
        return self.paths[0]


class ScoringRun:
    """Records on their way to results."""

    def __init__(self, parts: Parts) -> None:
        """Begin with nothing; what slots of the context hold is forgotten."""
        self._parts, self._context = parts, parts.context
        self._scheduler = Scheduler(parts.limits)
        self._waiting: deque[ScoreRecord] = deque()
        self._waiting_bytes = 0
        self._coming: Iterator[_Passage] = iter(())
        self._next: _Passage | None = None
        self._running: dict[int, _Passage] = {}
        # jobs that were begun
        self._n_open = self._reserved = 0
        self._results: list[ScoreResult] = []
        self._started = time.perf_counter()
        self.statistics = ScoringStatistics(counts=self._scheduler.counts)
        for slot in range(parts.limits.n_slots):
            self._context.trim(slot, 0)

    # ---- what its owner asks for

    @property
    def is_busy(self) -> bool:
        """Whether a record waits or runs."""
        return bool(self._n_open or self._waiting)

    @property
    def n_wanted(self) -> int:
        """Records that it can use, so that those with one context are seen together."""
        if self._waiting_bytes >= _MOST_WAITING_BYTES:
            return 0
        return max(0, _MOST_WAITING - len(self._waiting))

    def submit(self, record: ScoreRecord | BadRecord) -> None:
        """Put a record in line."""
        if isinstance(record, BadRecord):
            self._fail(record.id, record.line, record.error)
            return
        self._waiting.append(record)
        self._waiting_bytes += record.n_bytes

    def step(self) -> bool:
        """Fill free slots, compute a step, score its rows; whether there is more to do."""
        self._fill()
        step = self._scheduler.next_step()
        if step is not None:
            self._compute(step)
        self.statistics.seconds = time.perf_counter() - self._started
        return self.is_busy

    def take(self) -> list[ScoreResult]:
        """What was finished since the last call."""
        results, self._results = self._results, []
        return results

    # ---- from the line into the slots

    def _fill(self) -> None:
        while self._scheduler.n_busy < self._parts.limits.n_slots:
            if self._next is None and not self._find_next():
                break
            passage = self._next
            assert passage is not None
            admission = self._scheduler.admit(passage.path.tokens, passage.path.n_wanted)
            if admission is None:
                break
            self._next = None
            if admission.source is not None:
                self._context.copy(admission.source, admission.slot)
            self._context.trim(admission.slot, admission.n_kept)
            self._running[admission.slot] = passage
        if not self._waiting and self._next is None and (move := self._scheduler.move()):
            source, target = move
            self._context.copy(source, target)
            self._context.trim(source, 0)
            self._running[target] = self._running.pop(source)

    def _find_next(self) -> bool:
        """The next passage of those that wait, if there is one."""
        while (passage := next(self._coming, None)) is None:
            if not self._waiting:
                return False
            coming = self._first_passages()
            if coming is None:
                return False
            self._coming = coming
        self._next = passage
        return True

    def _first_passages(self) -> Iterator[_Passage] | None:
        """Passages of the first record in line, and of those with its context.

        None where a text has to wait for memory that others give back.
        """
        first = self._waiting[0]
        if first.context is None:
            return self._text_passages(first)
        shares: list[_Share] = []
        for record in [r for r in self._waiting if r.context == first.context][:_MOST_WINDOWS]:
            self._remove(record)
            share = self._share_of(record)
            if share is not None:
                shares.append(share)
        if not shares:
            return iter(())
        return iter([_Passage(shares, make_paths([share.window for share in shares]))])

    def _remove(self, record: ScoreRecord) -> None:
        self._waiting.remove(record)
        self._waiting_bytes -= record.n_bytes

    def _share_of(self, record: ScoreRecord) -> _Share | None:
        """The one window of a continuation; None where it cannot be scored."""
        assert record.context is not None
        try:
            window, n_cut = join_pair(
                self._parts.vocab, record.context, record.text, self._parts.limits.n_ctx
            )
        except PromptError as error:
            self._fail(record.id, record.line, f"{record.place}: {error}")
            return None
        self.statistics.prompt_tokens += len(window.tokens)
        tokens = np.array(window.tokens[window.first :], np.int32)
        self._n_open += 1
        return _Share(_Job(record, tokens, n_cut, 0), window, 0)

    def _text_passages(self, record: ScoreRecord) -> Iterator[_Passage] | None:
        """A passage for each window of a text; None where it waits for memory."""
        n_bytes = len(record.text)
        reserved = _TEXT_BYTES * n_bytes if n_bytes > _SMALL_TEXT else 0
        try:
            self._reserve(reserved)
        except MemoryShortage as error:
            if self._reserved:
                return None
            self._remove(record)
            self._fail(record.id, record.line, f"{record.place}: {error}")
            return iter(())
        self._remove(record)
        try:
            tokens = text_tokens(self._parts.vocab, record.text)
        except PromptError as error:
            self._reserve(-reserved)
            self._fail(record.id, record.line, f"{record.place}: {error}")
            return iter(())
        self.statistics.prompt_tokens += len(tokens)
        self._n_open += 1
        return self._windows(_Job(record, tokens[1:], 0, reserved), tokens)

    def _windows(self, job: _Job, tokens: NDArray[np.int32]) -> Iterator[_Passage]:
        offset = 0
        for window in cut_text(tokens, self._parts.limits.n_ctx):
            yield _Passage([_Share(job, window, offset)], make_paths([window]))
            offset += window.n_scored

    def _reserve(self, n_bytes: int) -> None:
        self._parts.reserve(self._reserved + n_bytes)
        self._reserved += n_bytes

    def _fail(self, identity: str | int | None, line: int, error: str) -> None:
        self.statistics.records += 1
        self.statistics.failed += 1
        self._results.append(ScoreResult(identity, line, error=error))

    # ---- a step

    def _compute(self, step: Step) -> None:
        self._context.use_threads(self._parts.threads.now())
        compute_step(self._context, step)
        self._scheduler.computed(step)
        if step.outputs:
            self._score(step)
            for rows in step.slots:
                passage = self._running.get(rows.slot)
                if passage and rows.position + rows.n_real == len(passage.path.tokens):
                    self._go_on(rows.slot, passage)

    def _score(self, step: Step) -> None:
        """Find what the rows of a step say of the tokens that follow them."""
        wanted: list[tuple[_Share, int, int]] = []
        numbers: list[NDArray[np.int32]] = []
        targets: list[tuple[int, ...]] = []
        row = 0
        for rows in step.slots:
            if rows.n_wanted:
                for share, first, end in _asked(self._running[rows.slot], rows):
                    wanted.append((share, first, end - first))
                    numbers.append(np.arange(first, end, dtype=np.int32) + (row - rows.position))
                    targets.append(share.window.tokens[first + 1 : end + 1])
            row += len(rows.tokens)
        if not wanted:
            return
        flat = np.fromiter((token for tokens in targets for token in tokens), np.int32)
        scores = score_rows(
            [self._context.logits(step.n_rows)], flat, self._parts.threads.now(),
            np.concatenate(numbers),
        )  # fmt: skip
        logprobs, greedy = scores["reference_log_prob"], scores["reference_top"] == flat
        at = 0
        for share, first, n in wanted:
            job, place = share.job, share.offset + first + 1 - share.window.first
            job.logprobs[place : place + n] = logprobs[at : at + n]
            job.greedy[place : place + n] = greedy[at : at + n]
            job.n_missing -= n
            at += n
            if not job.n_missing:
                self._finish(job)

    def _go_on(self, slot: int, passage: _Passage) -> None:
        """The next path of a slot's passage, or another passage."""
        del passage.paths[0]
        if passage.paths:
            path = passage.path
            self._context.trim(slot, self._scheduler.replace(slot, path.tokens, path.n_wanted))
            return
        del self._running[slot]
        self._scheduler.release(slot)
        self._context.trim(slot, len(self._scheduler.held(slot)))

    def _finish(self, job: _Job) -> None:
        record = job.record
        self._n_open -= 1
        self._reserve(-job.n_reserved)
        if not np.isfinite(job.logprobs).all():
            self._fail(record.id, record.line, f"{record.place}: {NotFinite()}")
            return
        self.statistics.records += 1
        self.statistics.completion_tokens += len(job.tokens)
        tokens = None
        if not self._parts.totals:
            pieces = (self._parts.vocab.piece(token) for token in job.tokens.tolist())
            tokens = tuple(
                TokenScore(token, piece.decode("utf-8", "replace"), logprob)
                for token, piece, logprob in zip(
                    job.tokens.tolist(), pieces, job.logprobs.tolist(), strict=True
                )
            )
        self._results.append(ScoreResult(
            record.id, record.line, math.fsum(job.logprobs), bool(job.greedy.all()),
            len(job.tokens), count_bytes(record.text), count_words(record.text), tokens,
            job.n_left_out,
        ))  # fmt: skip


def _asked(passage: _Passage, rows: SlotRows) -> Iterator[tuple[_Share, int, int]]:
    """Windows, and the positions in them whose rows of logits are among a slot's."""
    end = rows.position + rows.n_real
    for ask in passage.path.asks:
        first, last = max(ask.first, end - rows.n_wanted), min(ask.end, end)
        if first < last:
            yield passage.shares[ask.window], first, last
