"""Layout changes between a checkpoint's tensors and llama.cpp's, as pure functions of shapes.

Every change that these families need is a reordering of rows, so a transform says which source
row each target row is, and the converter can cut a tensor into blocks of rows anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Transform(Protocol):
    """How a source tensor becomes a target tensor."""

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the target for a source of ``shape``."""
        ...

    def row_order(self, shape: tuple[int, ...]) -> NDArray[np.int64] | None:
        """Source row of every target row, (n_rows,); None where the order stays."""
        ...


@dataclass(frozen=True, slots=True)
class AsStored:
    """No change."""

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def row_order(self, shape: tuple[int, ...]) -> None:
        return None


@dataclass(frozen=True, slots=True)
class UnfuseQKV:
    """(n_head, 3, head_dim) rows, fused per head, to all q rows, then all k, then all v.

    The fused layout is GPT-NeoX's and BLOOM's ``query_key_value`` (weight and bias).
    """

    n_head: int
    head_dim: int

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape

    def row_order(self, shape: tuple[int, ...]) -> NDArray[np.int64]:
        import numpy as np

        rows = np.arange(self.n_head * 3 * self.head_dim, dtype=np.int64)
        rows = rows.reshape(self.n_head, 3, self.head_dim)  # (n_head, 3, head_dim)
        return rows.transpose(1, 0, 2).reshape(-1)  # (3 * n_head * head_dim,)
