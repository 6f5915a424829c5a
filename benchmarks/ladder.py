"""Compare calibrated files at the same types: plain, importance matrix, llama.cpp's, GPTQ.

    python benchmarks/ladder.py [--model FOLDER] [--calibration TEXT] [--text TEXT] [--windows 24]

Without texts, the bundled held-out text gives both: its first seven documents calibrate, the last
five (of two other novels and of another author) are only ever reported. llama.cpp's files are those
of ``llama_model_quantize``, which llama-quantize calls, with the importance matrix of ours. KL
divergence is in nats per token from the model's own F32 weights, with the interval that holds 95 of
100 means of windows drawn again. Prints a table in Markdown; ``--rows FILE`` keeps the figures.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.imatrix import ImportanceMatrix
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.statistics import read_statistics
from infer_os.models.weight_types import RECIPES
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import Divergence, Subject, WindowSettings, compare_models

_BUNDLED = Path(__file__).parent.parent / "models" / "bundled"
_TYPES = ("q4_0", "iq4_nl", "q4_k_m", "q3_k_m", "q5_k_m")
_METHODS = ("plain", "imatrix", "llama.cpp, imatrix", "gptq")
_CALIBRATING = 7
_RESAMPLES = 2000


def main() -> None:
    """Convert, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=_BUNDLED / "austen-6m")
    parser.add_argument("--calibration", type=Path, help="a text to calibrate with")
    parser.add_argument("--text", type=Path, help="another text to measure with")
    parser.add_argument("--types", nargs="+", default=_TYPES)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", type=Path, help="a file for the figures, as JSON lines")
    given = parser.parse_args()
    if (given.calibration is None) != (given.text is None):
        parser.error("give both texts or none")
    _check_types(given.types)
    print(f"| type | how | bytes | bits per weight | KL | 95 % | same top |\n{'|---' * 7}|")
    with tempfile.TemporaryDirectory() as place:
        for row in measure(given, Path(place)):
            print(
                f"| `{row['type']}` | {row['how']} | {row['bytes']:,} | {row['bits']:.2f} "
                f"| {row['kl']:.2e} | {row['low']:.2e} to {row['high']:.2e} "
                f"| {100 * row['top1']:.2f} % |",
                flush=True,
            )
            if given.rows:
                with given.rows.open("a") as file:
                    print(json.dumps(row), file=file)


def measure(given: argparse.Namespace, place: Path) -> Iterator[dict[str, Any]]:
    """A record per type and method."""
    calibration, text = given.calibration, given.text
    if calibration is None:
        calibration, text = bundled_texts(place)
    full, kept, matrix = place / "f32.gguf", place / "statistics", place / "matrix.gguf"
    convert(ConvertSettings(given.model, full, "f32", threads=given.threads))
    first = ConvertSettings(given.model, place / "first.gguf", "q4_0", threads=given.threads)
    options = CalibrationSettings(calibration, matrix, "gptq", kept)
    convert_calibrated(first, options, lambda step: print(step, file=sys.stderr))
    importance = read_statistics(kept).importance
    for kind in given.types:
        for how in _METHODS:
            target = place / "it.gguf"
            target.unlink(missing_ok=True)
            if how == "llama.cpp, imatrix":
                quantize_by_llama(full, target, RECIPES[kind].file_type, importance, given.threads)
            else:
                settings = ConvertSettings(given.model, target, kind, threads=given.threads)
                if how != "plain":
                    given_by = {"statistics": kept} if how == "gptq" else {"imatrix": matrix}
                    settings = replace(settings, **given_by)
                convert(settings)
            header = read_gguf_header(target)
            found = divergence(full, target, text.read_text("utf-8"), given)
            low, high = interval(found, given.window)
            yield {
                "type": kind, "how": how, "bytes": header.weight_bytes,
                "bits": header.bits_per_weight, "kl": found.mean_kl, "low": low, "high": high,
                "top1": found.top1, "tokens": found.n_tokens,
            }  # fmt: skip


def bundled_texts(place: Path) -> tuple[Path, Path]:
    """The documents of the held-out text that calibrate, and those that are measured."""
    chapters = (_BUNDLED / "held-out.txt").read_text("utf-8").split("<|endoftext|>")
    calibration, text = place / "calibration.txt", place / "text.txt"
    calibration.write_text("".join(chapters[:_CALIBRATING]), "utf-8")
    text.write_text("".join(chapters[_CALIBRATING:]), "utf-8")
    return calibration, text


def divergence(full: Path, target: Path, text: str, given: argparse.Namespace) -> Divergence:
    """The file against the model's own weights; the second half of each window is scored."""
    with LlamaModel(full) as reference, LlamaModel(target) as candidate:
        tokens = reference.vocab.tokenize(text, parse_special=False)
        windows = WindowSettings(given.threads, given.window, given.windows)
        return compare_models(Subject(reference), Subject(candidate), tokens, windows)


def interval(found: Divergence, window: int) -> tuple[float, float]:
    """Where 95 of 100 means lie if as many windows are drawn from these, with repetition."""
    per_window = window - window // 2 - 1
    means = found.kl.reshape(-1, per_window).mean(1)
    drawn = np.random.default_rng(0).integers(0, len(means), (_RESAMPLES, len(means)))
    low, high = np.quantile(means[drawn].mean(1), (0.025, 0.975))
    return float(low), float(high)


def quantize_by_llama(
    source: Path, target: Path, file_type: int, importance: ImportanceMatrix, n_threads: int
) -> None:
    """What llama-quantize does with an importance matrix."""
    names = list(importance.entries)
    means = [importance.entries[n].mean_squares.astype(np.float32) for n in names]
    # a list that ends with an entry without a name
    data = (llama_cpp.llama_model_imatrix_data * (len(names) + 1))()
    for entry, name, values in zip(data, names, means, strict=False):
        entry.name, entry.size = name.encode(), len(values)
        entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.nthread, parameters.ftype, parameters.imatrix = n_threads, file_type, data
    status = llama_cpp.llama_model_quantize(
        bytes(source), bytes(target), ctypes.byref(parameters)
    )  # fmt: skip
    if status != 0:
        raise RuntimeError(f"llama_model_quantize: status {status}")


def _check_types(types: Sequence[str]) -> None:
    for kind in types:
        if kind not in RECIPES:
            raise SystemExit(f"unknown type {kind}; there are {', '.join(RECIPES)}")


if __name__ == "__main__":
    main()
