"""Which tokens are scored, given which others: as lm-evaluation-harness has it.

In: a context and its continuation, or a text alone, and how many tokens a context holds. Out:
windows of tokens, of which the last ones are scored. The rules are those of lm_eval 0.4.13, so that
the figures are its own: ``TemplateLM.loglikelihood`` and ``_encode_pair`` (lm_eval/api/model.py),
``get_rolling_token_windows`` (lm_eval/utils.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..errors import PromptError


class Encoder(Protocol):
    """Text to tokens, as scoring needs it."""

    def tokenize(
        self, text: str | bytes, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Token ids of a text."""
        ...

    @property
    def opening(self) -> int | None:
        """The token before a text that nothing precedes."""
        ...


class Window(NamedTuple):
    """``tokens``, of which those from ``first`` on are scored, each given all before it.

    All but the last one are computed: they are no more than the context holds.
    """

    tokens: tuple[int, ...]
    first: int

    @property
    def n_scored(self) -> int:
        """Tokens that are scored."""
        return len(self.tokens) - self.first


def join_pair(vocab: Encoder, context: str, continuation: str, n_ctx: int) -> tuple[Window, int]:
    """The tokens of a continuation behind its context, and how many of the context were left out.

    Blanks at the end of the context move to the continuation. Context and continuation are cut into
    tokens as one text; what the context alone has tokens for is not scored. Without a context, the
    token that begins texts stands for it. What is too long loses its beginning.

    Raises:
        PromptError: the continuation has no token of its own, or more than the context holds, or
            there is no context and no token that begins texts.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    if kept:
        given = vocab.tokenize(kept)
        scored = vocab.tokenize(kept + continuation)[len(given) :]
    else:
        given, scored = [], []
    if not given:
        scored = vocab.tokenize(continuation, add_special=False)
        opening = _opening(vocab)
        # one that is written at the beginning is that token
        given, scored = (scored[:1], scored[1:]) if scored[:1] == [opening] else ([opening], scored)
    if not scored:
        raise PromptError("the continuation has no tokens of its own")
    if len(scored) > n_ctx:
        raise PromptError(
            f"the continuation has {len(scored)} tokens, but the context holds {n_ctx}; raise "
            "--context"
        )
    n_cut = max(0, len(given) + len(scored) - n_ctx - 1)
    return Window((*given[n_cut:], *scored), len(given) - n_cut), n_cut


def text_tokens(vocab: Encoder, text: str) -> NDArray[np.int32]:
    """A text's tokens behind the one that begins texts, (1 + n_tokens,): what windows are cut of.

    Raises:
        PromptError: the text has no tokens, or there is no token that begins texts.
    """
    tokens = vocab.tokenize(text, add_special=False)
    if not tokens:
        raise PromptError("the text is empty")
    return np.array([_opening(vocab), *tokens], np.int32)


def cut_text(tokens: Sequence[int] | NDArray[np.int32], n_ctx: int) -> Iterator[Window]:
    """Windows in which every token but the first is scored once, with as much context as fits.

    A window begins with the last token of the one before it, so that its later tokens have more
    context than its first ones; the last window begins earlier, so that it is full.
    """
    n_tokens, end = len(tokens), 1
    while end < n_tokens:
        first, end = end, min(n_tokens, end + n_ctx)
        start = max(0, end - n_ctx - 1)
        yield Window(tuple(int(token) for token in tokens[start:end]), first - start)


def _opening(vocab: Encoder) -> int:
    if vocab.opening is None:
        raise PromptError(
            "there is no context, and the model's file names no token that begins or ends a text"
        )
    return vocab.opening
