"""Importance matrices: llama.cpp's file format, both ways, and one bad file per error."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers import PARALLEL, TESTS, Converter
from numpy.typing import NDArray

from infer_os.convert.errors import FileFormatError, SourceError
from infer_os.convert.imatrix import ColumnSums, ImportanceMatrix, read_imatrix, write_imatrix
from infer_os.native.errors import GgufError
from infer_os.native.ggml_types import ggml_type_named
from infer_os.native.gguf_file import read_gguf_header, tensor_array
from infer_os.native.quantize import quantize_rows

GOLDEN = TESTS / "reference" / "imatrix"
NAME = "blk.0.ffn_up.weight"


def a_matrix(**entries: ColumnSums) -> ImportanceMatrix:
    draw = np.random.default_rng(1)
    made = {
        "output.weight": ColumnSums(draw.random(48, np.float32), 640),
        NAME: ColumnSums(draw.random(32, np.float32) * 1e9, 1 << 24),
        "blk.1.ffn_up.weight": ColumnSums(np.zeros(32, np.float32), 0),
    }
    return ImportanceMatrix(made | entries, ("prose.txt", "ルビー.txt"), 20, 32)


def write_raw(path: Path, tensors: dict[str, Any], kind: str = "imatrix", **keys: Any) -> Path:
    """An imatrix file with anything in it."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type(kind)
    for key, value in keys.items():
        writer.add_key_value(f"imatrix.{key}", value, gguf.GGUFValueType.get_type(value))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def good_tensors() -> dict[str, NDArray[Any]]:
    return {
        f"{NAME}.in_sum2": np.arange(1, 33, dtype=np.float32),
        f"{NAME}.counts": np.array([4], np.float32),
    }


# ---- good files


def test_a_round_trip_keeps_every_bit(tmp_path: Path) -> None:
    path, matrix = tmp_path / "m.gguf", a_matrix()
    write_imatrix(matrix, path)
    found = read_imatrix(path)
    assert found.entries.keys() == matrix.entries.keys()
    for name, entry in matrix.entries.items():
        assert found.entries[name].sums.tobytes() == entry.sums.tobytes()
        assert found.entries[name].count == entry.count
    assert found.datasets == matrix.datasets
    assert (found.chunk_count, found.chunk_size) == (20, 32)


def test_the_file_has_the_form_that_llama_imatrix_writes(tmp_path: Path) -> None:
    ours = tmp_path / "m.gguf"
    write_imatrix(read_imatrix(GOLDEN / "llama.gguf"), ours)
    made, golden = read_gguf_header(ours), read_gguf_header(GOLDEN / "llama.gguf")
    assert made.metadata.keys() == golden.metadata.keys()
    assert list(made.metadata["imatrix.datasets"]) == list(golden.metadata["imatrix.datasets"])
    assert made.metadata["imatrix.chunk_count"] == golden.metadata["imatrix.chunk_count"]
    assert made.metadata["imatrix.chunk_size"] == golden.metadata["imatrix.chunk_size"]
    shapes = [(t.name, t.shape, t.type.name) for t in made.tensors]
    assert shapes == [(t.name, t.shape, t.type.name) for t in golden.tensors]
    for one, other in zip(made.tensors, golden.tensors, strict=True):
        assert np.array_equal(tensor_array(made, one), tensor_array(golden, other))


