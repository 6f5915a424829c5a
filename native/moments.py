"""Collect the second moments of what enters the weight matrices while decoding.

They are the sums of x x^T over all inputs x of a matrix, in diagonal blocks of its columns, where
:mod:`.activations` has the diagonal alone. The callback is C++ (compensation/moments.cpp).
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .abi import Status, inferos_moment_sums
from .collector import NOT_FINITE, Collector
from .errors import EvaluateError
from .library import load_library

# columns whose errors may make up for each other: more cost the cube of their number, and need as
# many more tokens before the sums say anything about them
_WIDEST_BLOCK = 2048
# every type's blocks divide it
_STEP = 256

_COMPLAINTS = {
    Status.BAD_SHAPE: "{name}: the width of its input is not that of the matrix",
    Status.NO_MEMORY: "not enough memory for the second moments of the activations; a smaller "
    "--memory collects fewer layers at a time",
    Status.NOT_FINITE: NOT_FINITE,
}


def block_widths(n_columns: int) -> tuple[int, ...]:
    """The widths of the diagonal blocks of a matrix: as few as possible, alike but for the last."""
    n_blocks = -(-n_columns // _WIDEST_BLOCK)
    width = n_columns if n_blocks == 1 else -(-n_columns // (n_blocks * _STEP)) * _STEP
    last = n_columns - width * (n_blocks - 1)
    return (width,) * (n_blocks - 1) + (last,)


def moment_bytes(n_columns: int) -> int:
    """Bytes of the second moments of a matrix's inputs."""
    return 4 * sum(width**2 for width in block_widths(n_columns))


def collected_bytes(n_columns: int) -> int:
    """Bytes of the sums while they are collected: a good half, since the squares are symmetric."""
    values = load_library().inferos_moments_values(n_columns, block_widths(n_columns)[0])
    return 4 * int(values)


@dataclass(frozen=True, slots=True)
class Moments:
    """What entered a matrix: ``blocks`` of (width, width), symmetric, summed over ``n_rows``.

    ``leader`` names the first matrix of those that have this input.
    """

    leader: str
    blocks: tuple[NDArray[np.float32], ...]
    n_rows: int

    @property
    def diagonal(self) -> NDArray[np.float32]:
        """(n_columns,) sums of squares."""
        return np.concatenate([np.diagonal(block) for block in self.blocks])


class MomentCollector(Collector):
    """Sums products; see :class:`~.collector.Collector`.

    Args:
        matrices: names of weight matrices, and their columns.
        n_threads: threads that sum, between two steps of the graph.
    """

    def __init__(self, matrices: Mapping[str, int], n_threads: int) -> None:
        super().__init__("moments", _COMPLAINTS, n_threads)
        self._widths = {name: block_widths(n) for name, n in matrices.items()}
        for name, n_columns in matrices.items():
            status = self._library.inferos_moments_want(
                self._pointer, name.encode(), n_columns, self._widths[name][0]
            )
            if status != Status.OK:
                self.close()
                raise EvaluateError(_COMPLAINTS[Status(status)].format(name=name))

    def leaders(self) -> dict[str, str]:
        """Of every matrix that a graph had, the one whose sums it shares (itself, if none)."""
        found = {name: self._sums(name) for name in self._widths}
        return {name: sums.leader.decode() for name, sums in found.items() if sums is not None}

    def moments(self, name: str) -> Moments:
        """A copy of one matrix's sums so far.

        Raises:
            EvaluateError: see :meth:`check`; or no graph had the matrix.
        """
        self.check()
        sums = self._sums(name)
        if sums is None:
            raise EvaluateError(f"{name}: no graph multiplies by it")
        values = np.ctypeslib.as_array(sums.blocks, (sums.n_values,))
        blocks, at = [], 0
        for width in self._widths[name]:
            square, n_values = _square(values[at:], width, int(sums.stripe))
            blocks.append(square)
            at += n_values
        return Moments(sums.leader.decode(), tuple(blocks), int(sums.n_rows))

    def _sums(self, name: str) -> inferos_moment_sums | None:
        sums = inferos_moment_sums()
        status = self._library.inferos_moments_of(self.user_data, name.encode(), ctypes.byref(sums))
        return sums if status == Status.OK else None


def _square(
    values: NDArray[np.float32], width: int, stripe: int
) -> tuple[NDArray[np.float32], int]:
    """The square (width, width) of which stripes come first, and how many values they have."""
    square, at = np.empty((width, width), np.float32), 0
    for top in range(0, width, stripe):
        end = min(top + stripe, width)
        n_values = (end - top) * (width - top)
        rows = values[at : at + n_values].reshape(end - top, width - top)
        corner = np.triu(rows[:, : end - top])
        square[top:end, top:end] = corner + np.triu(corner, 1).T
        square[top:end, end:] = rows[:, end - top :]
        square[end:, top:end] = rows[:, end - top :].T
        at += n_values
    return square, at
