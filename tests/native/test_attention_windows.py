"""Layers that see only a window: against float64 and Hugging Face, and what refuses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from attention_cases import Case, build_from, exact, stored
from comparison import compare_logits
from ggml_graph import backend, compute
from helpers import REFERENCES, Converter
from numpy.typing import NDArray

from infer_os.models.windows import LAYERS_KEY, WINDOW_KEY
from infer_os.native.attention_windows import read_windows
from infer_os.native.backend import (
    SWITCHED_OFF,
    computed_windows,
    exact_context,
    kernels_for,
    start_kernels,
)
from infer_os.native.batch_context import BatchContext, BatchContextParams, Rows
from infer_os.native.context import Context, ContextParams
from infer_os.native.errors import GgufError, ModelLoadError
from infer_os.native.gguf_file import GgufHeader, read_gguf_header
from infer_os.native.graph_check import check_graph
from infer_os.native.library import load_library
from infer_os.native.model import LlamaModel

NEO = next(folder for folder in REFERENCES if folder.name == "gpt-neo")
TOKENS = [int(token) for token in np.load(NEO / "tokens.npy")]
#: Of the reference's second layer.
WINDOW = 24

needs_kernels = pytest.mark.skipif(
    not start_kernels().in_use, reason=f"our kernels do not run: {start_kernels().reason}"
)


# ---- one operation


@dataclass(frozen=True, slots=True)
class Scattered(Case):
    """A cache whose cells are in any order: only the mask says where their tokens stand."""

    def places(self) -> NDArray[np.int64]:
        """The position of each cell's token, (n_positions,)."""
        return np.random.default_rng(5).permutation(self.n_positions)

    def distances(self) -> NDArray[np.float32]:
        """Minus the distance of every cell of the past, (n_tokens, n_positions)."""
        query = self.n_positions - self.n_tokens + np.arange(self.n_tokens)[:, None]
        at = self.places()
        return np.where(at <= query, at - query, -np.inf).astype(np.float32)

    def rows(self, mask: NDArray[np.float32]) -> NDArray[np.float16]:
        return np.broadcast_to(mask.astype(np.float16), (self.n_sequences, *mask.shape))

    def mask_rows(self) -> NDArray[np.float16]:
        return self.rows(self.distances())


@dataclass(frozen=True, slots=True, kw_only=True)
class Windowed(Scattered):
    """What is to come out: a mask that hides what the window hides, and adds nothing."""

    window: int

    def mask_rows(self) -> NDArray[np.float16]:
        distances = self.distances()
        seen = distances > -self.window if self.window else np.isfinite(distances)
        return self.rows(np.where(seen, np.float32(0), np.float32(-np.inf)))


@contextmanager
def windows(*sizes: int) -> Iterator[None]:
    """Backends that are made inside have layers with these windows."""
    from ctypes import c_int32

    assert load_library().inferos_kernels_windows(len(sizes), (c_int32 * len(sizes))(*sizes)) == 0
    try:
        yield
    finally:
        assert load_library().inferos_kernels_windows(0, (c_int32 * 0)()) == 0


def attend(case: Case, layer: int, threads: int = 2) -> NDArray[np.float32]:
    shape = case.n_sequences, case.n_tokens, case.n_heads, case.head
    build = build_from(case, stored(case), b"cache_k_l%d" % layer)
    out = compute("inferos", build, shape, threads)
    assert out is not None
    return out


@needs_kernels
@pytest.mark.parametrize(
    ("kind", "head"),
    [("f16", 64), ("q8_0", 64), ("q4_0", 64), *(("f16", head) for head in (4, 8, 16, 48))],
)
@pytest.mark.parametrize("window", [1, 24, 256, 300, 0], ids=str)
@pytest.mark.parametrize("n_tokens", [1, 5, 70])
def test_a_window_counts_positions_wherever_their_cells_are(
    window: int, kind: str, head: int, n_tokens: int
) -> None:
    sizes: dict[str, Any] = {
        "keys": kind, "values": kind, "n_tokens": n_tokens, "n_positions": 600, "n_sequences": 2,
        "n_heads": 4, "n_kv_heads": 4, "max_bias": 1.0, "head": head,
    }  # fmt: skip
    wanted = Windowed(**{**sizes, "max_bias": 0.0}, window=window)
    with windows(0, window):
        got = attend(Scattered(**sizes), layer=1)
        one, three = (attend(Scattered(**sizes), 1, threads) for threads in (1, 3))
    assert np.abs(got - exact(wanted)).max() < 2e-3
    assert np.array_equal(one, got) and np.array_equal(three, got)


