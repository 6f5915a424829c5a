"""How far a model's output moves when some of its matrices are rounded: measured, group by group.

Goes in: a GGUF file whose matrices are Q8_0, and windows of tokens. Comes out: the KL divergence
per group of matrices, from a copy of the file in which only these have lost precision.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.gguf_file import GgufHeader, GgufTensor
from infer_os.native.interrupt import interruptible
from infer_os.native.model import LlamaModel
from infer_os.native.quantize import quantize_rows
from infer_os.native.scoring import (
    Subject,
    WindowSettings,
    decode_window,
    evaluation_context,
    score_rows,
)

Progress = Callable[[int, int], None]

#: What the matrices of a group are rounded to: coarse enough to be seen, and any rows divide.
PROBE = "q4_0"
_HELD_VALUES = 1 << 24


def stored_rows(header: GgufHeader, tensor: GgufTensor) -> NDArray[np.uint8]:
    """The bytes of a matrix in its file, mapped read-only: (n_rows, bytes per row)."""
    n_rows = int(np.prod(tensor.shape[1:], dtype=np.int64))
    return np.memmap(
        header.path, np.uint8, "r", header.data_offset + tensor.offset,
        (n_rows, tensor.n_bytes // n_rows),
    )  # fmt: skip


def decoded(data: NDArray[np.uint8], kind: str) -> NDArray[np.float32]:
    """Rows of a type, as values."""
    rows = np.ascontiguousarray(data)
    number = gguf.GGMLQuantizationType(ggml_type_named(kind).id)
    values: NDArray[np.float32] = gguf.quants.dequantize(rows, number)
    return values


def rounded_rows(rows: NDArray[np.uint8], n_threads: int) -> NDArray[np.uint8]:
    """Rows of Q8_0 that hold what is left of them in the probe's type."""
    probe, fine = ggml_type_named(PROBE), ggml_type_named("q8_0")
    coarse, _ = quantize_rows(decoded(rows, "q8_0"), probe, n_threads=n_threads, measure=False)
    values = decoded(coarse, PROBE)
    return quantize_rows(values, fine, n_threads=n_threads, measure=False)[0]


def probe_groups(
    header: GgufHeader,
    groups: Sequence[Sequence[GgufTensor]],
    windows: NDArray[np.int32],
    settings: WindowSettings,
    place: Path,
    progress: Progress | None = None,
) -> list[float]:
    """KL divergence in nats per token, of each group rounded alone from the file itself.

    Args:
        header: of the file.
        groups: matrices of it, all Q8_0.
        windows: (n_windows, n_ctx) tokens; the second half of each is scored.
        settings: of the windows.
        place: a folder for a copy of the file and for logits, on a disk with room for both.
        progress: called with groups done and in all.

    Raises:
        NativeError: the model cannot be loaded, or decoding failed or was interrupted.
    """
    copy = place / "probe.gguf"
    shutil.copyfile(header.path, copy)
    reference = _Reference(place / "logits", header.path, windows, settings)
    found = []
    try:
        for number, group in enumerate(groups, 1):
            with copy.open("r+b") as file:
                for tensor in group:
                    _rewrite(file.fileno(), header, tensor, settings.n_threads)
            found.append(reference.divergence(copy))
            with copy.open("r+b") as file:
                for tensor in group:
                    file.seek(header.data_offset + tensor.offset)
                    file.write(stored_rows(header, tensor).data)
            if progress:
                progress(number, len(groups))
    finally:
        copy.unlink()
        reference.close()
    return found


def _rewrite(handle: int, header: GgufHeader, tensor: GgufTensor, n_threads: int) -> None:
    """Round a matrix in a copy of its file."""
    import os

    rows = stored_rows(header, tensor)
    step = max(1, _HELD_VALUES // tensor.shape[0])
    for first in range(0, len(rows), step):
        data = rounded_rows(rows[first : first + step], n_threads)
        at = header.data_offset + tensor.offset + first * rows.shape[1]
        if os.pwrite(handle, data.tobytes(), at) != data.nbytes:
            raise OSError(28, os.strerror(28))


class _Reference:
    """The logits of a file for the scored tokens, on disk."""

    def __init__(
        self, path: Path, model: Path, windows: NDArray[np.int32], settings: WindowSettings
    ) -> None:
        self.path, self.windows, self.settings = path, windows, settings
        with path.open("wb") as file:
            for _, rows in _scored(model, windows, settings):
                self.n_vocab = rows.shape[1]
                file.write(np.ascontiguousarray(rows, np.float32).data)

    def divergence(self, model: Path) -> float:
        """Mean KL divergence of a file from the reference."""
        rows_at = 0
        total = 0.0
        for targets, rows in _scored(model, self.windows, self.settings):
            own = np.memmap(
                self.path, np.float32, "r", 4 * rows_at * self.n_vocab, (len(rows), self.n_vocab)
            )
            scores = score_rows([own, rows], targets, self.settings.n_threads)
            total += float(scores["kl"].sum())
            rows_at += len(rows)
        return total / rows_at

    def close(self) -> None:
        """Remove the logits."""
        self.path.unlink()


def _scored(
    model: Path, windows: NDArray[np.int32], settings: WindowSettings
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """The scored tokens of a text and the rows of logits that they follow, batch by batch."""
    with (
        LlamaModel(model) as loaded,
        evaluation_context(Subject(loaded), settings) as context,
        interruptible(),
    ):
        for window in windows:
            for start, n in decode_window([context], window, settings.first_scored):
                n_rows = min(n, len(window) - 1 - start)
                if n_rows:
                    targets = window[start + 1 : start + 1 + n_rows]
                    yield targets, context.logits_rows(n)[:n_rows]
