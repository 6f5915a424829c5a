"""Own a llama.cpp context and one reusable batch: the KV cache and the steps that fill it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .errors import ContextFull, DecodeError, Interrupted, ModelLoadError
from .ggml_types import ggml_type_named
from .interrupt import abort_callback
from .logs import forget_complaints, last_complaint
from .model import Model
from .sampler import SamplerChain


@dataclass(frozen=True, slots=True)
class ContextParams:
    """Sizes of a context. ``n_outputs_max`` rows of logits are reserved, and no more."""

    n_ctx: int
    n_threads: int
    n_batch: int = 512
    n_seq_max: int = 1
    n_outputs_max: int = 1
    type_k: str = "f16"
    type_v: str = "f16"


class Context:
    """A KV cache with its compute buffers. A context manager; close it before its model."""

    def __init__(self, model: Model, params: ContextParams) -> None:
        """Allocate.

        Raises:
            ModelLoadError: llama.cpp cannot create it (usually: not enough memory).
        """
        self.params = params
        c_params = llama_cpp.llama_context_default_params()
        c_params.n_ctx = params.n_ctx
        c_params.n_batch = min(params.n_batch, params.n_ctx)
        c_params.n_ubatch = c_params.n_batch
        c_params.n_seq_max = params.n_seq_max
        c_params.n_outputs_max = params.n_outputs_max
        c_params.n_threads = params.n_threads
        c_params.n_threads_batch = params.n_threads
        c_params.type_k = ggml_type_named(params.type_k).id
        c_params.type_v = ggml_type_named(params.type_v).id
        c_params.abort_callback = abort_callback()
        c_params.no_perf = True
        forget_complaints()
        self._pointer = llama_cpp.llama_init_from_model(model.pointer, c_params)
        if not self._pointer:
            raise ModelLoadError(
                f"{model.path}: llama.cpp cannot create a context of {params.n_ctx} tokens: "
                f"{last_complaint() or 'not enough memory?'}"
            )
        self._memory = llama_cpp.llama_get_memory(self._pointer)
        self._n_vocab = model.vocab.n_tokens
        self.n_ctx = int(llama_cpp.llama_n_ctx(self._pointer))
        self.n_batch = int(llama_cpp.llama_n_batch(self._pointer))
        self._batch = llama_cpp.llama_batch_init(self.n_batch, 0, 1)
        self._tokens = np.ctypeslib.as_array(self._batch.token, (self.n_batch,))
        self._positions = np.ctypeslib.as_array(self._batch.pos, (self.n_batch,))
        self._outputs = np.ctypeslib.as_array(self._batch.logits, (self.n_batch,))
        np.ctypeslib.as_array(self._batch.n_seq_id, (self.n_batch,))[:] = 1
        for i in range(self.n_batch):
            self._batch.seq_id[i][0] = 0

    def decode_one(self, token: int, position: int) -> None:
        """Compute one token of sequence 0 and its logits.

        Raises:
            DecodeError: see :meth:`decode`.
        """
        batch = self._batch
        batch.n_tokens = 1
        batch.token[0] = token
        batch.pos[0] = position
        batch.logits[0] = 1
        code = llama_cpp.llama_decode(self._pointer, batch)
        if code != 0:
            raise self._failure(code)

    def decode(self, tokens: Sequence[int], position: int, *, outputs: int = 1) -> None:
        """Compute up to ``n_batch`` tokens of sequence 0 that start at ``position``.

        The last ``outputs`` of them get logits.

        Raises:
            ContextFull: the cache has no room.
            Interrupted: an interrupt came; the cache holds a part of the tokens.
            DecodeError: anything else, with llama_decode's code.
        """
        n = len(tokens)
        if not 1 <= n <= self.n_batch:
            raise DecodeError(f"a batch of {n} tokens; expected 1 to {self.n_batch}")
        self._tokens[:n] = tokens
        self._positions[:n] = np.arange(position, position + n, dtype=np.int32)
        self._outputs[:n] = 0
        if outputs:
            self._outputs[n - outputs : n] = 1
        self._batch.n_tokens = n
        code = llama_cpp.llama_decode(self._pointer, self._batch)
        if code != 0:
            raise self._failure(code)

    def sample(self, sampler: SamplerChain, row: int = -1) -> int:
        """Draw a token from a row of logits, inside C; the sampler remembers it."""
        return int(llama_cpp.llama_sampler_sample(sampler.pointer, self._pointer, row))

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """A row of logits, (n_vocab,), as a view that the next decode overwrites."""
        pointer = llama_cpp.llama_get_logits_ith(self._pointer, row)
        if not pointer:
            raise DecodeError(f"no logits were computed for row {row}")
        return np.ctypeslib.as_array(pointer, (self._n_vocab,))

    def trim(self, n_tokens: int) -> None:
        """Forget what sequence 0 holds from position ``n_tokens`` on.

        Raises:
            DecodeError: the memory cannot be cut there.
        """
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_tokens, -1):
            raise DecodeError(f"the cache cannot be cut at position {n_tokens}")

    def _failure(self, code: int) -> DecodeError:
        if code == 1:
            return ContextFull(f"no room in the context of {self.n_ctx} tokens")
        if code == 2:
            return Interrupted("interrupted")
        reason = "an invalid batch" if code == -1 else last_complaint() or "a fatal error"
        return DecodeError(f"llama_decode failed with {code}: {reason}")

    @property
    def pointer(self) -> Any:
        """The ``llama_context *``."""
        return self._pointer

    def close(self) -> None:
        """Free the batch and the context."""
        if self._pointer:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._pointer)
            self._pointer = None

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
