"""Own a llama.cpp context and one reusable batch: the KV cache and the steps that fill it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .errors import ContextFull, DecodeError, Interrupted, StateError
from .kv_state import State
from .logs import forget_complaints, last_complaint
from .model import LlamaModel
from .new_context import ContextOwner, ContextSizes, Observer
from .sampler_chain import SamplerChain


@dataclass(frozen=True, slots=True)
class ContextParams:
    """Sizes of a context. Exactly ``n_outputs_max`` rows of logits are reserved.

    ``window`` adds a sequence, through which rows of sequence 0 are exported and imported a few at
    a time; it costs a row of logits. Without ``rotate`` llama.cpp does not rotate quantized rows,
    for models whose weights already do.
    """

    n_ctx: int
    n_threads: int
    n_batch: int = 512
    n_outputs_max: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    window: bool = False
    rotate: bool = True


_BYTES = ctypes.POINTER(ctypes.c_uint8)
#: The sequence, next to sequence 0, through which rows go in and out.
_WINDOW = 1


def decode_failure(code: int, full: str) -> DecodeError:
    """The error for a non-zero return code of llama_decode; ``full`` says what has no room."""
    if code == 1:
        return ContextFull(full)
    if code == 2:
        return Interrupted("interrupted")
    reason = "an invalid batch" if code == -1 else last_complaint() or "a fatal error"
    return DecodeError(f"llama_decode failed with {code}: {reason}")


class Context(ContextOwner):
    """A KV cache with its compute buffers. A context manager; close it before its model."""

    def __init__(
        self, model: LlamaModel, params: ContextParams, observer: Observer | None = None
    ) -> None:
        """Allocate.

        Args:
            model: its weights; it must outlive the context.
            params: sizes.
            observer: sees the nodes that are computed; it must outlive the context too.

        Raises:
            ModelLoadError: llama.cpp cannot create it (usually: not enough memory).
        """
        self.params = params
        n_seq = 1 + params.window
        self._most_outputs = max(params.n_outputs_max, n_seq)
        sizes = ContextSizes(
            params.n_ctx, min(params.n_batch, params.n_ctx), n_seq, params.n_outputs_max,
            params.n_threads, params.type_k, params.type_v, params.window, params.rotate, True,
        )  # fmt: skip
        what = f"a context of {params.n_ctx} tokens"
        super().__init__(model, sizes, what, observer)
        self.n_ctx = int(llama_cpp.llama_n_ctx(self._pointer))
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
        self._model.check()

    def decode(
        self, tokens: Sequence[int] | NDArray[np.int32], position: int, *, outputs: int = 1
    ) -> None:
        """Compute up to ``n_batch`` tokens of sequence 0 that start at ``position``.

        The last ``outputs`` of them get logits.

        Raises:
            ContextFull: the cache has no room.
            Interrupted: an interrupt came; the cache holds some of the tokens.
            ModelChanged: the model's file has changed since it was loaded.
            DecodeError: anything else, with llama_decode's code.
        """
        n = len(tokens)
        if not 1 <= n <= self.n_batch:
            raise DecodeError(f"a batch of {n} tokens; expected 1 to {self.n_batch}")
        if not 0 <= outputs <= min(n, self._most_outputs):  # llama.cpp would end the process
            raise DecodeError(
                f"{outputs} rows of logits of {n} tokens; this context has room for "
                f"{self._most_outputs}"
            )
        self._tokens[:n] = tokens
        self._positions[:n] = np.arange(position, position + n, dtype=np.int32)
        self._outputs[:n] = 0
        if outputs:
            self._outputs[n - outputs : n] = 1
        self._batch.n_tokens = n
        code = llama_cpp.llama_decode(self._pointer, self._batch)
        if code != 0:
            raise self._failure(code)
        self._model.check()

    def sample(self, sampler: SamplerChain, row: int = -1) -> int:
        """Draw a token from a row of logits, inside C; the sampler remembers it."""
        return int(llama_cpp.llama_sampler_sample(sampler.pointer, self._pointer, row))

    def logits(self, row: int = -1) -> NDArray[np.float32]:
        """A row of logits, (n_vocab,), as a view that the next decode overwrites."""
        pointer = llama_cpp.llama_get_logits_ith(self._pointer, row)
        if not pointer:
            raise DecodeError(f"no logits were computed for row {row}")
        return np.ctypeslib.as_array(pointer, (self._n_vocab,))

    def logits_rows(self, n: int) -> NDArray[np.float32]:
        """The first ``n`` rows of logits, (n, n_vocab), as a view that the next decode overwrites.

        Rows are in the order of the batch, for the tokens that got logits.
        """
        pointer = llama_cpp.llama_get_logits(self._pointer) if n > 0 else None
        # a row that was not computed lies outside the buffer
        if not pointer or not llama_cpp.llama_get_logits_ith(self._pointer, -n):
            raise DecodeError(f"no {n} rows of logits were computed")
        return np.ctypeslib.as_array(pointer, (n, self._n_vocab))

    def trim(self, n_tokens: int) -> None:
        """Forget what sequence 0 holds from position ``n_tokens`` on.

        Raises:
            DecodeError: the memory cannot be cut there.
        """
        if not llama_cpp.llama_memory_seq_rm(self._memory, 0, n_tokens, -1):
            raise DecodeError(f"the cache cannot be cut at position {n_tokens}")

    def export_rows(self, first: int, stop: int) -> State:
        """The rows of sequence 0 at positions ``first`` to ``stop``, as llama.cpp saves them.

        Needs a ``window``.

        Raises:
            StateError: llama.cpp saves nothing.
        """
        llama_cpp.llama_memory_seq_cp(self._memory, 0, _WINDOW, first, stop)
        try:
            size = llama_cpp.llama_state_seq_get_size(self._pointer, _WINDOW)
            state = np.empty(size, np.uint8)
            got = llama_cpp.llama_state_seq_get_data(
                self._pointer, state.ctypes.data_as(_BYTES), size, _WINDOW
            )
        finally:
            llama_cpp.llama_memory_seq_rm(self._memory, _WINDOW, -1, -1)
        if size == 0 or got != size:
            raise StateError(f"llama.cpp saved {got} of {size} bytes: {last_complaint()}")
        return state

    def import_rows(self, state: State) -> None:
        """Append rows to sequence 0. The caller has checked ``state`` against this context.

        Needs a ``window``.

        Raises:
            StateError: llama.cpp refuses them.
        """
        forget_complaints()
        size = llama_cpp.llama_state_seq_set_data(
            self._pointer, state.ctypes.data_as(_BYTES), len(state), _WINDOW
        )
        if size != len(state):
            raise StateError(f"llama.cpp refuses a saved KV state: {last_complaint()}")
        llama_cpp.llama_memory_seq_cp(self._memory, _WINDOW, 0, -1, -1)
        llama_cpp.llama_memory_seq_rm(self._memory, _WINDOW, -1, -1)

    def _failure(self, code: int) -> DecodeError:
        return decode_failure(code, f"no room in the context of {self.n_ctx} tokens")

    def close(self) -> None:
        """Free the batch and the context."""
        if self._pointer:
            llama_cpp.llama_batch_free(self._batch)
        super().close()
