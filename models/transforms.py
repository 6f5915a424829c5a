"""Layout changes between a checkpoint's tensors and llama.cpp's, as pure functions of shapes.

Each reorders rows or takes some of them, a few after a transposition, so the converter can cut a
tensor into blocks of rows anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Transform(Protocol):
    """How a source tensor becomes a target tensor."""

    @property
    def transposes(self) -> bool:
        """Whether rows and columns are swapped before the rows are reordered."""
        ...

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the target for a source of ``shape``."""
        ...

    def row_order(self) -> NDArray[np.int64] | None:
        """Source row of every target row, (n_rows,); None if the order stays."""
        ...

    def for_bias(self) -> Transform:
        """The transform for the bias of a weight that has this transform."""
        ...


@dataclass(frozen=True, slots=True)
class Scale:
    """Multiply target rows ``first`` to ``stop`` of a part by ``factor``."""

    first: int
    stop: int
    factor: float


class _KeepsShape:
    __slots__ = ()

    @property
    def transposes(self) -> bool:
        return False

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape


@dataclass(frozen=True, slots=True)
class AsStored(_KeepsShape):
    """No change."""

    def row_order(self) -> None:
        """The order stays."""
        return

    def for_bias(self) -> AsStored:
        """No change either."""
        return self


@dataclass(frozen=True, slots=True)
class Transpose:
    """(n_in, n_out) to (n_out, n_in): GPT-2 stores its linear layers as ``Conv1D``."""

    @property
    def transposes(self) -> bool:
        """Yes."""
        return True

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Reversed."""
        return shape[::-1]

    def row_order(self) -> None:
        """The order stays."""
        return

    def for_bias(self) -> AsStored:
        """A bias has one dimension: no change."""
        return AsStored()


@dataclass(frozen=True, slots=True)
class UnfuseQKV(_KeepsShape):
    """(n_head, 3, head_dim) rows, fused per head, to all q rows, then all k, then all v.

    The fused layout is GPT-NeoX's and BLOOM's ``query_key_value``.
    """

    n_head: int
    head_dim: int

    def row_order(self) -> NDArray[np.int64]:
        """Source row of every target row, (3 * n_head * head_dim,)."""
        import numpy as np

        rows: NDArray[np.int64] = np.arange(self.n_head * 3 * self.head_dim, dtype=np.int64)
        fused = rows.reshape(self.n_head, 3, self.head_dim)  # (n_head, 3, head_dim)
        return np.ascontiguousarray(fused.transpose(1, 0, 2)).reshape(-1)  # (3 * n_embd,)

    def for_bias(self) -> UnfuseQKV:
        """A bias is fused in the same way."""
        return self


@dataclass(frozen=True, slots=True)
class PairsToHalves(_KeepsShape):
    """Reorder the rotary rows of each head from interleaved pairs to halves.

    GPT-J rotates rows (0, 1), (2, 3), ... of a head's first ``n_rot``; llama.cpp's NeoX-style
    rotation pairs row i with row i + n_rot / 2. Even rows first, then odd ones, turns one into the
    other; rows past ``n_rot`` stay. Both q and k are reordered, so their products stay the same.
    """

    n_head: int
    head_dim: int
    n_rot: int

    def row_order(self) -> NDArray[np.int64]:
        """Source row of every target row, (n_head * head_dim,)."""
        import numpy as np

        rows: NDArray[np.int64] = np.arange(self.n_head * self.head_dim, dtype=np.int64)
        heads = rows.reshape(self.n_head, self.head_dim)  # (n_head, head_dim)
        rotary, rest = heads[:, : self.n_rot], heads[:, self.n_rot :]
        halves = [rotary[:, 0::2], rotary[:, 1::2], rest]
        return np.concatenate(halves, axis=1).reshape(-1)  # (n_embd,)

    def for_bias(self) -> PairsToHalves:
        """A bias is reordered in the same way."""
        return self


@dataclass(frozen=True, slots=True)
class UnfuseCodeGen(_KeepsShape):
    """CodeGen's ``qkv_proj`` to all q rows, then all k, then all v, rotary rows as halves.

    It was trained on four cores of a TPU: the rows are (4, 3, n_embd / 4), each quarter having its
    heads' q, then v, then k.
    """

    n_head: int
    head_dim: int
    n_rot: int

    N_PARTS: ClassVar[int] = 4

    def row_order(self) -> NDArray[np.int64]:
        """Source row of every target row, (3 * n_head * head_dim,)."""
        import numpy as np

        n_embd = self.n_head * self.head_dim
        rows: NDArray[np.int64] = np.arange(3 * n_embd, dtype=np.int64)
        q, v, k = rows.reshape(self.N_PARTS, 3, -1).transpose(1, 0, 2).reshape(3, n_embd)
        halves = PairsToHalves(self.n_head, self.head_dim, self.n_rot).row_order()
        return np.concatenate([q[halves], k[halves], v])

    def for_bias(self) -> UnfuseCodeGen:
        """A bias is fused in the same way."""
        return self


@dataclass(frozen=True, slots=True)
class SomeRows:
    """Rows ``first`` to ``stop``; the others stay behind."""

    first: int
    stop: int

    @property
    def transposes(self) -> bool:
        """No."""
        return False

    def target_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """That of the rows."""
        return (self.stop - self.first, *shape[1:])

    def row_order(self) -> NDArray[np.int64]:
        """Source row of every target row, (stop - first,)."""
        import numpy as np

        return np.arange(self.first, self.stop, dtype=np.int64)

    def for_bias(self) -> SomeRows:
        """Those of a bias."""
        return self


@dataclass(frozen=True, slots=True)
class Fold:
    """Multiply rows (or columns) of a target matrix by H, head by head.

    Rows ``first`` to ``stop`` of the part are heads of ``head_dim`` rows; in each, the last
    ``size`` rows become ``H @ rows``. With ``columns``, every row is heads of ``head_dim`` columns,
    and each becomes ``row @ H^T``.
    """

    head_dim: int
    size: int
    first: int = 0
    stop: int = 0
    columns: bool = False
