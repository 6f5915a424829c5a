"""The token loop that techniques are measured against: every row of logits is copied to Python.

It draws as llama.cpp's chain does (top-k, top-p, min-p, temperature), with numpy on a copied row.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import numpy as np
from numpy.random import default_rng  # here, so that every arm has it in memory
from numpy.typing import NDArray

from infer_os.runtime.settings import SamplingSettings


class LogitsSource(Protocol):
    """Anything that provides rows of logits, such as a context."""

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """A row, (n_vocab,)."""
        ...


def row_probabilities(
    logits: NDArray[np.float32], settings: SamplingSettings
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The tokens that may be drawn, likeliest first, and their probabilities.

    Args:
        logits: (n_vocab,).
        settings: filters, applied in llama.cpp's order; at temperature 0 one token is left.
    """
    if settings.temperature == 0:
        return np.array([int(logits.argmax())]), np.ones(1)
    k = min(settings.top_k or len(logits), len(logits))
    ids = np.argpartition(logits, -k)[-k:] if k < len(logits) else np.arange(len(logits))
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    values = logits[ids].astype(np.float64)
    weights = np.exp(values - values[0])
    share = np.cumsum(weights) / weights.sum()
    # up to and including the token that reaches top_p
    kept = int(np.searchsorted(share, settings.top_p)) + 1 if settings.top_p < 1 else len(ids)
    good = weights[:kept] >= settings.min_p  # the likeliest has weight 1
    ids, values = ids[:kept][good], values[:kept][good]
    weights = np.exp((values - values[0]) / settings.temperature)
    return ids, weights / weights.sum()


class RowSampler:
    """A :class:`~infer_os.runtime.sampler.Sampler` of copied rows, without a repetition penalty."""

    def __init__(self, settings: SamplingSettings) -> None:
        self._settings = settings
        self._random = default_rng(settings.seed)

    def draw(self, source: LogitsSource, row: int = -1) -> int:
        """Copy a row and draw from the copy."""
        ids, p = row_probabilities(source.logits(row).copy(), self._settings)
        return int(ids[self._random.choice(len(ids), p=p)])

    def remember(self, tokens: Iterable[int]) -> None:
        """Do nothing: past tokens do not matter."""

    def accept(self, token: int) -> None:
        """Do nothing, for the same reason."""

    def close(self) -> None:
        """Nothing to free."""