@needs_kernels
def test_a_layer_that_is_not_known_is_an_error() -> None:
    case = Scattered(n_positions=64)
    for name, sizes in ((b"cache_k_l2", (0, 8)), (b"rows", (0, 8)), (b"cache_k_l", (0, 8))):
        with windows(*sizes), pytest.raises(AssertionError):
            compute("inferos", build_from(case, stored(case), name), (1, 1, 3, 64))


@needs_kernels
def test_windows_are_those_of_the_context_that_is_made() -> None:
    """Nothing stays behind for the next one."""
    import llama_cpp

    params = llama_cpp.llama_context_default_params()
    case = Case(n_positions=64)
    build = build_from(case, stored(case), b"rows")
    with kernels_for(start_kernels(), params, windows=[0, 8]), backend("inferos"):
        pass
    assert compute("inferos", build, (1, 1, 3, 64)) is not None


# ---- whole models


def all_logits(path: Path, width: int, threads: int = 2, kv: str = "f16") -> NDArray[np.float32]:
    params = ContextParams(128, threads, n_outputs_max=128, type_k=kv, type_v=kv)
    with LlamaModel(path, native=True) as model, Context(model, params) as context:
        rows = []
        for first in range(0, 128, width):
            part = TOKENS[first : first + width]
            context.decode(part, first, outputs=len(part))
            rows.append(context.logits_rows(len(part)).copy())
        return np.concatenate(rows)


@needs_kernels
@pytest.mark.parametrize("kind", ["f16", "q4_0"])
@pytest.mark.parametrize("kv", ["f16", "q8_0"])
def test_logits_do_not_depend_on_the_batch_or_threads(
    converted: Converter, kind: str, kv: str
) -> None:
    path = converted(NEO, kind)
    whole = all_logits(path, 128, kv=kv)
    if kind == "f16":
        assert compare_logits(np.load(NEO / "logits.npy"), whole).kl < 5e-5
    for width in (1, 5, 40):
        assert np.array_equal(all_logits(path, width, kv=kv), whole), width
    assert np.array_equal(all_logits(path, 128, threads=1, kv=kv), whole)


@needs_kernels
def test_sequences_and_their_copies(converted: Converter) -> None:
    """Rows of several sequences at once, one of which begins as a copy of another."""
    path = converted(NEO, "q8_0")
    expected = all_logits(path, 1)

    def rows(*items: tuple[int, int, int]) -> Rows:
        position, sequence, output = (np.array(x) for x in zip(*items, strict=True))
        tokens = np.array(TOKENS, np.int32)[position]
        return Rows(
            tokens, position.astype(np.int32), sequence.astype(np.int32), output.astype(np.int8)
        )

    with (
        LlamaModel(path, native=True) as model,
        BatchContext(model, BatchContextParams(128, 3, 2, n_outputs=8)) as context,
    ):
        context.decode(rows(*((i, 0, 0) for i in range(50)), *((i, 2, 0) for i in range(90))))
        context.copy(0, 1)
        context.trim(1, 40)
        for i in range(40, 50):
            context.decode(rows((i, 1, 1), (i + 50, 2, 1), (i + 10, 0, 1)))
            got = context.logits(3)
            for row, position in zip(got, (i, i + 50, i + 10), strict=True):
                assert np.array_equal(row, expected[position]), position


