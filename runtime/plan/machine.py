"""What this machine offers: memory and its limits, swap, processors, their vector extensions, disk.

Reads /proc and /sys; ``root`` stands in for ``/`` in tests.
"""

from __future__ import annotations

import platform
import resource
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from infer_os.native.control_groups import kernel_text, own_groups
from infer_os.native.cpu import used_features
from infer_os.native.processors import usable_cores

_ROOT = Path("/")

#: By the version of control groups: the limit, what is used, and the part of it in ``memory.stat``
#: that can be dropped.
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}

#: ggml's name of a feature and the kernel's flags for it (x86, then ARM); any of them counts.
FEATURE_FLAGS: dict[str, tuple[str, ...]] = {
    "SSE3": ("pni",), "SSSE3": ("ssse3",), "AVX": ("avx",), "AVX2": ("avx2",), "F16C": ("f16c",),
    "FMA": ("fma",), "BMI2": ("bmi2",), "AVX_VNNI": ("avx_vnni",), "AVX512": ("avx512f",),
    "AVX512_VBMI": ("avx512_vbmi", "avx512vbmi"), "AVX512_VNNI": ("avx512_vnni",),
    "AVX512_BF16": ("avx512_bf16",), "AMX_INT8": ("amx_int8",),
    "NEON": ("asimd",), "ARM_FMA": ("asimd",), "FP16_VA": ("asimdhp",), "DOTPROD": ("asimddp",),
    "MATMUL_INT8": ("i8mm",), "SVE": ("sve",), "SME": ("sme",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class ControlGroup:
    """A control group that limits memory: ``used`` excludes pages that can be dropped."""

    path: str
    limit: int
    used: int


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of memory. ``rlimit`` is this process's own address-space limit, None without one.

    ``group`` is the tightest of the control groups that this process is in.
    """

    total: int
    available: int
    swap_total: int
    swap_free: int
    group: ControlGroup | None = None
    rlimit: int | None = None

    @property
    def limit(self) -> int:
        """The most that a process may have."""
        limits = [self.total, self.rlimit, self.group.limit if self.group else None]
        return min(limit for limit in limits if limit is not None)

    @property
    def usable(self) -> int:
        """What it can use now without swapping."""
        left = max(0, self.group.limit - self.group.used) if self.group else self.available
        return min(self.available, left, self.limit)


@dataclass(frozen=True, slots=True)
class Cpu:
    """The machine's processors; ``usable`` is the number of cores that this process may use."""

    model: str
    sockets: int
    cores: int
    threads: int
    usable: int


@dataclass(frozen=True, slots=True)
class Extensions:
    """Features of the CPU that the loaded llama.cpp uses, and those it leaves unused."""

    used: tuple[str, ...]
    unused: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Disk:
    """Free space on a folder's disk."""

    folder: Path
    free: int


def read_memory(root: Path = _ROOT) -> Memory:
    """The machine's memory and every limit on this process."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    groups = [group for group in _groups(root) if group.limit < memory.total]
    address, _ = resource.getrlimit(resource.RLIMIT_AS)
    return Memory(
        total=int(memory.total),
        available=int(memory.available),
        swap_total=int(swap.total),
        swap_free=int(swap.free),
        group=min(groups, key=lambda group: group.limit - group.used, default=None),
        rlimit=None if address == resource.RLIM_INFINITY else address,
    )


def mapped_file_bytes() -> int | None:
    """Resident bytes of the files that this process maps; None where the system does not say."""
    return getattr(psutil.Process().memory_info(), "shared", None)


def mapped_bytes_of(package: str) -> int | None:
    """Resident bytes of a package's files among them; None where the system does not say."""
    maps = getattr(psutil.Process(), "memory_maps", None)
    return sum(part.rss for part in maps() if f"/{package}/" in part.path) if maps else None


def mapped_bytes_at(files: Collection[Path]) -> int | None:
    """Resident bytes of such files among them, likewise."""
    maps = getattr(psutil.Process(), "memory_maps", None)
    paths = {str(path) for path in files}
    return sum(part.rss for part in maps() if part.path in paths) if maps else None


def _groups(root: Path) -> Iterator[ControlGroup]:
    """The control groups of this process that limit memory."""
    for version, folder in own_groups("memory", root):
        group = _group(folder, f"/{folder.relative_to(root).as_posix()}", _MEMORY_FILES[version])
        if group:
            yield group


def _group(folder: Path, name: str, files: tuple[str, str, str]) -> ControlGroup | None:
    limit = kernel_text(folder / files[0]).strip()
    if not limit.isdigit():
        return None
    used = kernel_text(folder / files[1]).strip()
    droppable = 0
    for line in kernel_text(folder / "memory.stat").splitlines():
        key, _, value = line.partition(" ")
        if key == files[2] and value.isdigit():
            droppable = int(value)
    held = int(used) if used.isdigit() else 0
    return ControlGroup(name, int(limit), max(0, held - droppable))


def read_cpu(root: Path = _ROOT) -> Cpu:
    """The processors."""
    model, sockets = "", set()
    for line in kernel_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name" and not model:
            model = value.strip()
        elif key.strip() == "physical id":
            sockets.add(value.strip())
    usable = usable_cores(root)
    threads = psutil.cpu_count() or usable
    cores = psutil.cpu_count(logical=False) or threads
    return Cpu(model or platform.machine(), max(1, len(sockets)), cores, threads, usable)


def read_extensions(root: Path = _ROOT) -> Extensions:
    """What llama.cpp uses, from its own report, and what else the kernel lists."""
    used = used_features()
    flags: set[str] = set()
    for line in kernel_text(root / "proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
    there = [name for name, spellings in FEATURE_FLAGS.items() if flags & set(spellings)]
    return Extensions(used, tuple(name for name in there if name not in used))


def read_disk(folder: Path) -> Disk:
    """Free bytes where ``folder`` is, or where it would be created."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    return Disk(folder, shutil.disk_usage(there).free)
