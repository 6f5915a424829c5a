"""One sample of a record while it is being written: its sampler, its text, why it ended."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from infer_os.native.model import Vocab

from ..chat.frame import Frame
from ..generate import FinishReason
from ..sampler import LlamaSampler
from ..settings import SamplingSettings
from ..text import TextStream
from .records import Record, Result, TokenLogprobs


@dataclass(slots=True)
class Sequence:
    """A sample under way, in a slot. ``frame`` is that of its conversation, if it is one."""

    record: Record
    index: int
    prompt: tuple[int, ...]
    sampler: LlamaSampler | None
    text: TextStream
    frame: Frame | None = None
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def push(self, token: int, vocab: Vocab, n_ctx: int) -> FinishReason | None:
        """Take a drawn token; returns why it was the last one, or None."""
        self.tokens.append(token)
        if vocab.is_end(token) or (self.frame is not None and token in self.frame.ends):
            return FinishReason.END
        self.pieces.append(self.text.push(vocab.piece(token)))
        if self.text.stopped:
            return FinishReason.STOP
        if len(self.tokens) >= self.record.stops.limit:
            return FinishReason.LENGTH
        if len(self.prompt) + len(self.tokens) > n_ctx:
            return FinishReason.CONTEXT
        return None

    def result(self, reason: FinishReason, *, with_logprobs: bool) -> Result:
        """What it has become."""
        self.pieces.append(self.text.finish())
        text = "".join(self.pieces)
        if self.frame is not None:
            # as a conversation shows it: the space behind the frame is no part of a reply
            if not self.record.sampling.constraint:
                text = text.replace(self.frame.newline, "\n")
            text = text.lstrip()
        return Result(
            id=self.record.id,
            line=self.record.line,
            text=text,
            tokens=tuple(self.tokens),
            finish_reason=reason.value,
            index=self.index if self.record.n > 1 else None,
            logprobs=tuple(self.logprobs) if with_logprobs else None,
        )


def is_plain_greedy(settings: SamplingSettings) -> bool:
    """Whether the likeliest token is all that is asked for, so that no sampler is needed."""
    return settings.temperature == 0 and not settings.penalizes and not settings.constraint


def token_logprobs(
    logits: NDArray[np.float32], token: int, count: int, vocab: Vocab
) -> TokenLogprobs:
    """Log-probabilities of a row of logits, (n_vocab,): the token's, and the ``count`` largest."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    top = np.argpartition(-values, min(count, len(values)) - 1)[:count]
    top = top[np.argsort(-values[top], kind="stable")]
    return TokenLogprobs(
        token,
        vocab.piece(token).decode("utf-8", "replace"),
        float(values[token]),
        tuple((int(i), float(values[i])) for i in top),
    )
