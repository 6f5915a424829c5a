"""How fast this machine reads memory and its caches: measured, and kept in a small file.

Goes in: the processors and the memory. Comes out: a :class:`Bandwidth`. It is measured again
after a month, when the machine or its kernel has changed or was restarted, and soon if other
programs were busy in the meantime: :func:`is_current` decides.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from infer_os.files import write_file
from infer_os.native.control_groups import kernel_text
from infer_os.native.cpu import read_bandwidth

from .machine import Cpu, Memory

_FILE = "bandwidth.json"
_LEAST_BYTES, _MOST_BYTES = 64 << 20, 256 << 20
_SECONDS = 0.5
#: Bytes that a small model may read per token: what fits the caches is read faster.
_CACHED = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
_CACHED_SECONDS = 0.1
_DAY = 86_400.0
#: Seconds that a measurement is kept; one of a busy machine only serves the next few commands.
_KEPT, _KEPT_BUSY = 30 * _DAY, 600.0
#: Share of all processors' time that other programs may take on a quiet machine.
_QUIET = 0.1


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second that are read from memory, by all usable cores and by one.

    ``cached`` are those of all cores when reading this many bytes repeatedly, the fewest first: a
    model that small may fit the caches.
    """

    all_cores: float
    one_core: float
    cached: tuple[tuple[int, float], ...] = ()

    def best(self, other: Bandwidth) -> Bandwidth:
        """The larger of each: other work can only slow a measurement down."""
        rates = dict(other.cached)
        for size, rate in self.cached:
            rates[size] = max(rate, rates.get(size, 0.0))
        return Bandwidth(
            max(self.all_cores, other.all_cores),
            max(self.one_core, other.one_core),
            tuple(sorted(rates.items())),
        )


@dataclass(frozen=True, slots=True)
class Kept:
    """A measurement, its machine, when (seconds since 1970), and whether that was busy."""

    bandwidth: Bandwidth
    machine: str
    at: float
    busy: bool


@dataclass(frozen=True, slots=True)
class CpuTime:
    """Seconds of all processors: used by anybody (or taken by other guests), and by us."""

    worked: float
    ours: float


