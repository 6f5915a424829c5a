"""What part of a file and of a context is actually in memory."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .abi import Status, inferos_buffers
from .context import Context
from .errors import NativeError
from .library import load_library

_STATUS = Path("/proc/self/status")
_REFUSALS = {
    Status.NO_MEMORY: "not enough memory to read llama.cpp's buffer sizes",
    Status.UNKNOWN_LLAMA: "this llama.cpp does not say the sizes of its buffers as the one that "
    "infer-os was made for",
}


@dataclass(frozen=True, slots=True)
class Buffers:
    """Bytes that llama.cpp allocated; ``weights`` count in full, mapped or not."""

    weights: int
    kv: int
    compute: int


def context_buffers(context: Context) -> Buffers:
    """The buffers of a context and its model.

    Raises:
        NativeError: no memory to ask, or this llama.cpp does not say it as the pinned one does.
    """
    result = inferos_buffers()
    pointer = ctypes.cast(context.pointer, ctypes.c_void_p)
    status = load_library().inferos_context_buffers(pointer, ctypes.byref(result))
    if status != Status.OK:
        raise NativeError(_REFUSALS.get(status, f"status {status}"))
    return Buffers(result.model, result.context, result.compute)


def tells_residency(path: Path) -> bool:
    """Whether the kernel shows this user which pages of a file are in the page cache.

    Only its owner and those who may write it: for others every page counts as resident
    (mincore(2)).

    Raises:
        OSError: there is no such file.
    """
    return path.stat().st_uid == os.geteuid() or os.access(path, os.W_OK, effective_ids=True)


def resident_bytes(path: Path, offset: int = 0, length: int | None = None) -> int:
    """Bytes of a file (or of a part of it) that are in the page cache.

    All of them if :func:`tells_residency` is false.

    Raises:
        OSError: the file cannot be mapped.
    """
    size = max(0, path.stat().st_size - offset)
    length = size if length is None else min(length, size)
    if length <= 0:
        return 0
    found = ctypes.c_uint64()
    error = load_library().inferos_file_residency(
        os.fsencode(path), offset, length, ctypes.byref(found)
    )
    if error:
        raise OSError(error, os.strerror(error), str(path))
    return int(found.value)


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far, mapped file pages included."""
    # getrusage includes what the parent held when it started this process; VmHWM does not
    with suppress(OSError):
        if held := status_number("VmHWM"):
            return held * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def status_number(key: str, base: int = 10) -> int:
    """A number of /proc/self/status, such as ``VmLck`` in KiB; 0 where that has no such line.

    Raises:
        OSError: there is no such file.
    """
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0], base)
    return 0
