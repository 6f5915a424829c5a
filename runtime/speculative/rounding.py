"""How many tokens a batch may have and still give exactly the logits of single steps.

Kernels that sum in another order round differently; measured on the pinned llama.cpp, bit for bit
(``tests/runtime/speculative/test_rounding.py`` repeats it). Our own kernels sum a column in the
same way whatever else is in the batch (docs/kernels.md): they set no limit. Other weights are then
computed column by column, up to a few columns.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from infer_os.models.weight_types import TENSOR_TYPES
from infer_os.native.backend import KernelStatus, OwnKernels, factor_types, own_kernels
from infer_os.native.gguf_file import GgufHeader
from infer_os.native.kv_state import kv_geometry

#: Weights whose products llama.cpp computes column by column up to this many columns.
_ALIKE = frozenset(row.name for row in TENSOR_TYPES.values() if row.is_column_by_column)
_MOST_COLUMNS = 7
#: With an F16 cache, single steps split the attention over the cells from this many on.
_SPLIT_CELLS = 512
_FLOAT_CACHES = frozenset(row.name for row in TENSOR_TYPES.values() if row.is_float)
#: Load modes that leave weights as the file has them.
_FILE_LAYOUT = ("mmap", "locked")
#: More than any batch has.
_NO_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Rounding:
    """The properties of a loaded model that decide how a batch rounds.

    Args:
        weight_types: of the matrices that activations are multiplied with.
        load: the load mode; copies in another layout have other kernels.
        own: what our own kernels compute, if they are in use.
    """

    weight_types: frozenset[str]
    load: str
    own: OwnKernels | None = None

    def rows_alike(self, cache_types: Iterable[str], n_cells: int) -> int:
        """Most tokens of a batch that is computed like single steps; 1 if a batch never is.

        Args:
            cache_types: of K and V.
            n_cells: cells of the cache that attention sees.
        """
        return min(self._rows_of_weights(), self._rows_of_cache(cache_types, n_cells))

    def why_unlike(self, cache_types: Iterable[str], n_cells: int) -> str:
        """Why a batch of such a cache is never computed like single steps; "" if it is."""
        if self._rows_of_weights() == 1:
            kinds = " and ".join(sorted(self._left)) or "the"
            layout = "" if self.load in _FILE_LAYOUT else f" under --load {self.load}"
            return f"{kinds} weights{layout}"
        if self._rows_of_cache(cache_types, n_cells) == 1:
            return f"a KV cache in {'/'.join(dict.fromkeys(cache_types))} of over 256 tokens"
        return ""

    def may_take_threads_away(self, caches: Iterable[tuple[str, str]]) -> bool:
        """Whether to compute with fewer threads while other programs are busy.

        ``caches`` are pairs of types of K and V. Where attention is ours, a token's logits do not
        depend on the number of threads: llama.cpp's shares the cells of one token out over them.
        Where all weights are ours too, the threads wait for none that does not run, and all stay.
        """
        own = self.own is not None and all(self.own.caches.issuperset(kv) for kv in caches)
        return own and bool(self._left)

    @property
    def _left(self) -> frozenset[str]:
        """Types of weights that our own kernels leave to others."""
        return self.weight_types - (self.own.weights if self.own else frozenset())

    def _rows_of_weights(self) -> int:
        if not self._left:
            return _NO_LIMIT
        if self.load not in _FILE_LAYOUT:
            return 1
        if self.own is not None and self.own.by_column.issuperset(self._left):
            return self.own.most_columns
        return _MOST_COLUMNS if _ALIKE.issuperset(self._left) else 1

    def _rows_of_cache(self, cache_types: Iterable[str], n_cells: int) -> int:
        kinds = frozenset(cache_types)
        if self.own is not None and self.own.caches.issuperset(kinds):
            return _NO_LIMIT
        is_split = n_cells >= _SPLIT_CELLS and not _FLOAT_CACHES.isdisjoint(kinds)
        return 1 if is_split else _MOST_COLUMNS


def rounding_of(
    header: GgufHeader, load: str, kernels: KernelStatus, *, with_adapters: bool = False
) -> Rounding:
    """How a model rounds that was loaded from a file.

    Args:
        header: the file's.
        load: the load mode.
        kernels: what the loaded model says of our own.
        with_adapters: matrices of LoRA adapters, in float32, are multiplied with as well.
    """
    kinds = factor_types(header) | ({"f32"} if with_adapters else set())
    return Rounding(kinds, load, own_kernels(kernels, kv_geometry(header)))
