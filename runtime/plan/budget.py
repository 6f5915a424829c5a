"""What plans may use, and what a process takes before it has a model."""

from __future__ import annotations

import sys
from dataclasses import replace

from infer_os.native.backend import kernel_status, repacking
from infer_os.native.mapped_files import mapped_files

from .bandwidth import Bandwidth
from .machine import mapped_bytes_at, mapped_bytes_of, mapped_file_bytes, read_memory
from .memory_plan import Budget, program_bytes


def some_budget(
    limit: int | None = None, *, native: bool = True, rates: Bandwidth | None = None
) -> Budget:
    """The budget of a plan that some process on this machine may carry out. Loads llama.cpp.

    Args:
        limit: bytes that it may use; what is usable now if that is None or 0.
        native: whether our kernels compute.
        rates: how fast this machine reads; plans have no speed without them.
    """
    return Budget(
        limit or read_memory().usable,
        rates.all_cores if rates else None,
        repacking(kernel_status(native)),
        rates.cached if rates else (),
    )


def own_budget(limit: int | None = None, *, native: bool = True) -> Budget:
    """The budget of a plan that this process will carry out; as :func:`some_budget`.

    It counts the pages of its own libraries instead of the most that they ever take, and leaves out
    those of open models.
    """
    budget = some_budget(limit, native=native)  # loads the libraries
    mapped = mapped_file_bytes()
    if mapped is not None and (models := mapped_files()):
        mapped -= mapped_bytes_at(models) or 0
    tables = mapped_bytes_of("pyarrow") if "pyarrow" in sys.modules else None
    if mapped is None or tables is None:
        return replace(budget, program=program_bytes(mapped))
    return replace(budget, program=program_bytes(mapped - tables), tables=tables)
