"""Tokens per second of several sequences decoded together."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from infer_os.native.batch_context import BatchContext, BatchContextParams, Rows
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.sampler_chain import SamplerChain
from infer_os.runtime.plan.memory_plan import Sizes
from infer_os.runtime.settings import EngineSettings

from .rows import Measurement

#: Steps from an empty cache that are not counted.
_WARM_UP = 4


def sequence_tokens(n_decode: int) -> int:
    """Tokens that each sequence holds at the end."""
    return n_decode + _WARM_UP


def batch_sizes(n: int, n_decode: int, n_threads: int) -> Sizes:
    """The context of ``n`` sequences."""
    return Sizes(sequence_tokens(n_decode), n, n, n, n_threads)


def measure_batches(
    path: Path,
    settings: EngineSettings,
    batches: Sequence[int],
    n_decode: int,
    repeats: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[Measurement]:
    """Decode ``n_decode`` tokens of each of 1..n sequences, greedily; sizes alternate.

    Args:
        path: a GGUF file.
        settings: load mode, kernels and threads; the cache is F16.
        batches: numbers of sequences.
        n_decode: steps that are timed.
        repeats: of every size.
        progress: called with measurements done and in all.

    Raises:
        ModelLoadError: llama.cpp refuses the model or a context.
        DecodeError: a step failed.
    """
    found: list[Measurement] = []
    total, done = len(batches) * repeats, 0
    with (
        LlamaModel(path, load=settings.load, native=settings.native) as model,
        SamplerChain() as sampler,
        interruptible(),
    ):
        sampler.add_greedy()
        for _ in range(repeats):
            for n in batches:
                sizes = batch_sizes(n, n_decode, settings.n_threads)
                params = BatchContextParams(
                    sizes.n_ctx, n, sizes.n_threads, sizes.n_batch, sizes.n_outputs
                )
                with BatchContext(model, params) as context:
                    rate = _rate(context, sampler, model.vocab.n_tokens, n_decode)
                found.append(Measurement("batch_decode", "tokens/s", rate, (("sequences", n),)))
                done += 1
                if progress:
                    progress(done, total)
    return found


def _rate(context: BatchContext, sampler: SamplerChain, n_vocab: int, n_decode: int) -> float:
    n = context.params.n_seq
    sequences, outputs = np.arange(n, dtype=np.int32), np.ones(n, np.int8)
    # each sequence starts with a different token, so that the texts differ
    tokens = (7 * sequences + 1) % n_vocab
    started = 0.0
    for i in range(_WARM_UP + n_decode):
        if i == _WARM_UP:
            started = time.perf_counter()
        context.decode(Rows(tokens, np.full(n, i, np.int32), sequences, outputs))
        tokens = np.array([context.sample(sampler, row) for row in range(n)], np.int32)
    return n * n_decode / (time.perf_counter() - started)
