"""Batches that are said to round as single steps do, bit for bit, and some that do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import BUNDLED, Converter
from numpy.typing import NDArray

from infer_os.native.backend import SWITCHED_OFF, OwnKernels, own_kernels, start_kernels
from infer_os.native.kv_state import KvGeometry
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.settings import EngineSettings
from infer_os.runtime.speculative.rounding import Rounding

TOKENS = [int(t) for t in np.random.default_rng(8).integers(1, 1500, 400)]
TYPES = ("q8_0", "q5_0", "q4_0", "q6_k", "q5_k_m", "q4_k_m", "q3_k_m", "iq3_s")


@pytest.fixture(scope="module")
def model(converted: Converter) -> Converter:
    folder = next(folder for folder in BUNDLED if folder.name == "austen-6m")
    return lambda kind: converted(folder, kind)


@pytest.fixture
def foreign(foreign_weights: None, model: Converter) -> Path:
    """A file with weights that our kernels do not take."""
    return model("tq2_0")


def logits(
    path: Path, kv: str, rows: int, start: int, stop: int, *, native: bool = False
) -> NDArray[np.float32]:
    settings = EngineSettings(
        context=512, threads=2, kv=kv, draft="lookup", draft_max=31, native=native
    )
    with LlamaEngine(path, settings) as engine:
        engine.feed(TOKENS[:start])
        out = []
        for at in range(start, stop, rows):
            part = TOKENS[at : min(at + rows, stop)]
            engine.extend(part)
            out += [engine.logits(row).copy() for row in range(len(part))]
        return np.stack(out)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("kv", ["q8_0", "q4_0"])
def test_what_is_said_to_be_alike_is(model: Converter, kind: str, kv: str) -> None:
    path = model(kind)
    with LlamaEngine(path, EngineSettings(context=512, kv=kv, native=False)) as engine:
        alike = engine.rows_alike()
    assert alike == 7
    single = logits(path, kv, 1, 230, 300)
    for rows in (2, 3, alike):
        assert np.array_equal(logits(path, kv, rows, 230, 300), single), rows


def test_a_float_cache_is_alike_while_it_is_short(model: Converter) -> None:
    path = model("q8_0")
    with LlamaEngine(path, EngineSettings(context=512, native=False)) as engine:
        engine.feed(TOKENS[:200])
        assert engine.rows_alike() == 7
        engine.feed(TOKENS[:260])
        assert engine.rows_alike() == 1
    assert np.array_equal(logits(path, "f16", 7, 150, 250), logits(path, "f16", 1, 150, 250))
    assert not np.array_equal(logits(path, "f16", 7, 260, 330), logits(path, "f16", 1, 260, 330))


needs_kernels = pytest.mark.skipif(
    not start_kernels().in_use, reason=f"our kernels do not run: {start_kernels().reason}"
)


@needs_kernels
@pytest.mark.parametrize(
    "kind", ["f16", "bf16", "f32", "q8_0", "q5_0", "q4_0", "iq4_nl", "iq3_s", "q3_k_m", "q4_k_m"]
)
@pytest.mark.parametrize("kv", ["f16", "q8_0", "q4_0"])
def test_our_own_kernels_round_every_batch_alike(model: Converter, kind: str, kv: str) -> None:
    path = model(kind)
    with LlamaEngine(path, EngineSettings(context=512, kv=kv)) as engine:
        assert engine.rows_alike() > 32
    single = logits(path, kv, 1, 230, 300, native=True)
    for rows in (2, 7, 9, 32):
        assert np.array_equal(logits(path, kv, rows, 230, 300, native=True), single), rows


@needs_kernels
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_other_weights_are_computed_column_by_column(foreign: Path, kv: str) -> None:
    with LlamaEngine(foreign, EngineSettings(context=512, kv=kv)) as engine:
        alike = engine.rows_alike()
    assert alike >= 8
    single = logits(foreign, kv, 1, 230, 300, native=True)
    for rows in (2, 3, 5, 8):
        assert np.array_equal(logits(foreign, kv, rows, 230, 300, native=True), single), rows


@needs_kernels
def test_what_is_not_ours_keeps_its_limits(model: Converter, foreign: Path) -> None:
    with LlamaEngine(foreign, EngineSettings(context=512, kv="q8_0")) as engine:
        assert engine.rows_alike() == 8
    with LlamaEngine(model("q8_0"), EngineSettings(context=512, kv="q5_1")) as engine:
        assert engine.rows_alike() == 7
    for geometry, caches in (
        (KvGeometry(1, 1, 64, 64), {"f16", "q8_0", "q4_0"}),
        (KvGeometry(1, 1, 40, 64), {"f16"}),
        (KvGeometry(1, 1, 64, 320), set()),
    ):
        own = own_kernels(start_kernels(), geometry)
        assert own is not None
        assert own.caches == caches
    assert own_kernels(SWITCHED_OFF, KvGeometry(1, 1, 64, 64)) is None


def test_larger_batches_are_not_alike(model: Converter) -> None:
    path = model("q4_0")
    assert not np.array_equal(logits(path, "q8_0", 8, 230, 300), logits(path, "q8_0", 1, 230, 300))


@pytest.mark.parametrize(
    ("types", "load", "cache", "n_cells", "rows", "reason"),
    [
        ({"q8_0", "q4_0"}, "mmap", {"q8_0"}, 4096, 7, ""),
        ({"q8_0"}, "locked", {"q8_0", "q4_0"}, 4096, 7, ""),
        ({"q8_0"}, "mmap", {"f16"}, 256, 7, ""),
        ({"q8_0"}, "mmap", {"f16"}, 512, 1, "a KV cache in f16 of over 256 tokens"),
        ({"q8_0"}, "mmap", {"q8_0", "f16"}, 512, 1, "of over 256 tokens"),
        ({"q8_0"}, "fast", {"q8_0"}, 256, 1, "q8_0 weights under --load fast"),
        ({"q8_0", "f16"}, "mmap", {"q8_0"}, 256, 1, "f16 and q8_0 weights"),
        ({"iq4_nl"}, "mmap", {"q8_0"}, 256, 1, "iq4_nl weights"),
    ],
)
def test_the_rule(
    types: set[str], load: str, cache: set[str], n_cells: int, rows: int, reason: str
) -> None:
    rounding = Rounding(frozenset(types), load)
    assert rounding.rows_alike(cache, n_cells) == rows
    assert reason in rounding.why_unlike(cache, n_cells)
    assert bool(rounding.why_unlike(cache, n_cells)) == (rows == 1)


@pytest.mark.parametrize(
    ("types", "load", "cache", "rows"),
    [
        ({"q8_0", "q4_0"}, "mmap", {"q8_0"}, 1 << 20),
        ({"q8_0"}, "fast", {"f16"}, 1 << 20),
        ({"q8_0", "q5_0"}, "mmap", {"f16"}, 8),
        ({"q8_0", "f16"}, "mmap", {"f16"}, 8),
        ({"q8_0", "iq1_s"}, "mmap", {"f16"}, 1),
        ({"q8_0", "q5_0"}, "fast", {"f16"}, 1),
        ({"q8_0"}, "mmap", {"q5_1"}, 7),
        ({"f16"}, "mmap", {"q5_1"}, 7),
        ({"q8_0"}, "mmap", {"bf16", "f16"}, 1),
    ],
)
def test_the_rule_with_our_own(types: set[str], load: str, cache: set[str], rows: int) -> None:
    own = OwnKernels(
        frozenset({"q8_0", "q4_0"}), frozenset({"f16", "q8_0", "q4_0"}),
        frozenset({"q5_0", "f16"}), 8,
    )  # fmt: skip
    rounding = Rounding(frozenset(types), load, own)
    assert rounding.rows_alike(cache, 4096) == rows
    assert bool(rounding.why_unlike(cache, 4096)) == (rows == 1)
