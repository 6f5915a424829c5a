"""Own a llama.cpp context of many sequences: one decode takes rows of any of them.

In: rows, each a token with its position and sequence, and whether its logits are wanted. Out: rows
of logits, in the order in which they were asked for. Every sequence has its own part of the cache
(a llama.cpp stream), in which its tokens lie in order, so that a row's result does not depend on
other sequences (docs/batch.md).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .context import decode_failure
from .errors import DecodeError, StateError
from .kv_state import State, of_one_stream
from .logs import forget_complaints, last_complaint
from .model import LlamaModel
from .new_context import ContextOwner, ContextSizes
from .sampler_chain import SamplerChain

_BYTES = ctypes.POINTER(ctypes.c_uint8)


@dataclass(frozen=True, slots=True)
class BatchContextParams:
    """Sizes of a context of ``n_seq`` sequences with up to ``n_ctx`` tokens each.

    At most ``n_batch`` rows are computed at once, ``n_outputs`` of them with logits. ``rotate`` is
    that of ``ContextParams``.
    """

    n_ctx: int
    n_seq: int
    n_threads: int
    n_batch: int = 512
    n_outputs: int = 1
    type_k: str = "f16"
    type_v: str = "f16"
    rotate: bool = True


@dataclass(frozen=True, slots=True)
class Rows:
    """The input of one decode, arrays of (n_rows,); ``outputs`` is 1 where logits are wanted."""

    tokens: NDArray[np.int32]
    positions: NDArray[np.int32]
    sequences: NDArray[np.int32]
    outputs: NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.tokens)


class BatchContext(ContextOwner):
    """A KV cache for many sequences. A context manager; close it before its model."""

    def __init__(self, model: LlamaModel, params: BatchContextParams) -> None:
        """Allocate the context.

        Raises:
            ModelLoadError: llama.cpp cannot create it (usually: not enough memory).
        """
        self.params = params
        self._most_outputs = max(params.n_outputs, params.n_seq)
        # llama.cpp divides the cells among the sequences, rounded up to 256 each
        sizes = ContextSizes(
            params.n_ctx * params.n_seq, params.n_batch, params.n_seq, params.n_outputs,
            params.n_threads, params.type_k, params.type_v, False, params.rotate, False,
        )  # fmt: skip
        what = f"a context of {params.n_seq} sequences of {params.n_ctx} tokens"
        super().__init__(model, sizes, what)
        self._make_batch()

    def _make_batch(self) -> None:
        """A llama_batch over numpy's memory, to be filled with whole arrays."""
        n = self.n_batch
        self._tokens = np.zeros(n, np.int32)
        self._positions = np.zeros(n, np.int32)
        self._sequences = np.zeros(n, np.int32)
        self._outputs = np.zeros(n, np.int8)
        self._counts = np.ones(n, np.int32)
        first = self._sequences.ctypes.data
        step = self._sequences.itemsize
        self._sequence_pointers = (ctypes.POINTER(ctypes.c_int32) * (n + 1))(
            *(
                ctypes.cast(first + step * i, ctypes.POINTER(ctypes.c_int32))
                for i in range(n)
            )
        )  # fmt: skip
        self._batch = llama_cpp.llama_batch(
            n_tokens=0,
            token=self._tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=self._positions.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._counts.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=ctypes.cast(
                self._sequence_pointers, ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))
            ),
            logits=self._outputs.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def decode(self, rows: Rows) -> None:
        """Compute rows, and the logits of those that ask for them.

        Raises:
            ContextFull: a sequence has no room left.
            Interrupted: an interrupt came; the cache holds some of the rows.
            ModelChanged: the model's file has changed since it was loaded.
            DecodeError: anything else, with llama_decode's code.
        """
        n = len(rows)
        if not 1 <= n <= self.n_batch:
            raise DecodeError(f"a batch of {n} rows; expected 1 to {self.n_batch}")
        n_outputs = int(np.count_nonzero(rows.outputs))
        if n_outputs > self._most_outputs:  # llama.cpp would end the process
            raise DecodeError(
                f"{n_outputs} rows of logits at once; this context has room for "
                f"{self._most_outputs}"
            )
        self._tokens[:n] = rows.tokens
        self._positions[:n] = rows.positions
        self._sequences[:n] = rows.sequences
        self._outputs[:n] = rows.outputs
        self._batch.n_tokens = n
        code = llama_cpp.llama_decode(self._pointer, self._batch)
        if code != 0:
            full = f"no room in the context of {self.params.n_ctx} tokens per sequence"
            raise decode_failure(code, full)
        self._model.check()

    def logits(self, n: int) -> NDArray[np.float32]:
        """The ``n`` rows of logits of the last decode, (n, n_vocab), in the order of its rows.

        A view, which the next decode overwrites.

        Raises:
            DecodeError: fewer were computed.
        """
        pointer = llama_cpp.llama_get_logits(self._pointer) if n > 0 else None
        if not pointer or not llama_cpp.llama_get_logits_ith(self._pointer, -n):
            raise DecodeError(f"no {n} rows of logits were computed")
        return np.ctypeslib.as_array(pointer, (n, self._n_vocab))

    def give_states(self) -> None:
        """From now on each row also gives its state before the model's head.

        All rows must then ask for logits: llama.cpp gives both or none.
        """
        llama_cpp.llama_set_embeddings(self._pointer, True)

    def states(self, n: int) -> NDArray[np.float32]:
        """The ``n`` rows' states after the final norm, (n, n_embd), of the last decode.

        A view, which the next decode overwrites.

        Raises:
            DecodeError: none were computed.
        """
        pointer = llama_cpp.llama_get_embeddings(self._pointer) if n > 0 else None
        if not pointer:
            raise DecodeError(f"no {n} rows of states were computed")
        return np.ctypeslib.as_array(pointer, (n, self._model.n_embd))

    def sample(self, sampler: SamplerChain, row: int) -> int:
        """Draw a token from the logits of the last decode's row ``row``, inside C."""
        return int(llama_cpp.llama_sampler_sample(sampler.pointer, self._pointer, row))

    def trim(self, sequence: int, n_tokens: int) -> None:
        """Forget what a sequence holds from position ``n_tokens`` on.

        Raises:
            DecodeError: the memory cannot be cut there.
        """
        if not llama_cpp.llama_memory_seq_rm(self._memory, sequence, n_tokens, -1):
            raise DecodeError(f"the cache of sequence {sequence} cannot be cut at {n_tokens}")

    def export_sequence(self, sequence: int) -> State:
        """The rows of a sequence, as a context of one sequence would save them.

        Raises:
            StateError: llama.cpp saves nothing, or an unexpected layout.
        """
        size = llama_cpp.llama_state_seq_get_size(self._pointer, sequence)
        state = np.empty(size, np.uint8)
        got = llama_cpp.llama_state_seq_get_data(
            self._pointer, state.ctypes.data_as(_BYTES), size, sequence
        )
        if size == 0 or got != size:
            raise StateError(f"llama.cpp saved {got} of {size} bytes: {last_complaint()}")
        return of_one_stream(state, self.params.n_seq, sequence)

    def import_sequence(self, sequence: int, state: State) -> None:
        """Let a sequence hold exactly these rows.

        Args:
            sequence: its number.
            state: of :func:`~.kv_state.join_states`, for as many streams as there are sequences.

        Raises:
            StateError: llama.cpp refuses them; the sequence holds nothing.
        """
        forget_complaints()
        size = llama_cpp.llama_state_seq_set_data(
            self._pointer, state.ctypes.data_as(_BYTES), len(state), sequence
        )
        if size != len(state):
            self.trim(sequence, 0)
            raise StateError(f"llama.cpp refuses a saved KV state: {last_complaint()}")

    def copy(self, source: int, target: int) -> None:
        """Make ``target`` hold exactly what ``source`` holds.

        llama.cpp copies the rows before the next decode; ``source`` may be cut until then, since a
        cut leaves the rows in place.
        """
        llama_cpp.llama_memory_seq_cp(self._memory, source, target, -1, -1)
