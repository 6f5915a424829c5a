"""How many tokens a batch may have and still give the very logits that single steps give.

Kernels that sum in another order round differently; measured on the pinned llama.cpp, bit for bit
(``tests/runtime/speculative/test_rounding.py`` repeats it). Our own kernels sum a column alike
whatever is beside it (docs/kernels.md): they set no limit.
"""

from __future__ import annotations

from collections.abc import Iterable

from infer_os.native.backend import OwnKernels

#: Weights whose products llama.cpp computes column by column, in the file's own layout, up to so
#: many columns.
_ALIKE = frozenset({"q8_0", "q5_0", "q4_0", "q6_k", "q5_k", "q4_k", "q3_k", "iq3_s"})
_MOST_COLUMNS = 7
#: With an F16 cache, single steps split the attention over the cells from so many on.
_SPLIT_CELLS = 512
_FLOAT_CACHES = {"f32", "f16", "bf16"}


#: More than any batch has.
_NO_LIMIT = 1 << 20


def rows_alike(
    weight_types: Iterable[str],
    load: str,
    cache_types: Iterable[str],
    n_cells: int,
    own: OwnKernels | None = None,
) -> int:
    """Most tokens of a batch that is computed like single steps; 1 if a batch never is.

    Args:
        weight_types: of the matrices.
        load: the load mode; copies in another layout have other kernels.
        cache_types: of K and V.
        n_cells: cells of the cache that attention sees.
        own: what our own kernels compute, if they are in use.
    """
    most = _NO_LIMIT
    left = frozenset(weight_types) - (own.weights if own else frozenset())
    if left:
        if load not in ("mmap", "locked") or not _ALIKE.issuperset(left):
            return 1
        most = _MOST_COLUMNS
    if own is None or not own.caches.issuperset(cache_types):
        if n_cells >= _SPLIT_CELLS and not _FLOAT_CACHES.isdisjoint(cache_types):
            return 1
        most = _MOST_COLUMNS
    return most
