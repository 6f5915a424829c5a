"""Matrices whose rows become float32 as they are taken: stored in blocks or in 8 bits."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class DecodedMatrix(Protocol):
    """A stored matrix that is decoded row by row. It is not transposed."""

    @property
    def shape(self) -> tuple[int, int]:
        """(n_rows, n_columns)."""

    def __getitem__(self, wanted: slice) -> NDArray[np.float32]:
        """Some rows in float32."""

    def rows(self, wanted: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Some rows in float32, in any order."""
