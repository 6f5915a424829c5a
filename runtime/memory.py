"""How much memory a model needs, and how much there is."""

from __future__ import annotations

import resource
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
from infer_os.native.gguf_file import GgufHeader

from .errors import MemoryShortage

# libraries, interpreter and compute buffers of a small model
_BASE_BYTES = 150 << 20


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes that a loaded model takes."""

    weights: int
    kv: int
    base: int = _BASE_BYTES

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv + self.base


def memory_need(header: GgufHeader, n_ctx: int) -> MemoryNeed:
    """Estimate from the header: weights as stored, and an F16 K and V row per layer and token."""
    graph, metadata = header.architecture, header.metadata
    n_layer = int(metadata.get(f"{graph}.block_count", 0))
    n_embd = int(metadata.get(f"{graph}.embedding_length", 0))
    n_head = int(metadata.get(f"{graph}.attention.head_count", 1)) or 1
    n_head_kv = int(metadata.get(f"{graph}.attention.head_count_kv", n_head))
    row = n_embd // n_head * n_head_kv
    return MemoryNeed(header.weight_bytes, 2 * 2 * n_layer * row * n_ctx)


def memory_limit() -> int:
    """Bytes that this process may use: the machine's memory, or its control group's if less."""
    limits = [int(psutil.virtual_memory().total)]
    # version 2, then version 1, of Linux control groups
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = Path("/sys/fs/cgroup", name).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    return min(limits)


def check_fits(header: GgufHeader, n_ctx: int, limit: int) -> None:
    """Refuse a model that can only thrash.

    Raises:
        MemoryShortage: it needs more than ``limit`` bytes.
    """
    need = memory_need(header, n_ctx)
    if need.total > limit:
        raise MemoryShortage(
            f"{header.path}: does not fit: {need.weights / 1e9:.1f} GB of weights and "
            f"{need.kv / 1e9:.1f} GB of KV cache for {n_ctx} tokens, but this machine offers "
            f"{limit / 1e9:.1f} GB; convert to a smaller --type, or lower --context"
        )


def peak_rss_bytes() -> int:
    """Largest resident set of this process so far, mapped file pages included."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
