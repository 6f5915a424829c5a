"""Attention over a cache: the backend against float64 arithmetic and llama.cpp's kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from attention_cases import Cache, Case, build_from, exact, stored
from ggml_graph import Graph, compute, ggml
from numpy.typing import NDArray

from infer_os.native.backend import start_kernels

pytestmark = pytest.mark.skipif(
    not start_kernels().in_use, reason=f"our kernels do not run: {start_kernels().reason}"
)


def result(name: str, case: Case, cache: Cache | None = None, threads: int = 2):  # type: ignore[no-untyped-def]
    """(n_sequences, n_tokens, n_heads, head)"""
    shape = case.n_sequences, case.n_tokens, case.n_heads, case.head
    out = compute(name, build_from(case, cache or stored(case)), shape, threads)
    assert out is not None
    return out


CASES = [
    *(Case(keys=k, values=v, n_tokens=n, n_positions=300, head=128)
      for k in ("q8_0", "q4_0", "f16") for v in ("q8_0", "q4_0", "f16") for n in (1, 9)),
    *(Case(keys=kind, values=kind, head=head, n_tokens=5, n_positions=77)
      for kind in ("q8_0", "q4_0", "f16") for head in (32, 64, 96, 128, 256)),
    # float16 alone may be cut within a block
    *(Case(keys="f16", values="f16", head=head, n_tokens=n, n_positions=300)
      for head in (1, 4, 8, 16, 40, 48, 250) for n in (1, 9)),
    *(Case(n_tokens=n, n_positions=600, mask=mask)
      for n in (1, 3, 8, 17, 33) for mask in ("none", "causal", "holes", "rare", "blind")),
    *(Case(keys="q4_0", n_heads=n, n_kv_heads=n, n_tokens=3, n_positions=520, max_bias=8.0)
      for n in (4, 12)),
    Case(n_heads=6, n_kv_heads=2, n_tokens=4),
    Case(n_sequences=3, n_tokens=2, n_positions=290, values="q4_0"),
    Case(n_positions=1), Case(n_positions=16, n_tokens=16), Case(n_positions=257, n_tokens=70),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_attention_is_what_float64_says(case: Case) -> None:
    assert np.abs(result("inferos", case) - exact(case)).max() < 2e-3


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_attention_is_no_further_off_than_llama_cpp(case: Case) -> None:
    wanted = exact(case)
    ours, theirs = (np.abs(result(name, case) - wanted).mean() for name in ("inferos", "cpu"))
    assert ours <= 1.05 * theirs + 1e-7


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "f16"])
def test_a_query_does_not_depend_on_those_beside_it(kind: str) -> None:
    case = Case(keys=kind, values=kind, n_tokens=21, n_positions=700, mask="none", head=96)
    together = result("inferos", case)
    cache, alone = stored(case), replace(case, n_tokens=1)
    for at in (0, 8, 20):
        query = case.queries()[:, at : at + 1]

        def build(graph: Graph, query: NDArray[np.float32] = query) -> object:
            made = build_from(alone, cache)(graph)
            graph.contents[0] = (graph.contents[0][0], np.ascontiguousarray(query))
            return made

        out = compute("inferos", build, (1, 1, case.n_heads, case.head))
        assert out is not None
        assert np.array_equal(out[:, 0], together[:, at])


@pytest.mark.parametrize("n_tokens", [1, 12])
def test_the_number_of_threads_changes_nothing(n_tokens: int) -> None:
    case = Case(n_tokens=n_tokens, n_positions=1500, n_heads=2, n_kv_heads=2)
    # many threads and few heads: the positions are split among them
    outs = [result("inferos", case, threads=n) for n in (1, 2, 5)]
    assert all(np.array_equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "f16"])
def test_what_is_masked_out_is_not_looked_at(kind: str) -> None:
    case = Case(keys=kind, values=kind, n_positions=300, n_tokens=2, mask="holes")
    rows = case.mask_rows()
    assert rows is not None
    hidden = np.isinf(rows[0]).all(0)
    clean, spoiled = stored(case), tuple(part.copy() for part in stored(case))
    for part in spoiled:
        by_position = part.reshape(case.n_positions, -1).view(np.uint8)
        by_position[hidden] = 0xFF  # float16 NaN everywhere
    assert hidden.any()
    wanted = result("inferos", case, clean)
    assert np.isfinite(wanted).all()
    assert np.array_equal(result("inferos", case, spoiled), wanted)  # type: ignore[arg-type]


def test_no_number_stays_no_number() -> None:
    case = Case(n_positions=300, n_tokens=3)
    keys, values = stored(case)
    keys = keys.copy()
    rows = keys.reshape(case.n_positions, case.n_kv_heads, -1)
    rows[299, 1, 0:2] = np.array([np.nan], np.float16).view(np.uint8)
    out = result("inferos", case, (keys, values))
    assert np.isnan(out[0, 2, 1]).all()  # the only query that sees it
    assert np.isfinite(np.delete(out.reshape(9, -1), 7, 0)).all()


def test_what_it_does_not_compute_is_left() -> None:
    case = Case(n_positions=64)

    def with_sinks(graph: Graph) -> object:
        made = build_from(case, stored(case))(graph)
        sinks = graph.tensor(np.zeros(case.n_heads, np.float32), (case.n_heads,))
        ggml().ggml_flash_attn_ext_add_sinks(made, sinks)
        return made

    shape = 1, 1, case.n_heads, case.head
    assert compute("inferos", with_sinks, shape) is None
    assert compute("cpu", with_sinks, shape) is not None
    wide = replace(case, head=320)
    assert compute("inferos", build_from(wide, stored(wide)), (1, 1, 3, 320)) is None
    other = replace(case, keys="q5_1", values="q5_1")
    assert compute("inferos", build_from(other, stored(other)), shape) is None
