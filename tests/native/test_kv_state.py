"""The KV re-encoder against gguf's own numpy quantizers and an explicit Hadamard matrix."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from kv_states import decoded, encoded, parts, state_of
from numpy.typing import NDArray

from infer_os.native.errors import StateError
from infer_os.native.kv_state import KV_TYPES, KvFormat, KvGeometry, read_layout, reencode_state

TINY = KvGeometry(n_layer=2, n_head_kv=1, head_k=32, head_v=32)
F16 = KvFormat("f16", "f16")

#: Bound of the error of a value in units of its block's largest one.
STEPS = {"q8_0": 1 / 127, "q5_1": 2 / 31, "q5_0": 1 / 16, "q4_1": 2 / 15, "q4_0": 1 / 8}


def hadamard(n: int) -> NDArray[np.float64]:
    matrix = np.ones((1, 1))
    while len(matrix) < n:
        matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / np.sqrt(n)


def turned(rows: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Rows times a block-diagonal of Hadamard matrices."""
    if not size:
        return rows
    runs = rows.astype(np.float64).reshape(-1, size) @ hadamard(size)
    return runs.reshape(rows.shape).astype(np.float32)


def random_rows(geometry: KvGeometry, n: int, which: int, seed: int) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    rows = random.standard_normal((n, geometry.widths[which])).astype(np.float32)
    rows[:, 3] *= 20  # an outlier channel
    return rows


