"""The folded rotation: orthonormal matrices of every head size, and which rows they turn."""

from __future__ import annotations

import json

import numpy as np
import pytest
from helpers import REFERENCES

from infer_os.models.architectures import describe
from infer_os.models.network import Role
from infer_os.models.rotation import fold_rotation, orthonormal


@pytest.mark.parametrize("n", [1, 2, 4, 12, 20, 24, 30, 32, 48, 60, 64, 72, 80, 96, 128, 192, 256])
def test_the_matrix_is_orthonormal(n: int) -> None:
    turn = orthonormal(n)
    assert turn.shape == (n, n)
    np.testing.assert_allclose(turn @ turn.T, np.eye(n), atol=2e-6)


@pytest.mark.parametrize("n", [12, 48, 60, 64, 72, 80, 96, 128, 192, 256])
def test_every_channel_is_spread_over_the_whole_head(n: int) -> None:
    """The head sizes of the families, and their rows past the rotary ones: true Hadamards."""
    np.testing.assert_allclose(np.abs(orthonormal(n)), 1 / np.sqrt(n), rtol=1e-5)


@pytest.mark.parametrize("folder", REFERENCES, ids=lambda folder: folder.name)
def test_which_rows_turn(folder) -> None:  # type: ignore[no-untyped-def]
    network = fold_rotation(describe(json.loads((folder / "config.json").read_text())))
    free = network.head_dim - network.n_rot
    for rule in network.rules:
        folds = [fold for part in rule.parts for fold in part.folds]
        if rule.role is Role.ATTN_QKV or rule.target.endswith("attn_qkv.bias"):
            sizes = [free, free, network.head_dim] if free > 1 else [network.head_dim]
            assert [fold.size for fold in folds if rule.parts] == sizes * bool(rule.parts)
            assert not any(fold.columns for fold in folds)
        elif rule.role is Role.ATTN_OUTPUT:
            assert [(fold.columns, fold.size) for fold in folds] == [(True, network.head_dim)]
        else:
            assert folds == []
