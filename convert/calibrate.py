"""Collect an importance matrix: run a converted model over text and watch its activations.

Goes in: a GGUF file (f16 or q8_0; a coarser one would distort its activations) and a
text. Comes out: an :class:`~.imatrix.ImportanceMatrix` by that file's tensor names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.models.rotation import ROTATION_KEY
from infer_os.native.activations import ActivationCollector
from infer_os.native.errors import EvaluateError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.moments import MomentCollector
from infer_os.native.scoring import (
    Subject,
    WindowSettings,
    cut_windows,
    decode_window,
    evaluation_context,
)

from .errors import SourceError
from .imatrix import ColumnSums, ImportanceMatrix
from .plain_file import read_start

Progress = Callable[[int, int], None]

#: Default number of chunks to collect importance over; more changes little.
DEFAULT_CHUNKS = 128

# no tokenizer of these families needs more bytes of ordinary text per token
_BYTES_PER_TOKEN = 32


def collect_importance(
    model: Path,
    text: Path | str,
    *,
    n_threads: int,
    n_ctx: int = 512,
    max_chunks: int = DEFAULT_CHUNKS,
    progress: Progress | None = None,
) -> ImportanceMatrix:
    """Decode a text in chunks, as llama-imatrix does, and sum the squares of all activations.

    Args:
        model: a GGUF file.
        text: a file of UTF-8 text, or the text itself.
        n_threads: threads.
        n_ctx: tokens per chunk, each decoded into an empty cache; at most the model's own context.
        max_chunks: chunks at most; no more of a file is read.
        progress: called with chunks done and in all.

    Raises:
        SourceError: no such text, it does not fill a chunk, or activations are not finite.
        NativeError: the model cannot be loaded, or decoding failed or was interrupted.
    """
    opened = open_windows(
        model, text, n_threads=n_threads, n_ctx=n_ctx, max_chunks=max_chunks
    )  # fmt: skip
    name = _name(text)
    with opened as (loaded, windows, settings), ActivationCollector() as collector:
        try:
            decode_observed(Subject(loaded), windows, settings, collector, progress)
            entries = {
                matrix: ColumnSums(sums.sum_squares.astype(np.float32), sums.n_rows)
                for matrix, sums in collector.results().items()
            }
        except EvaluateError as error:
            raise SourceError(f"calibration with {name}: {error}") from error
    rotation = str(read_gguf_header(model).metadata.get(ROTATION_KEY, ""))
    return ImportanceMatrix(entries, (name,), len(windows), settings.n_ctx, rotation)


@contextmanager
def open_windows(
    model: Path,
    text: Path | str,
    *,
    n_threads: int,
    n_ctx: int = 512,
    max_chunks: int = DEFAULT_CHUNKS,
) -> Iterator[tuple[LlamaModel, NDArray[np.int32], WindowSettings]]:
    """A loaded model, and a text in chunks for it; the arguments of :func:`collect_importance`.

    Raises:
        SourceError: no such text, or it does not fill a chunk.
        NativeError: the model cannot be loaded.
    """
    data = _read_text(text, max_chunks * n_ctx * _BYTES_PER_TOKEN)
    with LlamaModel(model) as loaded:
        chunk_size = min(n_ctx, loaded.n_ctx_train or n_ctx)
        tokens = loaded.vocab.tokenize(data, parse_special=False)
        try:
            settings = WindowSettings(n_threads, chunk_size, max_chunks)
            windows = cut_windows(loaded, tokens, settings)
        except EvaluateError as error:
            raise SourceError(f"calibration with {_name(text)}: {error}") from error
        yield loaded, windows, settings


def decode_observed(
    subject: Subject,
    windows: NDArray[np.int32],
    settings: WindowSettings,
    collector: ActivationCollector | MomentCollector,
    progress: Progress | None,
) -> None:
    """Decode all chunks while a collector watches.

    Raises:
        EvaluateError: what the collector complains of.
    """
    with evaluation_context(subject, settings, collector) as context, interruptible():
        for number, window in enumerate(windows, 1):
            # every token gets logits: the last block computes nothing for the others
            for _ in decode_window([context], window, 0):
                collector.check()
            if progress:
                progress(number, len(windows))


def _name(text: Path | str) -> str:
    return "the given text" if isinstance(text, str) else str(text)


def _read_text(text: Path | str, most: int) -> bytes:
    """The text's first bytes."""
    if isinstance(text, str):
        return text.encode("utf-8", "replace")[:most]
    try:
        return read_start(text, most)
    except OSError as error:
        raise SourceError(f"{text}: cannot be read: {error.strerror}") from error