def test_without_a_named_text_the_key_is_still_there(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(ImportanceMatrix(a_matrix().entries, (), 1, 32), path)
    # llama-quantize refuses a file that lacks it
    assert "imatrix.datasets" in read_gguf_header(path).metadata
    assert read_imatrix(path).datasets == ()


@pytest.mark.parametrize("kind", ["q4_0", "q4_k_s", "q3_k_m", "iq4_nl", "iq3_s"])
def test_weights_make_the_bytes_that_llama_quantize_makes(kind: str, converted: Converter) -> None:
    expected = json.loads((GOLDEN / "quantized.json").read_text())[kind]
    matrix = read_imatrix(GOLDEN / "llama.gguf")
    header = read_gguf_header(converted(PARALLEL, "f32"))
    tensors = {tensor.name: tensor for tensor in header.tensors}
    n_weighted = 0
    for name, made in expected.items():
        rows = np.ascontiguousarray(tensor_array(header, tensors[name]))
        weights = matrix.weights(name)
        data, _ = quantize_rows(
            rows, ggml_type_named(made["type"]), n_threads=2, importance=weights
        )
        assert hashlib.sha256(data.tobytes()).hexdigest() == made["sha256"], name
        n_weighted += weights is not None
    assert n_weighted == len(expected) - 1  # the embedding has none


# ---- weights


def test_weights_are_mean_squares() -> None:
    sums = np.array([1, 2, 3, 10], np.float32)
    matrix = a_matrix(x=ColumnSums(sums, 3))
    weights = matrix.weights("x")
    assert weights is not None
    assert weights.dtype == np.float32
    # 4/3 is between 1 and 2 already; twice and half of it come back to it
    assert weights.tobytes() == (sums / np.float32(3)).tobytes()
    for factor in (2.0**100, 0.25, 2.0**-100):
        scaled = a_matrix(x=ColumnSums(sums * np.float32(factor), 3)).weights("x")
        assert scaled is not None
        assert scaled.tobytes() == weights.tobytes()
    assert matrix.weights("y") is None


@pytest.mark.parametrize("scale", [3e38, 1e-44])
@pytest.mark.parametrize("kind", ["iq3_s", "q4_k", "q4_0"])
def test_huge_and_tiny_sums_weigh_as_ordinary_ones(scale: float, kind: str) -> None:
    """ggml sums products of weights in float32: it would find infinity, or nothing."""
    rows = np.random.default_rng(2).standard_normal((2, 256)).astype(np.float32)
    quantized = []
    for level in (np.float32(scale), np.float32(1)):
        weights = a_matrix(x=ColumnSums(np.full(256, level), 7)).weights("x")
        assert weights is not None
        assert 1 <= weights.mean() < 2
        quantized.append(
            quantize_rows(rows, ggml_type_named(kind), n_threads=1, importance=weights)[1].rms_error
        )
    assert quantized[0] == pytest.approx(quantized[1], rel=0.01)


def test_the_rotation_of_the_columns_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(replace(a_matrix(), rotation="hadamard"), path)
    assert read_imatrix(path).rotation == "hadamard"
    write_imatrix(a_matrix(), path)
    assert read_imatrix(path).rotation == ""


def test_an_unknown_rotation_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    write_imatrix(replace(a_matrix(), rotation="other"), path)
    with pytest.raises(FileFormatError, match=r"inferos\.kv_rotation is 'other'"):
        read_imatrix(path)


def test_what_was_never_counted_weighs_the_same_everywhere() -> None:
    assert np.array_equal(a_matrix().weights("blk.1.ffn_up.weight"), np.ones(32))  # type: ignore[arg-type]
    silent = a_matrix(x=ColumnSums(np.zeros(32, np.float32), 7)).weights("x")
    assert np.array_equal(silent, np.ones(32))  # type: ignore[arg-type]


def test_a_block_of_silent_columns_does_not_become_zeros() -> None:
    sums = np.ones(64, np.float32)
    sums[:32] = 0
    rows = np.random.default_rng(0).standard_normal((4, 64)).astype(np.float32)
    q4_0 = ggml_type_named("q4_0")
    naive, _ = quantize_rows(rows, q4_0, n_threads=1, importance=sums)
    assert not naive[:, :2].any()  # ggml's own answer: a scale of zero
    weights = a_matrix(x=ColumnSums(sums, 1)).weights("x")
    assert weights is not None
    assert (weights[:32] > 0).all()
    assert weights[:32].max() < 1e-5 * weights[32:].min()
    data, _ = quantize_rows(rows, q4_0, n_threads=1, importance=weights)
    assert data[:, :2].any(axis=1).all()
    assert np.array_equal(data[:, 18:], naive[:, 18:])


def test_missing_names_what_has_no_weights() -> None:
    matrix = a_matrix()
    assert matrix.missing({NAME: 32, "token_embd.weight": 64}) == ("token_embd.weight",)
    assert matrix.missing({}) == ()


def test_a_matrix_of_another_model_is_refused() -> None:
    with pytest.raises(SourceError, match=r"ffn_up.weight has rows of 64 values.* for 32"):
        a_matrix().missing({NAME: 64})
    names = {f"blk.{i}.attn_q.weight": 32 for i in range(9)}
    with pytest.raises(SourceError, match=r"another model: it has output.weight, .*5 more"):
        a_matrix().missing(names)


# ---- bad files


def test_the_raw_file_is_good(tmp_path: Path) -> None:
    found = read_imatrix(write_raw(tmp_path / "m.gguf", good_tensors(), chunk_count=3))
    assert found.entries[NAME].count == 4
    assert found.entries[NAME].sums.tolist() == list(range(1, 33))
    assert (found.datasets, found.chunk_count, found.chunk_size) == ((), 3, 0)


def test_tensors_of_a_newer_llama_cpp_are_passed_over(tmp_path: Path) -> None:
    tensors = good_tensors() | {f"{NAME}.in_sum": np.full(32, -1, np.float32)}
    assert read_imatrix(write_raw(tmp_path / "m.gguf", tensors)).entries.keys() == {NAME}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({f"{NAME}.counts": None}, "ffn_up.weight.counts is missing"),
        ({f"{NAME}.in_sum2": None}, "ffn_up.weight.in_sum2 is missing"),
        ({f"{NAME}.in_sum2": np.ones(32, np.float16)}, "must be F32"),
        ({f"{NAME}.counts": np.ones(1, np.int32)}, "must be F32"),
        ({f"{NAME}.counts": np.ones(2, np.float32)}, "weights for 2 experts"),
        ({f"{NAME}.in_sum2": np.ones((2, 16), np.float32)}, "experts"),
        ({f"{NAME}.counts": np.array([-1], np.float32)}, "counts -1 rows"),
        ({f"{NAME}.counts": np.array([np.nan], np.float32)}, "counts nan rows"),
        ({f"{NAME}.counts": np.array([1e30], np.float32)}, r"counts 1e\+30 rows"),
        ({f"{NAME}.in_sum2": np.full(32, np.nan, np.float32)}, "negative or not numbers"),
        ({f"{NAME}.in_sum2": np.full(32, np.inf, np.float32)}, "negative or not numbers"),
        ({f"{NAME}.in_sum2": np.full(32, -1, np.float32)}, "negative or not numbers"),
        ({f"{NAME}.in_sum2": None, f"{NAME}.counts": None, "x": np.ones(3)}, "without entries"),
    ],
)
def test_bad_tensors_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    tensors = {k: v for k, v in (good_tensors() | change).items() if v is not None}
    path = write_raw(tmp_path / "m.gguf", tensors)
    with pytest.raises(FileFormatError, match=words) as caught:
        read_imatrix(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"datasets": "a.txt"}, "datasets is not a list"),
        ({"datasets": [1, 2]}, "datasets is not a list of names"),
        ({"datasets": ["a"] * 1025}, "at most 1024"),
        ({"chunk_count": "many"}, "chunk_count is 'many'"),
        ({"chunk_size": -1}, "chunk_size is -1"),
        ({"chunk_size": True}, "chunk_size is True"),
    ],
)
def test_bad_keys_are_refused(keys: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=words):
        read_imatrix(write_raw(tmp_path / "m.gguf", good_tensors(), **keys))


