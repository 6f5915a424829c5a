"""An engine without a model: scripted answers, so that the server is tested in no time.

Every byte is a token. Each step adds a token to every running sample, as a real engine's does; what
is written is ``script(prompt)``, or an error where that raises one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..runtime.batch.records import Piece, Record, Result, TokenLogprobs
from ..runtime.fake import END, ByteVocabulary
from ..runtime.generate import FinishReason
from ..runtime.prompt import tokenize
from ..runtime.text import TextStream
from .pushed_engine import EngineFigures, Event


@dataclass(slots=True)
class _Sample:
    record: Record
    index: int
    prompt: tuple[int, ...]
    reply: bytes
    text: TextStream
    streams: bool
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)


class ScriptedEngine:
    """A :class:`~.pushed_engine.PushedEngine` that says what a script says.

    ``submitted`` and ``cancelled`` are the ids of records, in order. While ``gate`` is not set no
    step ends, so that a test can look at what waits.
    """

    def __init__(self, script: Callable[[bytes], str], n_ctx: int = 256, n_seq: int = 4) -> None:
        self._script = script
        self.n_ctx, self.n_seq, self.n_vocab = n_ctx, n_seq, END + 1
        self.vocab = ByteVocabulary()
        self.gate = threading.Event()
        self.gate.set()
        self.submitted: list[str | int] = []
        self.cancelled: list[str | int] = []
        self.is_closed = False
        self._waiting: list[_Sample] = []
        self._running: list[_Sample] = []
        self._events: list[Event] = []
        self._n_prompt = self._n_drawn = self._n_steps = 0

    def prompt_tokens(self, record: Record) -> tuple[int, ...]:
        """A prompt's bytes; of a conversation, those of its messages."""
        if isinstance(record.prompt, tuple):
            return record.prompt
        text = record.prompt if record.prompt is not None else "".join(
            f"{message.role}: {message.content}\n" for message in record.messages
        )  # fmt: skip
        return tuple(tokenize(self.vocab, text, self.n_ctx))

    def submit(self, record: Record, prompt: tuple[int, ...], *, streams: bool = True) -> None:
        """See :meth:`~.pushed_engine.PushedEngine.submit`."""
        self.submitted.append(record.id)
        self._n_prompt += len(prompt)
        reply = self._script(bytes(token for token in prompt if token < END)).encode()
        self._waiting += [
            _Sample(record, i, prompt, reply, TextStream(record.stops.strings), streams)
            for i in range(record.n)
        ]

    def cancel(self, identity: str | int) -> None:
        """See :meth:`~.pushed_engine.PushedEngine.cancel`."""
        self.cancelled.append(identity)
        for samples in (self._waiting, self._running):
            samples[:] = [sample for sample in samples if sample.record.id != identity]

    def step(self, begins: Callable[[], None]) -> bool:
        """A byte for every running sample."""
        while self._waiting and len(self._running) < self.n_seq:
            self._running.append(self._waiting.pop(0))
        if not self._running:
            return False
        begins()
        self.gate.wait()
        self._n_steps += 1
        for sample in list(self._running):
            self._draw(sample)
        return True

    def _draw(self, sample: _Sample) -> None:
        if not sample.record.draws:
            self._running.remove(sample)
            record = sample.record
            self._events.append(Result(
                record.id, record.line, finish_reason=FinishReason.LENGTH.value,
                prompt_logprobs=self._prompt_logprobs(sample),
            ))  # fmt: skip
            return
        at = len(sample.tokens)
        token = sample.reply[at] if at < len(sample.reply) else END
        sample.tokens.append(token)
        self._n_drawn += 1
        reason = None
        chunk = sample.text.push(self.vocab.piece(token))
        if token == END:
            reason = FinishReason.END
        elif sample.text.stopped:
            reason = FinishReason.STOP
        elif len(sample.tokens) >= sample.record.stops.limit:
            reason = FinishReason.LENGTH
        if reason is not None:
            chunk += sample.text.finish()
        sample.pieces.append(chunk)
        told = self._logprobs(sample.record, token)
        sample.logprobs += told
        record = sample.record
        if sample.streams or (at, sample.index) == (0, 0):
            self._events.append(Piece(record.id, sample.index, chunk, told))
        if reason is not None:
            self._running.remove(sample)
            self._events.append(Result(
                record.id, record.line, "".join(sample.pieces), tuple(sample.tokens), reason.value,
                index=sample.index,
                logprobs=tuple(sample.logprobs) if record.logprobs is not None else None,
                prompt_logprobs=self._prompt_logprobs(sample),
            ))  # fmt: skip

    def _prompt_logprobs(self, sample: _Sample) -> tuple[TokenLogprobs, ...] | None:
        """Of a prompt's tokens, whose first one has none."""
        if not sample.record.scores_prompt or sample.index:
            return None
        first, *rest = sample.prompt
        told = [one for token in rest for one in self._logprobs(sample.record, token)]
        return (TokenLogprobs(first, self.vocab.piece(first).decode(), math.nan, ()), *told)

    def _logprobs(self, record: Record, token: int) -> tuple[TokenLogprobs, ...]:
        """Half of the probability for what is said, a quarter for the token after it, and so on."""
        if record.logprobs is None:
            return ()
        top = tuple(
            ((token + i) % (END + 1), math.log(0.5 ** (i + 1))) for i in range(record.logprobs)
        )
        text = self.vocab.piece(token).decode("utf-8", "replace")
        return (TokenLogprobs(token, text, math.log(0.5), top),)

    def take(self) -> list[Event]:
        """See :meth:`~.pushed_engine.PushedEngine.take`."""
        events, self._events = self._events, []
        return events

    def embed(self, tokens: list[int]) -> NDArray[np.float32]:
        """How often each of four kinds of bytes occurs, with length 1."""
        self.gate.wait()
        counts = np.bincount(np.array(tokens) % 4, minlength=4).astype(np.float32)
        return np.asarray(counts / np.linalg.norm(counts), np.float32)

    def figures(self) -> EngineFigures:
        """Tokens and steps; nothing is shared or guessed."""
        return EngineFigures(
            prompt_tokens=self._n_prompt, completion_tokens=self._n_drawn, steps=self._n_steps
        )

    def close(self) -> None:
        """Remember that it was closed."""
        self.is_closed = True
