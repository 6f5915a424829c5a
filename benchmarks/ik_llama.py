"""Files of ik_llama.cpp's own types, made by its llama-quantize and measured by its own code.

In: a Python that has the package ik-llama-cpp-python. No other program reads these types, so
ik_worker.py computes both sides' logits there, those of the F32 file and of its own.
"""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infer_os.convert.imatrix import ImportanceMatrix
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import Divergence, Perplexity, WindowSettings, cut_windows

#: From its list; those for BitNet, repacked ones and those of llama.cpp left out.
TYPES = ("IQ2_KT", "IQ2_KS", "IQ2_K", "IQ2_KL", "IQ3_KT", "IQ3_KS", "IQ3_K", "IQ3_KL", "IQ4_KSS",
         "IQ4_KT", "IQ4_KS", "IQ4_K", "IQ5_KS", "IQ5_K", "IQ6_K")  # fmt: skip
_WORKER = Path(__file__).with_name("ik_worker.py")


class IkLlama:
    """Its programs. ``python`` has the package; files lie in ``place``."""

    def __init__(self, python: Path, place: Path, threads: int) -> None:
        where = "import ik_llama_cpp, pathlib; print(pathlib.Path(ik_llama_cpp.__file__).parent)"
        found = subprocess.run([python, "-c", where], check=True, capture_output=True, text=True)
        self.program = Path(found.stdout.strip()) / "bin" / "llama-quantize"
        self.python, self.place, self.threads = python, place, threads
        self.references: dict[str, NDArray[np.float32]] = {}  # of each text

    def quantize(self, source: Path, target: Path, name: str, matrix: ImportanceMatrix) -> None:
        """Write a file of a type, with an importance matrix."""
        weights = self.place / "ik.imatrix.dat"
        write_old_imatrix(matrix, weights)
        command = [str(self.program), "--imatrix", str(weights), str(source), str(target), name,
                   str(self.threads)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}: {done.stderr[-300:]}")

    def divergence(self, full: Path, target: Path, text: str, window: WindowSettings) -> Divergence:
        """The file against the model's own weights; the second half of each window is scored."""
        with LlamaModel(full) as model:
            windows = cut_windows(model, model.vocab.tokenize(text, parse_special=False), window)
        size = window.n_ctx
        targets = windows[:, size // 2 + 1 :].reshape(-1)
        if text not in self.references:
            self.references[text] = self._log_probabilities(full, windows)
        reference = self.references[text]
        mine = self._log_probabilities(target, windows)
        rows = np.arange(len(targets))
        return Divergence(
            Perplexity(reference[rows, targets]),
            Perplexity(mine[rows, targets]),
            (np.exp(reference) * (reference - mine)).sum(1),
            reference.argmax(1) == mine.argmax(1),
        )

    def _log_probabilities(self, path: Path, windows: NDArray[np.int32]) -> NDArray[np.float32]:
        tokens, out = self.place / "ik-tokens.npy", self.place / "ik-logits.npy"
        np.save(tokens, windows)
        command = [self.python, _WORKER, path, tokens, out, str(self.threads)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        logits: NDArray[np.float32] = np.load(out)  # (rows, vocabulary)
        out.unlink()
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)
        return logits


def write_old_imatrix(matrix: ImportanceMatrix, path: Path) -> None:
    """llama.cpp's format before GGUF: counts, names and float32 values, little-endian."""
    parts = [struct.pack("<i", len(matrix.entries))]
    for name, entry in matrix.entries.items():
        values = entry.mean_squares.astype("<f4").tobytes()
        parts += [struct.pack("<i", len(name)), name.encode()]
        parts += [struct.pack("<ii", 1, len(values) // 4), values]
    path.write_bytes(b"".join([*parts, struct.pack("<ii", 1, 0)]))
