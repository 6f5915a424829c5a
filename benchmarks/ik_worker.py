"""A model in ik_llama.cpp, for a Python that has the package ik-llama-cpp-python.

    python ik_worker.py FILE.gguf TOKENS.npy OUT.npy THREADS

TOKENS are windows of tokens (windows, window), int32, each with an empty cache; OUT gets the logits
of the second half but the last, (windows * rows, vocabulary), float32.
"""

from __future__ import annotations

import ctypes
import sys

import numpy as np
from ik_llama_cpp import _ctypes_api as api


class Model:
    """A file, and a context of ``n_ctx`` tokens."""

    def __init__(self, path: str, n_ctx: int, threads: int, repack: bool) -> None:
        api.llama_backend_init()
        params = api.llama_model_default_params()
        params.repack_tensors = repack
        params.use_mmap = not repack
        self.model = api.llama_model_load_from_file(path.encode(), params)
        if not self.model:
            raise SystemExit(f"{path}: ik_llama.cpp cannot load it")
        self.n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(self.model))
        made = api.llama_context_default_params()
        made.n_ctx = made.n_batch = made.n_ubatch = n_ctx
        made.n_threads = made.n_threads_batch = threads
        made.flash_attn = True
        self.context = api.llama_init_from_model(self.model, made)
        self.batch = api.llama_batch_init(n_ctx, 0, 1)

    def decode(self, tokens: list[int], position: int, first: int) -> None:
        """Compute tokens at a position; logits from token ``first`` of them on."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, position + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = i >= first
        if api.llama_decode(self.context, batch):
            raise SystemExit("ik_llama.cpp cannot compute a batch")

    def logits(self, i: int) -> np.ndarray:
        """Of token i of the last batch, (vocabulary,)."""
        row = api.llama_get_logits_ith(self.context, i)
        return np.ctypeslib.as_array(ctypes.cast(row, ctypes.POINTER(ctypes.c_float)),
                                     (self.n_vocab,))  # fmt: skip

    def clear(self) -> None:
        """Forget all tokens."""
        api.llama_kv_cache_clear(self.context)


def write_logits(path: str, tokens: str, out: str, threads: str) -> None:
    """The logits of every window."""
    windows = np.load(tokens)  # (windows, window)
    size = windows.shape[1]
    model = Model(path, size, int(threads), repack=False)
    rows = np.lib.format.open_memmap(
        out, "w+", np.float32, (len(windows) * (size - size // 2 - 1), model.n_vocab)
    )
    at = 0
    for window in windows:
        model.clear()
        model.decode(window.tolist(), 0, size // 2)
        for i in range(size // 2, size - 1):
            rows[at] = model.logits(i)
            at += 1


if __name__ == "__main__":
    write_logits(*sys.argv[1:])
