"""Collect the mean square of every input column of the weight matrices while decoding.

llama.cpp shows every node of a graph to an evaluation callback; ours is C++
(native/src/activations.cpp), so that no Python runs inside a decode.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from .abi import Status, inferos_activation_sums
from .errors import EvaluateError
from .library import load_library
from .owner import Owner

_COMPLAINTS = {
    Status.BAD_SHAPE: "{name}: the width of its input changed between two graphs",
    Status.NO_MEMORY: "not enough memory to sum the activations",
    Status.NOT_FINITE: "{name}: an activation is NaN or infinite; the weights are damaged, or too "
    "large for F16",
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


class ActivationCollector(Owner):
    """Sums squares for one context at a time, over all it decodes. A context manager.

    Give it to :class:`~.context.Context` as its observer and close it after that context.
    """

    def __init__(self) -> None:
        self._library = load_library()
        self._pointer: int | None = self._library.inferos_activations_create()
        if not self._pointer:
            raise EvaluateError(_COMPLAINTS[Status.NO_MEMORY])

    @property
    def callback(self) -> Any:
        """The ``ggml_backend_sched_eval_callback``."""
        function = self._library.inferos_activations_observe
        return ctypes.cast(function, llama_cpp.ggml_backend_sched_eval_callback)

    @property
    def user_data(self) -> int:
        """The collector's address."""
        if self._pointer is None:
            raise EvaluateError("the collector is closed")
        return self._pointer

    def check(self) -> None:
        """Raise what went wrong in a decode.

        Raises:
            EvaluateError: values that are not finite, or no memory; nothing more is summed.
        """
        status = self._library.inferos_activations_status(self.user_data)
        if status != 0:
            name = self._library.inferos_activations_culprit(self.user_data).decode()
            raise EvaluateError(_COMPLAINTS.get(status, f"status {status}").format(name=name))

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

    def close(self) -> None:
        """Free the sums."""
        if self._pointer is not None:
            self._library.inferos_activations_destroy(self._pointer)
            self._pointer = None