def make(
    geometry: KvGeometry, form: KvFormat, n: int, first: int = 0
) -> tuple[NDArray[np.uint8], list[NDArray[np.float32]]]:
    """A state as llama.cpp writes it, and the values that went in: all K, then all V."""
    rows = [random_rows(geometry, n, i // geometry.n_layer, i) for i in range(2 * geometry.n_layer)]
    turns, types = form.rotations(geometry), (form.type_k, form.type_v)
    data = [
        encoded(turned(r, turns[i // geometry.n_layer]), types[i // geometry.n_layer])
        for i, r in enumerate(rows)
    ]
    return state_of(data[: geometry.n_layer], data[geometry.n_layer :], types, first, n), rows


# ---- re-encoding


@pytest.mark.parametrize("head", [32, 64, 96, 128, 192, 256])
@pytest.mark.parametrize(
    "types",
    [
        ("q8_0", "q8_0"),
        ("q4_0", "q4_0"),
        ("q5_1", "q5_0"),
        ("q4_1", "f16"),
        ("f16", "q4_0"),
        ("f32", "q8_0"),
    ],
)
def test_matches_gguf_and_hadamard(head: int, types: tuple[str, str]) -> None:
    geometry = KvGeometry(2, 3, head, head)
    target = KvFormat(*types)
    state, rows = make(geometry, F16, 5, first=7)
    result = reencode_state(state, geometry, F16, target, first=7, n_cells=5, n_threads=2)
    largest = head & -head if head % 64 == 0 else 0
    turns = (
        largest if types[0].startswith("q") else 0,
        64 if types[1].startswith("q") and head % 64 == 0 else 0,
    )
    assert target.rotations(geometry) == turns
    for i, part in enumerate(parts(result, geometry, target, 7, 5)):
        which = i // 2
        name, width = types[which], geometry.widths[which]
        expected = turned(rows[i].astype(np.float16).astype(np.float32), turns[which])
        got = decoded(part, name, width)
        blocks = expected.reshape(-1, 32)
        bound = np.abs(blocks).max(-1, keepdims=True) * (STEPS.get(name, 1 / 1024) * 0.5 + 1 / 1500)
        if name in ("q4_0", "q5_0"):
            bound *= 2  # the end of the range that has no step of its own
        if name == "q4_0":  # searched for: test_cache_rows.py
            bound *= 1.5
        assert (np.abs(got.reshape(-1, 32) - blocks) <= bound).all()
        same = np.frombuffer(part, np.uint8) == np.frombuffer(encoded(expected, name), np.uint8)
        assert same.mean() > 0.97 or name == "q4_0"


@pytest.mark.parametrize("source", KV_TYPES)
@pytest.mark.parametrize("target", KV_TYPES)
def test_every_pair(source: str, target: str) -> None:
    geometry = KvGeometry(1, 2, 64, 64)
    before, after = KvFormat(source, source), KvFormat(target, target)
    state, rows = make(geometry, before, 3)
    result = reencode_state(state, geometry, before, after, first=0, n_cells=3)
    for i, part in enumerate(parts(result, geometry, after, 0, 3)):
        got = decoded(part, target, 128)
        error = np.abs(turned(got, after.rotations(geometry)[i]) - rows[i]).max()
        worst = max(STEPS.get(source, 1 / 100), STEPS.get(target, 1 / 100))
        assert error < worst * np.abs(rows[i]).max()


def test_same_types_are_copied() -> None:
    geometry = KvGeometry(2, 1, 64, 64)
    form = KvFormat("q4_0", "q8_0")
    state, _rows = make(geometry, form, 4)
    assert np.array_equal(reencode_state(state, geometry, form, form, first=0, n_cells=4), state)


def test_rotation_is_undone_and_left_out() -> None:
    geometry = KvGeometry(1, 1, 128, 128)
    state, rows = make(geometry, F16, 4)
    plain = KvFormat("q8_0", "q8_0", rotates=False)
    turned_form = replace(plain, rotates=True)
    assert plain.rotations(geometry) == (0, 0)
    assert turned_form.rotations(geometry) == (128, 64)
    unturned = reencode_state(state, geometry, F16, plain, first=0, n_cells=4)
    error = np.abs(decoded(parts(unturned, geometry, plain, 0, 4)[0], "q8_0", 128) - rows[0]).max()
    assert error < np.abs(rows[0]).max() / 127
    there = reencode_state(state, geometry, F16, turned_form, first=0, n_cells=4)
    back = reencode_state(there, geometry, turned_form, F16, first=0, n_cells=4)
    for i, part in enumerate(parts(back, geometry, F16, 0, 4)):
        assert np.abs(decoded(part, "f16", 128) - rows[i]).max() < np.abs(rows[i]).max() / 100


def test_threads_agree() -> None:
    geometry = KvGeometry(3, 4, 64, 64)
    state, _rows = make(geometry, F16, 200)
    target = KvFormat("q4_0", "q5_1")
    results = [
        reencode_state(state, geometry, F16, target, first=0, n_cells=200, n_threads=n)
        for n in (1, 3, 64)
    ]
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


def test_source_is_not_changed() -> None:
    state, _rows = make(TINY, F16, 3)
    before = state.copy()
    reencode_state(state, TINY, F16, KvFormat("q4_0", "q4_0"), first=0, n_cells=3)
    assert np.array_equal(before, state)


def test_blocks_must_divide() -> None:
    geometry = KvGeometry(1, 1, 48, 48)
    state, _rows = make(geometry, F16, 2)
    with pytest.raises(StateError, match="do not divide"):
        reencode_state(state, geometry, F16, KvFormat("q8_0", "q8_0"), first=0, n_cells=2)


def test_sizes() -> None:
    gptj = KvGeometry(28, 16, 256, 256)
    sizes = {name: 2048 * KvFormat(name, name).token_bytes(gptj) >> 20 for name in KV_TYPES}
    assert (sizes["f16"], sizes["q8_0"], sizes["q4_0"]) == (896, 476, 252)
    state, _rows = make(TINY, F16, 3)
    assert len(state) == F16.state_bytes(TINY, 3)


# ---- hostile states


def test_every_truncation_is_refused() -> None:
    state, _rows = make(TINY, F16, 2)
    for length in range(len(state)):
        with pytest.raises(StateError, match="bytes"):
            read_layout(state[:length], TINY, F16, 0, 2)
    with pytest.raises(StateError, match="bytes"):
        read_layout(np.append(state, np.uint8(0)), TINY, F16, 0, 2)


FIELDS = {
    "magic": 0, "streams": 8, "cells": 12, "positions": 16, "sequences of a cell": 20,
    "transposed": 40, "layers": 44, "type of K of layer 0": 48, "bytes per row of K of layer 0": 52,
    "type of K of layer 1": 48 + 12 + 128, "type of V of layer 0": 48 + 2 * (12 + 128),
    "bytes per row of V of layer 1": 48 + 3 * (12 + 128) + 4,
}  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("bit", [0, 1, 7, 31])
def test_flipped_fields_are_refused(field: str, bit: int) -> None:
    state, _rows = make(TINY, F16, 2)
    read_layout(state, TINY, F16, 0, 2)
    state[FIELDS[field] + bit // 8] ^= 1 << bit % 8
    with pytest.raises(StateError, match=field):
        read_layout(state, TINY, F16, 0, 2)
    with pytest.raises(StateError):
        reencode_state(state, TINY, F16, KvFormat("q8_0", "q8_0"), first=0, n_cells=2)


def test_only_rows_may_be_anything() -> None:
    """Every byte outside the rows and the sequence numbers is checked."""
    state, _rows = make(TINY, F16, 2)
    layout = read_layout(state, TINY, F16, 0, 2)
    free = {at + i for at in layout.parts for i in range(128)}
    free |= set(range(4, 8)) | set(range(24, 28)) | set(range(36, 40))
    for i in range(len(state)):
        changed = state.copy()
        changed[i] ^= 0xFF
        if i in free:
            read_layout(changed, TINY, F16, 0, 2)
        else:
            with pytest.raises(StateError):
                read_layout(changed, TINY, F16, 0, 2)


@pytest.mark.parametrize(
    ("geometry", "form", "first", "n"),
    [
        (replace(TINY, n_layer=1), F16, 0, 2),
        (replace(TINY, head_v=64), F16, 0, 2),
        (TINY, KvFormat("f16", "bf16"), 0, 2),
        (TINY, KvFormat("bf16", "f16"), 0, 2),
        (TINY, F16, 1, 2),
        (TINY, F16, 0, 1),
        (TINY, F16, 0, 3),
    ],
)
def test_other_expectations_are_refused(
    geometry: KvGeometry, form: KvFormat, first: int, n: int
) -> None:
    state, _rows = make(TINY, F16, 2)
    with pytest.raises(StateError):
        read_layout(state, geometry, form, first, n)
