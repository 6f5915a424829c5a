"""What this process holds in memory now, and the most it ever held."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from infer_os.native.context import Context
from infer_os.native.residency import context_buffers, resident_bytes, tells_residency

_SMAPS = Path("/proc/self/smaps")
# https://docs.kernel.org/filesystems/proc.html: a line per mapping, then "Key:  N kB" lines
_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S{4} [0-9a-f]+ \S+ \d+ *(.*)")
_NUMBER = re.compile(r"(Rss|Anonymous): +(\d+) kB")
_F32 = 4


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Bytes. ``anonymous`` and ``model_pages`` are resident in this process; ``cached`` are the
    file's pages in the page cache, whoever brought them. ``weights``, ``kv``, ``compute`` and
    ``logits`` are llama.cpp's buffers, resident or not.
    """  # fmt: skip

    rss: int = 0
    anonymous: int = 0
    model_pages: int = 0
    cached: int | None = 0
    weights: int = 0
    kv: int = 0
    compute: int = 0
    logits: int = 0
    planned: int = 0


def read_memory_use(path: Path, context: Context, n_vocab: int, planned: int) -> MemoryUse:
    """Look at this process, the model's file and a context.

    Args:
        path: the model's file.
        context: its context.
        n_vocab: width of a row of logits.
        planned: the plan's total.
    """
    buffers = context_buffers(context)
    rss, anonymous, model_pages = parse_smaps(_smaps(), str(path.resolve()))
    n_rows = max(context.params.n_outputs_max, 1 + context.params.window)
    return MemoryUse(
        rss=rss,
        anonymous=anonymous,
        model_pages=model_pages,
        cached=_cached(path),
        weights=buffers.weights,
        kv=buffers.kv,
        compute=buffers.compute,
        logits=n_rows * n_vocab * _F32,
        planned=planned,
    )


def parse_smaps(text: str, path: str) -> tuple[int, int, int]:
    """Resident bytes of /proc/self/smaps: all, anonymous ones, and those that map ``path``."""
    rss = anonymous = mapped = 0
    here = False
    for line in text.splitlines():
        mapping = _MAPPING.fullmatch(line)
        if mapping:
            here = mapping[1] == path
            continue
        number = _NUMBER.fullmatch(line)
        if number:
            n_bytes = int(number[2]) * 1024
            if number[1] == "Anonymous":
                anonymous += n_bytes
            else:
                rss += n_bytes
                mapped += n_bytes if here else 0
    return rss, anonymous, mapped


def _smaps() -> str:
    try:
        return _SMAPS.read_text("utf-8", "surrogateescape")
    except OSError:  # no such file on other systems
        return ""


def _cached(path: Path) -> int | None:
    """None if the kernel does not say: the file is another user's."""
    try:
        return resident_bytes(path) if tells_residency(path) else None
    except OSError:  # deleted in the meantime
        return 0
