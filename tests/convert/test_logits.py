"""A converted model computes what Hugging Face computes: logits stored beside each checkpoint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from comparison import compare_logits, compare_with_reference
from helpers import REFERENCES


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("folder", REFERENCES, ids=lambda path: path.name)
def test_unquantized_logits_equal_hugging_face(folder: Path, kind: str, tmp_path: Path) -> None:
    result = compare_with_reference(folder, kind, tmp_path / "model.gguf")
    assert result.kl < 1e-5
    assert result.argmax_equal == result.n_tokens


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda path: path.name)
def test_q8_0_logits_stay_close(folder: Path, tmp_path: Path) -> None:
    result = compare_with_reference(folder, "q8_0", tmp_path / "model.gguf")
    assert result.kl < 5e-3


def test_both_residual_forms_are_among_the_references() -> None:
    assert {"neox-parallel", "neox-sequential"} <= {path.name for path in REFERENCES}


def test_the_comparison_sees_a_difference() -> None:
    logits = np.array([[0.0, 1.0, 2.0], [3.0, 1.0, 0.0]], np.float32)
    same = compare_logits(logits, logits.copy())
    assert (same.kl, same.argmax_equal) == (0.0, 2)
    other = compare_logits(logits, logits[:, ::-1].copy())
    assert other.kl > 0.1
    assert other.argmax_equal == 0
