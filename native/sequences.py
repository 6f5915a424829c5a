"""Several independent sequences in one context, one token of each at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import llama_cpp
import numpy as np

from .context import Context, ContextParams
from .errors import DecodeError
from .model import Model
from .owner import Owner
from .sampler import SamplerChain


class Sequences(Owner):
    """``n_seq`` sequences that hold the same number of tokens. Close it before its model.

    A step is one ``llama_decode`` with one token of every sequence, so that the weights are read
    once for all of them.
    """

    def __init__(self, model: Model, params: ContextParams, n_seq: int) -> None:
        """Allocate; ``params.n_ctx`` are the tokens of each sequence.

        Raises:
            ModelLoadError: llama.cpp cannot create the context.
        """
        self.n_seq, self.n_held = n_seq, 0
        self._context = Context(
            model,
            replace(
                params, n_ctx=params.n_ctx * n_seq, n_seq_max=n_seq, n_outputs_max=n_seq,
                n_batch=max(params.n_batch, n_seq),
            ),
        )  # fmt: skip
        self._batch = llama_cpp.llama_batch_init(n_seq, 0, 1)
        np.ctypeslib.as_array(self._batch.n_seq_id, (n_seq,))[:] = 1
        np.ctypeslib.as_array(self._batch.logits, (n_seq,))[:] = 1
        for i in range(n_seq):
            self._batch.seq_id[i][0] = i
        self._batch.n_tokens = n_seq

    def step(self, tokens: Sequence[int]) -> None:
        """Append one token to every sequence, ``tokens[i]`` to the i-th, and compute its logits.

        Raises:
            DecodeError: llama.cpp failed, or the context is full.
        """
        if len(tokens) != self.n_seq:
            raise DecodeError(f"{len(tokens)} tokens for {self.n_seq} sequences")
        np.ctypeslib.as_array(self._batch.token, (self.n_seq,))[:] = tokens
        np.ctypeslib.as_array(self._batch.pos, (self.n_seq,))[:] = self.n_held
        code = llama_cpp.llama_decode(self._context.pointer, self._batch)
        if code != 0:
            raise DecodeError(f"llama_decode failed with {code} on {self.n_seq} sequences")
        self.n_held += 1

    def draw(self, sampler: SamplerChain) -> list[int]:
        """The next token of each sequence, drawn inside C."""
        return [self._context.sample(sampler, row) for row in range(self.n_seq)]

    def forget(self) -> None:
        """Empty every sequence."""
        memory = llama_cpp.llama_get_memory(self._context.pointer)
        llama_cpp.llama_memory_clear(memory, False)
        self.n_held = 0

    def close(self) -> None:
        """Free the batch and the context."""
        if self._batch is not None:
            llama_cpp.llama_batch_free(self._batch)
            self._batch = None
        self._context.close()
