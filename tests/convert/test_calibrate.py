"""Calibration: the same figures as llama-imatrix, and files that lose less by it."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import gguf.quants
import numpy as np
import pytest
from helpers import BUNDLED, PARALLEL, REPOSITORY, TESTS, Converter
from numpy.typing import NDArray

from infer_os.convert.calibrate import collect_importance
from infer_os.convert.errors import SourceError
from infer_os.convert.imatrix import ImportanceMatrix, read_imatrix
from infer_os.native.errors import GgufError
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.gguf_file import read_gguf_header, tensor_array
from infer_os.native.model import LlamaModel
from infer_os.native.quantize import quantize_rows
from infer_os.native.scoring import Divergence, Subject, WindowSettings, compare_models

GOLDEN = TESTS / "reference" / "imatrix"
HELD_OUT = REPOSITORY / "models" / "bundled" / "held-out.txt"


def test_the_sums_equal_llama_imatrix(converted: Converter) -> None:
    golden = read_imatrix(GOLDEN / "llama.gguf")
    found = collect_importance(
        converted(PARALLEL, "f32"), GOLDEN / "text.txt", n_threads=1, n_ctx=64
    )
    assert (found.chunk_count, found.chunk_size) == (golden.chunk_count, golden.chunk_size)
    assert found.datasets == (str(GOLDEN / "text.txt"),)
    assert found.entries.keys() == golden.entries.keys()
    assert len(found.entries) == 9
    for name, entry in golden.entries.items():
        assert found.entries[name].count == entry.count == 64 * golden.chunk_count
        # it sums in float32, and CPUs differ in the rounding of attention
        np.testing.assert_allclose(found.entries[name].sums, entry.sums, rtol=5e-3)
    exact = "blk.0.attn_qkv.weight"
    np.testing.assert_allclose(found.entries[exact].sums, golden.entries[exact].sums, rtol=1e-5)


def test_a_text_may_be_given_itself(converted: Converter) -> None:
    text = (GOLDEN / "text.txt").read_text()
    path = converted(PARALLEL, "f32")
    seen: list[tuple[int, int]] = []
    given = collect_importance(
        path, text, n_threads=1, n_ctx=64, max_chunks=3, progress=lambda *at: seen.append(at)
    )
    read = collect_importance(path, GOLDEN / "text.txt", n_threads=1, n_ctx=64, max_chunks=3)
    assert given.datasets == ("the given text",)
    assert given.chunk_count == read.chunk_count == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    for name, entry in read.entries.items():
        assert entry.count == 192
        assert np.array_equal(given.entries[name].sums, entry.sums)


def test_chunks_do_not_see_each_other(converted: Converter) -> None:
    path = converted(PARALLEL, "f32")
    text = (GOLDEN / "text.txt").read_text()
    with LlamaModel(path) as model:
        vocab = model.vocab
        tokens = vocab.tokenize(text, parse_special=False)
        second = vocab.detokenize(tokens[64:128]).decode()
        assert vocab.tokenize(second, parse_special=False) == tokens[64:128]
    one = collect_importance(path, text, n_threads=1, n_ctx=64, max_chunks=1)
    two = collect_importance(path, text, n_threads=1, n_ctx=64, max_chunks=2)
    alone = collect_importance(path, second, n_threads=1, n_ctx=64)
    for name, entry in two.entries.items():
        expected = one.entries[name].sums + alone.entries[name].sums
        np.testing.assert_allclose(entry.sums, expected, rtol=1e-5)


def test_chunks_are_at_most_the_models_context(converted: Converter) -> None:
    found = collect_importance(
        converted(PARALLEL, "f32"), GOLDEN / "text.txt", n_threads=1, max_chunks=2
    )
    assert (found.chunk_size, found.chunk_count) == (128, 2)


def test_a_text_that_is_too_short_is_refused(converted: Converter) -> None:
    for text in ("", "a few words"):
        with pytest.raises(SourceError, match=r"the given text: .* do not fill a window of 64"):
            collect_importance(converted(), text, n_threads=1, n_ctx=64)


def test_special_tokens_are_read_as_letters(converted: Converter) -> None:
    # as llama-imatrix does; read as one token each, eight would not fill a chunk
    found = collect_importance(converted(), "<|endoftext|>" * 8, n_threads=1, n_ctx=64)
    assert found.chunk_count == 1


def test_files_that_cannot_be_used_are_named(converted: Converter, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.txt: cannot be read: No such file"):
        collect_importance(converted(), tmp_path / "none.txt", n_threads=1)
    with pytest.raises(SourceError, match="cannot be read: Is a directory"):
        collect_importance(converted(), tmp_path, n_threads=1)
    with pytest.raises(GgufError, match="not a GGUF"):
        collect_importance(GOLDEN / "text.txt", GOLDEN / "text.txt", n_threads=1)


def test_damaged_weights_are_named(converted: Converter, tmp_path: Path) -> None:
    path = tmp_path / "damaged.gguf"
    shutil.copy(converted(PARALLEL, "f32"), path)
    header = read_gguf_header(path)
    bias = next(t for t in header.tensors if t.name == "blk.1.attn_norm.bias")
    with path.open("r+b") as file:
        file.seek(header.data_offset + bias.offset)
        file.write(np.array([np.inf], "<f4").tobytes())
    with pytest.raises(SourceError, match=r"blk\.1\.attn_qkv\.weight: an activation is NaN"):
        collect_importance(path, GOLDEN / "text.txt", n_threads=1, n_ctx=64)


def weighted_copy(full: Path, plain: Path, matrix: ImportanceMatrix, target: Path) -> Path:
    """The quantized file ``plain`` again, its matrices quantized by importance."""
    shutil.copy(plain, target)
    source, header = read_gguf_header(full), read_gguf_header(target)
    tensors = {tensor.name: tensor for tensor in source.tensors}
    with target.open("r+b") as file:
        for tensor in header.tensors:
            if tensor.type.quantized:
                rows = np.ascontiguousarray(tensor_array(source, tensors[tensor.name]))
                data, _ = quantize_rows(
                    rows, tensor.type, n_threads=2, importance=matrix.weights(tensor.name)
                )
                file.seek(header.data_offset + tensor.offset)
                file.write(data.tobytes())
    return target


@pytest.mark.parametrize("kind", ["q4_0", "q5_0", "iq4_nl", "q4_k", "q3_k", "iq3_s"])
def test_importance_lowers_the_error_of_what_a_matrix_computes(
    kind: str, converted: Converter
) -> None:
    matrix = read_imatrix(GOLDEN / "llama.gguf")
    header = read_gguf_header(converted(PARALLEL, "f32"))
    target = ggml_type_named(kind)
    seen = 0
    for tensor in header.tensors:
        weights = matrix.weights(tensor.name)
        if weights is None or tensor.shape[0] % target.block:
            continue
        rows = np.ascontiguousarray(tensor_array(header, tensor))

        def output_error(importance: NDArray[np.float32] | None) -> float:
            """Mean square that quantization adds to the matrix's outputs, columns independent."""
            data, _ = quantize_rows(rows, target, n_threads=1, importance=importance)  # noqa: B023
            values = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind.upper()])
            return float(((values.reshape(rows.shape) - rows) ** 2 @ weights).mean())  # noqa: B023

        assert output_error(weights) < 0.99 * output_error(None), tensor.name
        seen += 1
    assert seen == (9 if target.block == 32 else 2)


@pytest.mark.skipif(not BUNDLED, reason="the bundled model is not trained yet")
def test_importance_brings_a_quantized_model_closer(converted: Converter, tmp_path: Path) -> None:
    folder = next(path for path in BUNDLED if path.name == "austen-6m")
    full = converted(folder, "f32")
    text = HELD_OUT.read_text()
    matrix = collect_importance(full, text[: len(text) // 2], n_threads=1, n_ctx=256, max_chunks=12)
    settings = WindowSettings(n_threads=1, n_ctx=256, max_windows=10)
    with LlamaModel(full) as reference:
        tokens = reference.vocab.tokenize(text[len(text) // 2 :])

        def divergence(path: Path) -> Divergence:
            with LlamaModel(path) as candidate:
                return compare_models(Subject(reference), Subject(candidate), tokens, settings)

        for kind in ("q4_0", "iq3_s"):
            plain = converted(folder, kind)
            weighted = weighted_copy(full, plain, matrix, tmp_path / f"{kind}.gguf")
            assert divergence(weighted).mean_kl < divergence(plain).mean_kl, kind
