"""One sample of a record while it is being written: its sampler, its text, why it ended."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from infer_os.native.model import Vocab

from ..chat.frame import Frame
from ..generate import FinishReason
from ..sampler import LlamaSampler
from ..text import Replacement, TextStream
from .records import Piece, Record, Result, TokenLogprobs

#: Hears how a record's samples grow. All that it hears of a sample, put together, is its result.
Listener = Callable[[Piece], None]


class Sequence:
    """A sample in progress, in a slot. ``frame`` is that of its conversation, if it is one."""

    def __init__(
        self,
        record: Record,
        index: int,
        prompt: tuple[int, ...],
        sampler: LlamaSampler | None,
        text: TextStream,
        frame: Frame | None = None,
        adapter: str = "",
    ) -> None:
        """Begin with nothing drawn.

        Args:
            record: what it is a sample of.
            index: its number.
            prompt: tokens.
            sampler: closed by whoever ends the sequence; None takes the likeliest token.
            text: makes text of tokens, up to what ends it.
            frame: see the class.
            adapter: what it is computed with; "" for none.
        """
        self.adapter = adapter
        self.record, self.index, self.prompt, self.sampler = record, index, prompt, sampler
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        #: Of the prompt's tokens, where they are asked for.
        self.prompt_logprobs: list[TokenLogprobs] = []
        #: Whether each token of the prompt gets a row of logits.
        self.scores_prompt = record.scores_prompt and index == 0
        self.listener: Listener | None = None
        self._frame = frame
        self._stream = text
        # of a text that follows a grammar nothing is replaced: it would not follow it any more
        is_free = frame is not None and not record.sampling.constraint
        self._lines = Replacement(frame.newline, "\n") if frame and is_free else None
        self._pieces: list[str] = []
        self._n_told = 0

    @property
    def fed(self) -> tuple[int, ...]:
        """The tokens that are computed before anything is drawn; the last ones give logits."""
        return self.prompt if self.record.draws else self.prompt[:-1]

    @property
    def is_in_prompt(self) -> bool:
        """Whether tokens of the prompt are still to be scored."""
        return self.scores_prompt and len(self.prompt_logprobs) < len(self.prompt)

    @property
    def n_wanted(self) -> int:
        """How many of them give logits."""
        return len(self.fed) if self.scores_prompt else 1

    def push(self, token: int, vocab: Vocab, n_ctx: int) -> FinishReason | None:
        """Take a drawn token; returns why it was the last one, or None."""
        self.tokens.append(token)
        if vocab.is_end(token) or (self._frame is not None and token in self._frame.ends):
            return FinishReason.END
        text = self._stream.push(vocab.piece(token))
        self._add(text if self._lines is None else self._lines.push(text))
        if self._stream.stopped:
            return FinishReason.STOP
        if len(self.tokens) >= self.record.stops.limit:
            return FinishReason.LENGTH
        if len(self.prompt) + len(self.tokens) > n_ctx:
            return FinishReason.CONTEXT
        return None

    def _add(self, text: str) -> None:
        if self._frame is not None and not self._pieces:
            # as a conversation shows it: the space after the frame is not part of a reply
            text = text.lstrip()
        if text:
            self._pieces.append(text)
        if self.listener is not None and (text or len(self.logprobs) > self._n_told):
            told = tuple(self.logprobs[self._n_told :])
            self._n_told += len(told)
            self.listener(Piece(self.record.id, self.index, text, told))

    def result(self, reason: FinishReason, *, with_logprobs: bool) -> Result:
        """The finished result."""
        rest = self._stream.finish()
        self._add(rest if self._lines is None else self._lines.push(rest) + self._lines.finish())
        return Result(
            id=self.record.id,
            line=self.record.line,
            text="".join(self._pieces),
            tokens=tuple(self.tokens),
            finish_reason=reason.value,
            index=self.index if self.record.n > 1 else None,
            logprobs=tuple(self.logprobs) if with_logprobs else None,
            prompt_logprobs=tuple(self.prompt_logprobs) if self.scores_prompt else None,
        )

    def close(self) -> None:
        """Free the sampler."""
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None


def token_logprobs(
    logits: NDArray[np.float32], token: int, count: int, vocab: Vocab
) -> TokenLogprobs:
    """Log-probabilities of a row of logits, (n_vocab,): the token's, and the ``count`` largest."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    # of none, numpy would sort all
    top = np.argpartition(-values, min(count, len(values)) - 1)[:count] if count else np.arange(0)
    top = top[np.argsort(-values[top], kind="stable")]
    return TokenLogprobs(
        token,
        vocab.piece(token).decode("utf-8", "replace"),
        float(values[token]),
        tuple((int(i), float(values[i])) for i in top),
    )
