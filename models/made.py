"""Tensors that a graph needs and no checkpoint stores: they are computed from their shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Made(Protocol):
    """How a tensor is computed."""

    def values(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """The tensor, rows first."""
        ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value everywhere."""

    value: float

    def values(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array of ``shape``."""
        import numpy as np

        return np.full(shape, self.value, np.float32)


@dataclass(frozen=True, slots=True)
class Sinusoids:
    """Sines, then cosines, of position times a frequency from 1 to 1/10000, row by row.

    As fairseq's ``SinusoidalPositionalEmbedding`` has them; row 0 is that of position ``first``.
    """

    first: int

    def values(self, shape: tuple[int, ...]) -> NDArray[np.float32]:
        """An array of ``shape``, (positions, width)."""
        import numpy as np

        n, width = shape
        half = width // 2
        step = np.float32(np.log(10000.0) / (half - 1))
        frequencies = np.exp(np.arange(half, dtype=np.float32) * -step)
        positions = np.arange(self.first, self.first + n, dtype=np.float32)
        angles = positions[:, None] * frequencies  # (positions, half)
        table = np.zeros(shape, np.float32)
        table[:, :half] = np.sin(angles)
        table[:, half : 2 * half] = np.cos(angles)
        return table
