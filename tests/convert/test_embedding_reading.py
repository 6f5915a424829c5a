"""The embedding's second moments: against derivatives of a first layer written out in numpy."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers import BUNDLED, PARALLEL, REPOSITORY, SEQUENTIAL, TESTS, Converter
from numpy.typing import NDArray

from infer_os.convert.calibrated import CalibrationSettings, convert_calibrated
from infer_os.convert.collecting import collect_statistics
from infer_os.convert.embedding_reading import EMBEDDING, embedding_moments
from infer_os.convert.errors import FileFormatError
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.convert.statistics import read_statistics
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.model import LlamaModel
from infer_os.native.scoring import Subject, WindowSettings, compare_models

REFERENCE = TESTS / "reference"
TEXT = REFERENCE / "imatrix" / "text.txt"
MODEL = next(path for path in BUNDLED if path.name == "austen-6m")
Matrix = NDArray[np.float64]


def tensors_of(path: Path) -> dict[str, Matrix]:
    return {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
        for t in gguf.GGUFReader(path).tensors
    }


def readings(tensors: dict[str, Matrix], x: Matrix) -> Matrix:
    """What the first layer's matrices make of rows of the residual stream, side by side.

    Each row's variance is taken for one, as a factor that all errors of a row have in common.
    """
    found = []
    for norm, matrix in (("attn_norm", "attn_qkv"), ("ffn_norm", "ffn_up")):
        norm = norm if f"blk.0.{norm}.weight" in tensors else "attn_norm"
        normed = (x - x.mean(1, keepdims=True)) * tensors[f"blk.0.{norm}.weight"]
        found.append(normed @ tensors[f"blk.0.{matrix}.weight"].T)
    return np.concatenate(found, axis=1)


@pytest.mark.parametrize("reference", ["neox-parallel", "neox-sequential", "gptj", "gpt2-untied"])
def test_it_is_what_an_error_changes(reference: str, converted: Converter) -> None:
    path = converted(REFERENCE / reference, "f32")
    found = embedding_moments(read_gguf_header(path))
    assert found is not None
    (block,) = found.blocks
    tensors = tensors_of(path)
    error = np.random.default_rng(0).standard_normal((20, len(block))) * 0.01
    x = tensors[EMBEDDING][:20]
    changes = readings(tensors, x + error) - readings(tensors, x)
    predicted = np.einsum("ri,ij,rj->r", error, block.astype(np.float64), error)
    np.testing.assert_allclose(predicted, (changes**2).sum(1), rtol=1e-4)
    assert found.n_rows == changes.shape[1]


def test_q8_0_says_the_same(converted: Converter) -> None:
    fine, coarse = (
        embedding_moments(read_gguf_header(converted(PARALLEL, kind))) for kind in ("f32", "q8_0")
    )
    assert fine is not None
    assert coarse is not None
    scale = np.abs(fine.blocks[0]).max()
    np.testing.assert_allclose(coarse.blocks[0], fine.blocks[0], atol=0.02 * scale)


@pytest.mark.parametrize("reference", ["gpt2", "bloom"])
def test_a_head_is_no_mere_embedding(reference: str, converted: Converter) -> None:
    assert embedding_moments(read_gguf_header(converted(REFERENCE / reference, "f32"))) is None


def test_it_is_kept_with_the_layers(converted: Converter, tmp_path: Path) -> None:
    model, kept, target = converted(SEQUENTIAL, "q8_0"), tmp_path / "kept", tmp_path / "it.gguf"

    def collect() -> None:
        collect_statistics(model, TEXT, kept, dataset="text", n_threads=1)

    def weights() -> bytes:
        convert(ConvertSettings(SEQUENTIAL, target, "q4_0", statistics=kept, force=True))
        header = read_gguf_header(target)
        (tensor,) = (t for t in header.tensors if t.name == EMBEDDING)
        start = header.data_offset + tensor.offset
        return target.read_bytes()[start : start + tensor.n_bytes]

    collect()
    statistics, path = read_statistics(kept), kept / "embedding.moments.gguf"
    assert EMBEDDING not in statistics.importance.entries
    sound, compensated = path.read_bytes(), weights()
    # a folder of an older version
    path.unlink()
    assert read_statistics(kept).digest != statistics.digest
    assert weights() != compensated
    collect()
    assert path.read_bytes() == sound
    assert weights() == compensated
    for other in kept.iterdir():
        if other != path:
            other.unlink()
    with pytest.raises(FileFormatError, match="no statistics there"):
        read_statistics(kept)


def test_it_lessens_what_the_model_loses(tmp_path: Path) -> None:
    documents = (REPOSITORY / "models/bundled/held-out.txt").read_text().split("<|endoftext|>")
    text, kept, full = tmp_path / "text.txt", tmp_path / "kept", tmp_path / "f32.gguf"
    text.write_text("".join(documents[:4]))
    made = {name: tmp_path / f"{name}.gguf" for name in ("with", "without")}
    settings = ConvertSettings(MODEL, made["with"], "q4_0")
    convert_calibrated(settings, CalibrationSettings(text, None, "gptq", kept), lambda name: None)
    (kept / "embedding.moments.gguf").unlink()
    convert(ConvertSettings(MODEL, made["without"], "q4_0", statistics=kept))
    convert(ConvertSettings(MODEL, full, "f32"))
    kl = {}
    with LlamaModel(full) as reference:
        tokens = reference.vocab.tokenize("".join(documents[7:]), parse_special=False)
        for name, path in made.items():
            with LlamaModel(path) as candidate:
                windows = WindowSettings(1, 256, 8)
                found = compare_models(Subject(reference), Subject(candidate), tokens, windows)
            kl[name] = found.mean_kl
    assert kl["with"] < 0.75 * kl["without"]
