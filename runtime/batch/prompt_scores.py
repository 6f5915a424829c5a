"""Log-probabilities of a prompt's own tokens, from the rows of logits that a step gives.

They are those of :mod:`..scoring`, to the last bit: the same rows, through the same code in C++.
"""

from __future__ import annotations

import math
from collections.abc import Sequence as List
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from infer_os.native.model import Vocab
from infer_os.native.scoring import score_rows

from .records import TokenLogprobs
from .sequence import Sequence


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Rows of logits, ``n_rows`` from ``row`` on, of a prompt's tokens from ``position`` on.

    Each says how likely the token behind it is, and which ``n_top`` are the likeliest.
    """

    sequence: Sequence
    row: int
    position: int
    n_rows: int
    n_top: int

    @property
    def targets(self) -> tuple[int, ...]:
        """The tokens behind the rows; the last one of a prompt has none behind it."""
        return self.sequence.prompt[self.position + 1 : self.position + 1 + self.n_rows]


def first_token(token: int, vocab: Vocab) -> TokenLogprobs:
    """The first token of a prompt, of which nothing is known."""
    return TokenLogprobs(token, _text(token, vocab), math.nan, ())


def score_prompts(
    logits: NDArray[np.float32], wanted: List[PromptRows], n_threads: int, vocab: Vocab
) -> None:
    """Add to each sequence what its rows of logits, (n_rows, n_vocab), say of its prompt."""
    targets = np.array([token for rows in wanted for token in rows.targets], np.int32)
    numbers = np.array(
        [rows.row + i for rows in wanted for i in range(len(rows.targets))], np.int32
    )
    if not len(targets):
        return
    found = iter(score_rows([logits], targets, n_threads, numbers)["reference_log_prob"].tolist())
    for rows in wanted:
        for i, token in enumerate(rows.targets):
            logprob = next(found)
            top = _likeliest(logits[rows.row + i], token, logprob, rows.n_top)
            rows.sequence.prompt_logprobs.append(
                TokenLogprobs(token, _text(token, vocab), logprob, top)
            )


def _likeliest(
    row: NDArray[np.float32], token: int, logprob: float, count: int
) -> tuple[tuple[int, float], ...]:
    """The ``count`` likeliest of a row, (n_vocab,), by what is known of one of its tokens.

    Where that one is among them, its value is the one that it has.
    """
    if not count:
        return ()
    count = min(count, len(row))
    top = np.argpartition(-row, count - 1)[:count]
    top = top[np.argsort(-row[top], kind="stable")]
    rises = row[top].astype(np.float64) - float(row[token])
    return tuple((int(i), logprob + float(rise)) for i, rise in zip(top, rises, strict=True))


def _text(token: int, vocab: Vocab) -> str:
    return vocab.piece(token).decode("utf-8", "replace")