def test_another_kind_of_file_is_refused(converted: Converter, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="a GGUF, not an importance matrix"):
        read_imatrix(converted())
    path = write_raw(tmp_path / "m.gguf", good_tensors(), kind="adapter")
    with pytest.raises(FileFormatError, match=r"a(n)? adapter file"):
        read_imatrix(path)
    with pytest.raises(FileFormatError, match="not a GGUF file"):
        read_imatrix(GOLDEN / "text.txt")
    with pytest.raises(FileFormatError, match="no such file"):
        read_imatrix(tmp_path / "none.gguf")
    with pytest.raises(FileFormatError, match="folder"):
        read_imatrix(tmp_path)


def test_the_old_format_is_refused_by_name(tmp_path: Path) -> None:
    name = NAME.encode()
    path = tmp_path / "old.dat"
    path.write_bytes(
        struct.pack("<ii", 1, len(name)) + name + struct.pack("<ii32f", 4, 32, *[1] * 32)
    )
    with pytest.raises(
        FileFormatError, match=r"old \.dat format; .*--in-file old\.dat -o old\.gguf"
    ):
        read_imatrix(path)


def test_a_truncated_file_is_refused_at_every_length(tmp_path: Path) -> None:
    data = (GOLDEN / "llama.gguf").read_bytes()
    path = tmp_path / "cut.gguf"
    for length in [*range(0, 1500, 37), len(data) - 1024, len(data) - 32]:
        path.write_bytes(data[:length])
        with pytest.raises(FileFormatError):
            read_imatrix(path)


# ---- values of tensors in a file


def test_tensor_values_equal_gguf_reader(converted: Converter) -> None:
    path = converted(kind="f16")
    header = read_gguf_header(path)
    values = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    for tensor in header.tensors:
        found = tensor_array(header, tensor)
        assert found.dtype == {"f32": np.float32, "f16": np.float16}[tensor.type.name]
        assert np.array_equal(found, values[tensor.name].data)
        assert not found.flags.writeable


def test_values_that_are_not_plain_floats_are_refused(converted: Converter, tmp_path: Path) -> None:
    header = read_gguf_header(converted(kind="q4_0"))
    packed = next(tensor for tensor in header.tensors if tensor.type.name == "q4_0")
    with pytest.raises(GgufError, match="is q4_0; expected f32 or f16"):
        tensor_array(header, packed)
    path = tmp_path / "m.gguf"
    write_imatrix(a_matrix(), path)
    header = read_gguf_header(path)
    path.write_bytes(path.read_bytes()[:64])
    with pytest.raises(GgufError, match="can no longer be read"):
        tensor_array(header, header.tensors[-1])
