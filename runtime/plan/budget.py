"""What the plans of this process may use, and what it takes before it has a model."""

from __future__ import annotations

from infer_os.native.backend import kernel_status, repacking

from .bandwidth import Bandwidth
from .machine import mapped_file_bytes, read_memory
from .memory_plan import Budget, program_bytes


def own_budget(
    limit: int | None = None, *, native: bool = True, rates: Bandwidth | None = None
) -> Budget:
    """The budget of a plan that this process, or one like it, will carry out. Loads llama.cpp.

    Args:
        limit: bytes that it may use; what is usable now if that is None or 0.
        native: whether our kernels compute.
        rates: how fast this machine reads; plans have no speed without them.
    """
    layouts = repacking(kernel_status(native))  # before the libraries' pages are counted
    return Budget(
        limit or read_memory().usable,
        rates.all_cores if rates else None,
        layouts,
        rates.cached if rates else (),
        program_bytes(mapped_file_bytes()),
    )
