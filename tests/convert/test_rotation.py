"""With the rotation folded in, a model computes the same, and a quantized cache loses less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comparison import all_logits, compare_logits
from helpers import PARALLEL, REFERENCES, TESTS, copy_checkpoint, read_tensors, write_tensors

from infer_os.convert import blocks
from infer_os.convert.errors import UnsupportedError
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.rotation import ROTATION_KEY
from infer_os.native.gguf_file import read_gguf_header


def folded(folder: Path, target: Path, kind: str = "f32") -> Path:
    convert(ConvertSettings(folder, target, kind, fold_rotation=True))
    return target


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_the_f32_model_is_unchanged(folder: Path, tmp_path: Path) -> None:
    tokens = [int(t) for t in np.load(folder / "tokens.npy")]
    path = folded(folder, tmp_path / "folded.gguf")
    result = compare_logits(np.load(folder / "logits.npy"), all_logits(path, tokens))
    assert result.kl < 1e-5
    assert result.argmax_equal == result.n_tokens
    plain = tmp_path / "plain.gguf"
    convert(ConvertSettings(folder, plain, "f32"))
    assert plain.read_bytes() != path.read_bytes()


def test_it_is_recorded(tmp_path: Path) -> None:
    header = read_gguf_header(folded(PARALLEL, tmp_path / "folded.gguf"))
    assert header.metadata[ROTATION_KEY] == "hadamard"


def test_blocks_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = folded(PARALLEL, tmp_path / "whole.gguf").read_bytes()
    monkeypatch.setattr(blocks, "_BLOCK_BYTES", 1000)
    assert folded(PARALLEL, tmp_path / "cut.gguf").read_bytes() == whole


def test_a_cache_with_loud_channels_loses_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One V channel of each head 30 times as loud: its block of 32 has no bits for the others."""
    source = copy_checkpoint(PARALLEL, tmp_path / "loud")
    tensors = {name: values.astype(np.float32) for name, values in read_tensors(source).items()}
    for layer in range(2):
        at = f"gpt_neox.layers.{layer}.attention"
        tensors[f"{at}.query_key_value.weight"].reshape(2, 3, 32, 64)[:, 2, 5] *= 30
        tensors[f"{at}.query_key_value.bias"].reshape(2, 3, 32)[:, 2, 5] *= 30
        tensors[f"{at}.dense.weight"].reshape(64, 2, 32)[:, :, 5] /= 30
    write_tensors(source, tensors)
    tokens = [int(t) for t in np.load(source / "tokens.npy")]
    convert(ConvertSettings(source, tmp_path / "plain.gguf", "f32"))
    path = folded(source, tmp_path / "folded.gguf")
    exact = all_logits(tmp_path / "plain.gguf", tokens)
    monkeypatch.setenv("LLAMA_ATTN_ROT_DISABLE", "1")
    without = compare_logits(exact, all_logits(tmp_path / "plain.gguf", tokens, "q4_0", "q4_0"))
    with_it = compare_logits(exact, all_logits(path, tokens, "q4_0", "q4_0"))
    assert with_it.kl < without.kl / 2


def test_a_matrix_of_other_columns_is_refused(tmp_path: Path) -> None:
    matrix = TESTS / "reference" / "imatrix" / "llama.gguf"
    settings = ConvertSettings(PARALLEL, tmp_path / "m.gguf", imatrix=matrix, fold_rotation=True)
    with pytest.raises(UnsupportedError, match="--calibrate"):
        convert(settings)
    assert list(tmp_path.iterdir()) == []
