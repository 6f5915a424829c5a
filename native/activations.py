"""Collect the mean square of every input column of the weight matrices while decoding.

The callback is C++ (native/src/activations.cpp).
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .abi import Status, inferos_activation_sums
from .collector import NOT_FINITE, Collector

_COMPLAINTS = {
    Status.BAD_SHAPE: "{name}: the width of its input changed between two graphs",
    Status.NO_MEMORY: "not enough memory to sum the activations",
    Status.NOT_FINITE: NOT_FINITE,
}


@dataclass(frozen=True, slots=True)
class ActivationSums:
    """The inputs of one weight matrix: (n_columns,) sums of squares over ``n_rows`` rows."""

    sum_squares: NDArray[np.float64]
    n_rows: int

    @property
    def mean_squares(self) -> NDArray[np.float64]:
        """(n_columns,), the diagonal of the activations' second moment."""
        return self.sum_squares / max(1, self.n_rows)


class ActivationCollector(Collector):
    """Sums squares; see :class:`~.collector.Collector`."""

    def __init__(self) -> None:
        super().__init__("activations", _COMPLAINTS)

    def results(self) -> dict[str, ActivationSums]:
        """Copies of the sums so far, by the name of the weight matrix, in the graph's order.

        A head that shares the embedding's weights is ``token_embd.weight``.

        Raises:
            EvaluateError: see :meth:`check`.
        """
        self.check()
        found: dict[str, ActivationSums] = {}
        sums = inferos_activation_sums()
        for index in range(self._library.inferos_activations_n_entries(self.user_data)):
            self._library.inferos_activations_entry(self.user_data, index, ctypes.byref(sums))
            values = np.ctypeslib.as_array(sums.sum_squares, (sums.n_columns,)).copy()
            found[sums.name.decode()] = ActivationSums(values, int(sums.n_rows))
        return found
