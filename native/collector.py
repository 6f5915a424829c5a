"""What the collectors of native/src have in common: they observe a graph, sum, and may fail.

llama.cpp shows every node to an evaluation callback; ours are C++, so that no Python runs inside a
decode. Those of a family are named ``inferos_FAMILY_observe``, ``_status``, ``_culprit`` and
``_destroy``.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import llama_cpp

from .abi import Status
from .errors import EvaluateError
from .library import load_library
from .owner import Owner

#: Of every family; ``name`` is a weight matrix.
NOT_FINITE = (
    "{name}: an activation is NaN or infinite; the weights are damaged, or too large for F16"
)


class Collector(Owner):
    """Sums for one context at a time, over all it decodes. A context manager.

    Give it to :class:`~.context.Context` as its observer and close it after that context.

    Args:
        family: of the functions in C++.
        complaints: what a status means.
        arguments: of the function that makes it.
    """

    def __init__(self, family: str, complaints: Mapping[Status, str], *arguments: int) -> None:
        self._library = load_library()
        self._family, self._complaints = family, complaints
        self._pointer: int | None = self._function("create")(*arguments)
        if not self._pointer:
            raise EvaluateError(complaints[Status.NO_MEMORY])

    def _function(self, name: str) -> Any:
        return getattr(self._library, f"inferos_{self._family}_{name}")

    @property
    def callback(self) -> Any:
        """The ``ggml_backend_sched_eval_callback``."""
        return ctypes.cast(self._function("observe"), llama_cpp.ggml_backend_sched_eval_callback)

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
        status = self._function("status")(self.user_data)
        if status != 0:
            name = self._function("culprit")(self.user_data).decode()
            raise EvaluateError(self._complaints.get(status, f"status {status}").format(name=name))

    def close(self) -> None:
        """Free the sums."""
        if self._pointer is not None:
            self._function("destroy")(self._pointer)
            self._pointer = None
