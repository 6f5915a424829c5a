"""Answer records by beam search, one after the other, on a batch engine's sequences.

In: records. Out: results, the ``n`` best texts of each. A text that is followed has a sequence of
its own; where two go on from the same one, its cache is copied.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator

import numpy as np

from infer_os.native.batch_context import BatchContext, Rows
from infer_os.native.errors import NotFinite
from infer_os.native.interrupt import interruptible

from ..errors import PromptError, RuntimeFailure, SettingsError
from ..generate import FinishReason
from ..interface import chosen_adapter
from ..sampling_settings import SAMPLER_SETTINGS, SamplingSettings
from .beams import Beam, BeamSearch, Step
from .records import BadRecord, Record, Result
from .running import BatchStatistics, Parts


class BeamRun:
    """Beam search on what a batch engine consists of."""

    def __init__(self, parts: Parts, n_beams: int, statistics: BatchStatistics) -> None:
        """Begin with empty sequences, of which there are at least ``n_beams``."""
        self._parts, self._n_beams, self._statistics = parts, n_beams, statistics

    def answer(self, record: Record | BadRecord, without: Collection[int]) -> Iterator[Result]:
        """The results of a record, but for the samples of these numbers.

        Raises:
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
        """
        if isinstance(record, BadRecord):
            yield self._failed(record.id, record.line, record.error)
            return
        if all(index in without for index in range(record.n)):
            return
        started = time.perf_counter()
        try:
            check_record(record, self._n_beams)
            adapter = chosen_adapter(record.adapter, self._parts.adapters)
            prompt = self._parts.prompt_of(record)
            if not prompt:
                raise PromptError("the prompt is empty")
            if len(prompt) > self._parts.limits.n_ctx:
                raise PromptError(
                    f"the prompt has {len(prompt)} tokens, but the context holds "
                    f"{self._parts.limits.n_ctx}; shorten it or raise --context"
                )
        except RuntimeFailure as error:
            yield self._failed(record.id, record.line, f"{record.place}: {error}")
            return
        self._parts.context.use_adapter(adapter)
        try:
            with interruptible():
                found = self.search(prompt, record.stops.limit, self._parts.vocab.ends())
        except NotFinite as error:
            yield self._failed(record.id, record.line, f"{record.place}: {error}")
            return
        self._statistics.seconds += time.perf_counter() - started
        for index in range(record.n):
            if index not in without:
                yield self._result(record, index, len(prompt), found[index])

    def search(self, prompt: tuple[int, ...], max_tokens: int, ends: Collection[int]) -> list[Beam]:
        """The best continuations of a prompt, best first, as many as there are beams.

        Args:
            prompt: tokens.
            max_tokens: of a continuation.
            ends: tokens that finish one.

        Raises:
            Interrupted: an interrupt came.
            DecodeError: llama.cpp failed.
            NotFinite: the model computes NaN or infinity.
        """
        context, n_ctx = self._parts.context, self._parts.limits.n_ctx
        for sequence in range(self._n_beams):
            context.trim(sequence, 0)
        self._statistics.prompt_tokens += len(prompt)
        self._prefill(prompt)
        # the last token of a text is not computed
        limit = min(max_tokens, n_ctx - len(prompt) + 1)
        search = BeamSearch(self._n_beams, ends, limit)
        slots = [0]
        position = len(prompt)
        while True:
            logits = context.logits(len(slots))
            if not np.isfinite(logits.max(axis=1)).all():  # NaN is the largest
                raise NotFinite
            step = search.push(logits)
            if step is None:
                break
            slots = reordered(context, slots, step, self._n_beams)
            self._decode(step.tokens, [position] * len(slots), slots, n_outputs=len(slots))
            position += 1
        for sequence in range(self._n_beams):
            context.trim(sequence, 0)
        return search.finished

    def _prefill(self, prompt: tuple[int, ...]) -> None:
        n_batch = self._parts.limits.n_batch
        for first in range(0, len(prompt), n_batch):
            part = prompt[first : first + n_batch]
            last = first + len(part) == len(prompt)
            positions = list(range(first, first + len(part)))
            self._decode(part, positions, [0] * len(part), n_outputs=int(last))

    def _decode(
        self, tokens: tuple[int, ...], positions: list[int], slots: list[int], n_outputs: int
    ) -> None:
        """Compute rows, the last ``n_outputs`` of them with logits."""
        outputs = np.zeros(len(tokens), np.int8)
        outputs[len(tokens) - n_outputs :] = 1
        self._parts.context.use_threads(self._parts.threads.now())
        self._parts.context.decode(
            Rows(np.array(tokens, np.int32), np.array(positions, np.int32),
                 np.array(slots, np.int32), outputs)
        )  # fmt: skip

    def _result(self, record: Record, index: int, n_prompt: int, beam: Beam) -> Result:
        vocab, statistics = self._parts.vocab, self._statistics
        statistics.records += 1
        statistics.completion_tokens += len(beam.tokens)
        ended = vocab.is_end(beam.tokens[-1])
        full = n_prompt + len(beam.tokens) > self._parts.limits.n_ctx
        reason = FinishReason.CONTEXT if full else FinishReason.LENGTH
        if len(beam.tokens) >= record.stops.limit:
            reason = FinishReason.LENGTH
        text = b"".join(vocab.piece(token) for token in beam.tokens if not vocab.is_end(token))
        return Result(
            id=record.id, line=record.line, text=text.decode("utf-8", "replace"),
            tokens=beam.tokens, finish_reason=(FinishReason.END if ended else reason).value,
            index=index if record.n > 1 else None,
        )  # fmt: skip

    def _failed(self, identity: str | int | None, line: int, error: str) -> Result:
        self._statistics.records += 1
        self._statistics.failed += 1
        return Result(identity, line, error=error)


def check_record(record: Record, n_beams: int) -> None:
    """See that beam search can do what a record asks for.

    Raises:
        SettingsError: it cannot, and what is in the way.
    """
    given = drawing_settings(record.sampling)
    given += ["seed"] if record.seed is not None and "seed" not in given else []
    given += ["stop"] if record.stops.strings else []
    given += ["messages"] if record.messages else []
    given += ["logprobs"] if record.logprobs else []
    if given:
        raise SettingsError(
            f"a beam search takes the likeliest text, and nothing is drawn: it cannot be combined "
            f"with {', '.join(given)}"
        )
    if record.n > n_beams:
        raise SettingsError(f"{record.n} texts of {n_beams} beams: expected at most {n_beams}", "n")


def drawing_settings(sampling: SamplingSettings) -> list[str]:
    """The names of settings that are not as usual, and say how a token is drawn.

    Temperature 0, which draws nothing, is as good as the usual one.
    """
    usual = {name: row.default for name, row in SAMPLER_SETTINGS.items()}
    if sampling.temperature == 0:
        del usual["temperature"]
    return [name for name, value in usual.items() if getattr(sampling, name) != value]


def reordered(context: BatchContext, slots: list[int], step: Step, n_beams: int) -> list[int]:
    """Give each text that goes on a sequence; returns them.

    The first that goes on from a text takes over its sequence, the others copy it.

    Args:
        context: whose sequences they are.
        slots: of the texts so far.
        step: how they go on.
        n_beams: sequences that there are.
    """
    parents = [slots[parent] for parent in step.parents]
    free = [slot for slot in range(n_beams) if slot not in parents]
    taken: set[int] = set()
    found: list[int] = []
    for parent in parents:
        if parent in taken:
            slot = free.pop()
            context.copy(parent, slot)
        else:
            slot = parent
            taken.add(parent)
        found.append(slot)
    return found
