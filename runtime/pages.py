"""Before and after a model is in use: warm its file, lock its pages, give them back.

The load modes (``--load``), by what they trade:

======  =====================================================================================
mmap    the file's own pages: shared between processes, dropped under pressure; plain layout
fast    private copies in llama.cpp's fastest layout; the file's pages are not also kept
locked  the file's own pages, locked: never dropped, if RLIMIT_MEMLOCK allows
direct  private copies in the fastest layout, read past the page cache: other files stay in it
======  =====================================================================================
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infer_os.native.residency import resident_bytes, status_number, tells_residency
from infer_os.sizes import size_text

from .plan.memory_plan import LockShortage

_CHUNK = 16 << 20
_READERS = 4
_CAP_IPC_LOCK = 14  # linux/capability.h
#: The least share of the weights that must be locked: the file's header is not mapped.
_LOCKED_SHARE = 0.98


def prefetch(path: Path, progress: Callable[[int, int], None] | None = None) -> int:
    """Bring a file into the page cache with several readers; returns the bytes that were read.

    Chunks already there cost next to nothing; if the kernel does not say (see
    :func:`tells_residency`), all are read.

    Raises:
        OSError: the file cannot be read.
    """
    total, told = path.stat().st_size, tells_residency(path)
    done = read = 0
    lock = threading.Lock()
    stop = threading.Event()

    def bring(offset: int) -> None:
        nonlocal done, read
        if stop.is_set():
            return
        size = min(_CHUNK, total - offset)
        missing = size - resident_bytes(path, offset, size) if told else size
        if missing:
            _read_through(handle, offset, size)
        with lock:
            done += size
            read += size if missing else 0
            if progress is not None:
                progress(done, total)

    handle = os.open(path, os.O_RDONLY)
    try:
        with ThreadPoolExecutor(_READERS) as readers:
            try:
                for finished in [readers.submit(bring, at) for at in range(0, total, _CHUNK)]:
                    finished.result()
            except BaseException:
                stop.set()
                raise
    finally:
        os.close(handle)
    return read


def _read_through(handle: int, offset: int, size: int) -> None:
    buffer = bytearray(1 << 20)
    end = offset + size
    while offset < end:
        got = os.preadv(handle, [memoryview(buffer)[: end - offset]], offset)
        if not got:
            return
        offset += got


def drop_pages(path: Path) -> int | None:
    """Take a file's pages out of the page cache; returns the bytes that stay, if known.

    Pages that a process maps, that are locked or not yet written stay: posix_fadvise(2).

    Raises:
        OSError: the file cannot be opened.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
    return resident_bytes(path) if tells_residency(path) else None


def check_lockable(n_bytes: int) -> None:
    """Check that ``n_bytes`` can be locked; raises the soft limit up to the hard one.

    Raises:
        LockShortage: they cannot; says what would allow it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    complaint = lock_complaint(n_bytes, locked_bytes(), hard, privileged=_may_lock_anything())
    if complaint:
        raise LockShortage(complaint)
    if soft != hard and not _may_lock_anything():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (hard, hard))


def lock_complaint(n_bytes: int, locked: int, limit: int, *, privileged: bool) -> str | None:
    """Why ``n_bytes`` more cannot be locked under RLIMIT_MEMLOCK, and what to do; None if they can.

    ``limit`` -1 is no limit, as in getrlimit; ``privileged`` processes have none.
    """
    needed = n_bytes + locked
    if privileged or limit < 0 or needed <= limit:
        return None
    kilobytes = -(-needed // 1024)
    return (
        f"--load locked needs {size_text(needed, up=True)} of locked memory, but "
        f"RLIMIT_MEMLOCK allows {size_text(limit)}: run 'ulimit -l {kilobytes}' as root before, or "
        f"put '{{user}} - memlock {kilobytes}' into /etc/security/limits.conf and log in again "
        f"(systemd: LimitMEMLOCK={kilobytes}K; docker: --ulimit memlock=-1), or take --load mmap"
    ).replace("{user}", os.environ.get("USER") or "USER")


def check_locked(path: Path, n_bytes: int, before: int) -> None:
    """Check that loading has locked the weights, since llama.cpp only logs a failure.

    Raises:
        LockShortage: less than the weights is locked.
    """
    locked = locked_bytes() - before
    if locked < _LOCKED_SHARE * n_bytes:
        raise LockShortage(
            f"{path}: only {size_text(locked)} of {size_text(n_bytes)} could be locked; there is "
            "not enough free memory, or a limit forbids it; take --load mmap"
        )


def locked_bytes() -> int:
    """Bytes that this process has locked (VmLck)."""
    return status_number("VmLck") * 1024


def _may_lock_anything() -> bool:
    return bool(status_number("CapEff", 16) >> _CAP_IPC_LOCK & 1)
