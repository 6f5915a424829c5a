"""Large blocks of memory, as the C library keeps or returns them when they are freed."""

from __future__ import annotations

import ctypes

# glibc's malloc.h
_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20


def return_large_blocks() -> None:
    """Let blocks of a MiB and more go back to the system whenever they are freed.

    glibc's malloc maps such blocks alone at first, but once one was freed it cuts others of that
    size, up to 32 MiB, out of its heap (M_MMAP_THRESHOLD in mallopt(3)), which can then keep them.
    A context whose buffers are made again and again would so take up twice their size. Other C
    libraries have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)