@needs_kernels
def test_rows_go_through_a_saved_state(converted: Converter) -> None:
    path = converted(NEO, "q8_0")
    expected = all_logits(path, 1)
    params = ContextParams(128, 2, n_outputs_max=1, window=True)
    with LlamaModel(path, native=True) as model, Context(model, params) as context:
        context.decode(TOKENS[:100], 0)
        states = [context.export_rows(0, 60), context.export_rows(60, 100)]
        with Context(model, params) as other:
            for state in states:
                other.import_rows(state)
            other.decode_one(TOKENS[100], 100)
            assert np.array_equal(other.logits(), expected[100])
            other.trim(70)
            other.decode(TOKENS[70:111], 70)
            assert np.array_equal(other.logits(), expected[110])


# ---- what is refused


def test_without_our_kernels_a_context_ends_at_the_window(converted: Converter) -> None:
    path = converted(NEO)
    with LlamaModel(path) as model:
        assert model.n_ctx_train == WINDOW
        with pytest.raises(ModelLoadError, match=f"beyond {WINDOW} the windows of its layers"):
            Context(model, ContextParams(WINDOW + 1, 1))
        with pytest.raises(ModelLoadError, match="a context of 25 tokens"):
            BatchContext(model, BatchContextParams(WINDOW + 1, 2, 1))
        params = ContextParams(WINDOW, 1, n_outputs_max=WINDOW)
        with Context(model, params) as context:
            context.decode(TOKENS[:WINDOW], 0, outputs=WINDOW)
            got = context.logits_rows(WINDOW).copy()
    assert compare_logits(np.load(NEO / "logits.npy")[:WINDOW], got).kl < 1e-5


@needs_kernels
def test_a_cache_that_our_kernels_do_not_take(converted: Converter) -> None:
    with (
        LlamaModel(converted(NEO), native=True) as model,
        pytest.raises(ModelLoadError, match=r"cache of f32 and f16: the windows"),
    ):
        Context(model, ContextParams(16, 1, type_k="f32"))


@needs_kernels
def test_heads_that_our_kernels_do_not_take(converted: Converter) -> None:
    header = read_gguf_header(converted(NEO))
    assert (exact_context(start_kernels(), header), WINDOW) == (128, 24)
    assert exact_context(SWITCHED_OFF, header) == WINDOW
    wide = replace(header, metadata={**header.metadata, "mpt.attention.key_length": 320})
    assert computed_windows(start_kernels(), wide) is None
    assert exact_context(start_kernels(), wide) == WINDOW


def changed(header: GgufHeader, **values: object) -> GgufHeader:
    names = {"window": WINDOW_KEY, "layers": LAYERS_KEY, "alibi": "mpt.attention.max_alibi_bias"}
    metadata = header.metadata | {names.get(key, key): value for key, value in values.items()}
    return replace(header, metadata={k: v for k, v in metadata.items() if v is not None})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"window": 0}, "'inferos.attention.window' is 0"),
        ({"window": 2049}, "whole number from 1 to 2048"),
        ({"window": "24"}, "is '24'"),
        ({"window": True}, "is True"),
        ({"window": None}, "is None"),
        ({"layers": None}, "'inferos.attention.window_layers' is None"),
        ({"layers": ""}, "expected numbers of layers"),
        ({"layers": "1,1"}, "is '1,1'"),
        ({"layers": "2"}, "is '2'"),
        ({"layers": "01"}, "is '01'"),
        ({"layers": "-1"}, "is '-1'"),
        ({"layers": 1}, "window_layers' is 1"),
        ({"alibi": 8.0}, "expected 'mpt' without"),
    ],
    ids=str,
)
def test_windows_that_cannot_be(
    converted: Converter, values: dict[str, object], words: str
) -> None:
    header = read_gguf_header(converted(NEO))
    assert read_windows(header) is not None
    with pytest.raises(GgufError) as caught:
        check_graph(changed(header, **values))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_windows_on_another_graph(converted: Converter) -> None:
    other = read_gguf_header(converted())
    with pytest.raises(GgufError, match="windows on the graph 'gptneox'"):
        check_graph(changed(other, window=24, layers="1"))