def probe_bytes(memory: Memory) -> int:
    """Bytes that a measurement holds for its two seconds."""
    return max(_LEAST_BYTES, min(_MOST_BYTES, memory.usable // 8))


def measure_bandwidth(cpu: Cpu, memory: Memory) -> Bandwidth:
    """Measure; takes about two seconds.

    Reads up to 256 MiB, far more than caches hold, and at most an eighth of what is free.

    Raises:
        NativeError: there is no memory to read.
    """
    n_bytes = probe_bytes(memory)
    one = read_bandwidth(1, n_bytes=n_bytes, seconds=_SECONDS)
    every = read_bandwidth(cpu.usable, n_bytes=n_bytes, seconds=_SECONDS)
    cached = tuple(
        (size, read_bandwidth(cpu.usable, n_bytes=size, seconds=_CACHED_SECONDS))
        for size in _CACHED
        if size >= cpu.usable << 16  # each core needs something to read
    )
    # other work in between must not make two cores slower than one
    return Bandwidth(max(one, every), one, cached)


def machine_fingerprint(cpu: Cpu, memory: Memory) -> str:
    """What a measurement is valid for: another machine, or other cores, are measured again."""
    return f"{platform.node()} {cpu.model} {cpu.sockets}x{cpu.cores} {cpu.usable} {memory.total}"


def running_machine(cpu: Cpu, memory: Memory, root: Path = Path("/")) -> str:
    """The machine as it runs now: with its kernel, since its start."""
    boot = kernel_text(root / "proc/sys/kernel/random/boot_id").strip()
    return f"{machine_fingerprint(cpu, memory)} {platform.release()} {boot}"


def is_current(kept: Kept, machine: str, now: float) -> bool:
    """Whether a measurement is still valid for the machine."""
    age = now - kept.at
    # one from the future: the clock was set back
    return kept.machine == machine and 0 <= age <= (_KEPT_BUSY if kept.busy else _KEPT)


def was_busy(before: CpuTime, after: CpuTime, seconds: float, n_threads: int) -> bool:
    """Whether other processes used the machine's processors between two readings."""
    others = (after.worked - before.worked) - (after.ours - before.ours)
    return others > _QUIET * max(seconds, 1e-9) * n_threads


def read_cpu_time() -> CpuTime:
    """What the kernel says now."""
    spent = psutil.cpu_times()
    idle = spent.idle + getattr(spent, "iowait", 0.0)
    # a guest's time is already in user time
    worked = sum(spent) - idle - getattr(spent, "guest", 0.0) - getattr(spent, "guest_nice", 0.0)
    own = os.times()
    return CpuTime(worked, own.user + own.system)


def measured_now(
    folder: Path,
    cpu: Cpu,
    memory: Memory,
    *,
    measure: Callable[[Cpu, Memory], Bandwidth] = measure_bandwidth,
    clock: Callable[[], float] = time.time,
    cpu_time: Callable[[], CpuTime] = read_cpu_time,
) -> Bandwidth:
    """Measure, and keep the better of the result and the current kept measurement."""
    before, started = cpu_time(), clock()
    found = measure(cpu, memory)
    now = clock()
    busy = was_busy(before, cpu_time(), now - started, cpu.threads)
    new = Kept(found, running_machine(cpu, memory), now, busy)
    old = load_bandwidth(folder)
    if old is not None and is_current(replace(old, busy=False), new.machine, now):
        # a quiet measurement stays quiet: only its age decides when to measure again
        at = old.at if busy and not old.busy else now
        new = Kept(found.best(old.bandwidth), new.machine, at, busy and old.busy)
    store_bandwidth(folder, new)
    return new.bandwidth


def is_known(folder: Path, cpu: Cpu, memory: Memory) -> bool:
    """Whether :func:`known_bandwidth` does not need to measure."""
    return _current(folder, cpu, memory, time.time()) is not None


def _current(folder: Path, cpu: Cpu, memory: Memory, now: float) -> Kept | None:
    kept = load_bandwidth(folder)
    current = kept is not None and is_current(kept, running_machine(cpu, memory), now)
    return kept if current else None


def known_bandwidth(
    folder: Path,
    cpu: Cpu,
    memory: Memory,
    *,
    measure: Callable[[Cpu, Memory], Bandwidth] = measure_bandwidth,
    clock: Callable[[], float] = time.time,
    cpu_time: Callable[[], CpuTime] = read_cpu_time,
) -> Bandwidth:
    """The kept measurement of this machine; measured and kept if there is no current one."""
    kept = _current(folder, cpu, memory, clock())
    if kept is not None:
        return kept.bandwidth
    return measured_now(folder, cpu, memory, measure=measure, clock=clock, cpu_time=cpu_time)


def load_bandwidth(folder: Path) -> Kept | None:
    """What is kept in a folder; None if there is nothing valid."""
    try:
        record = json.loads((folder / _FILE).read_text())
        cached = tuple((int(size), float(rate)) for size, rate in record["cached"])
        found = Bandwidth(float(record["all_cores"]), float(record["one_core"]), cached)
        kept = Kept(found, str(record["machine"]), float(record["at"]), bool(record["busy"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    numbers = (found.all_cores, found.one_core, *(rate for _, rate in cached))
    good = math.isfinite(kept.at) and all(math.isfinite(n) and n > 0 for n in numbers)
    return kept if good else None


def store_bandwidth(folder: Path, kept: Kept) -> None:
    """Keep a measurement; a folder that cannot be written only costs measuring again."""
    record: dict[str, Any] = {
        "machine": kept.machine, "at": kept.at, "busy": kept.busy,
        "all_cores": kept.bandwidth.all_cores, "one_core": kept.bandwidth.one_core,
        "cached": [list(pair) for pair in kept.bandwidth.cached],
    }  # fmt: skip
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / _FILE, json.dumps(record).encode(), mode=0o600)
