"""How fast this machine reads memory: measured once, kept in a small file for later plans."""

from __future__ import annotations

import contextlib
import json
import math
import platform
from dataclasses import dataclass
from pathlib import Path

from infer_os.native.cpu import read_bandwidth
from infer_os.native.files import write_file

from .machine import Cpu, Memory

_FILE = "bandwidth.json"
_LEAST_BYTES, _MOST_BYTES = 64 << 20, 256 << 20
_SECONDS = 0.5


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes per second that are read from memory, by all usable cores and by one."""

    all_cores: float
    one_core: float


def measure_bandwidth(cpu: Cpu, memory: Memory) -> Bandwidth:
    """Measure; takes about two seconds.

    Reads up to 256 MiB, far more than caches hold, and never more than an eighth of what is free.

    Raises:
        NativeError: there is no memory to read.
    """
    n_bytes = max(_LEAST_BYTES, min(_MOST_BYTES, memory.usable // 8))
    one = read_bandwidth(1, n_bytes=n_bytes, seconds=_SECONDS)
    every = read_bandwidth(cpu.usable, n_bytes=n_bytes, seconds=_SECONDS)
    # other work in between must not make two cores slower than one
    return Bandwidth(max(one, every), one)


def machine_fingerprint(cpu: Cpu, memory: Memory) -> str:
    """What a measurement holds for: another machine, or other cores, measure again."""
    return f"{platform.node()} {cpu.model} {cpu.sockets}x{cpu.cores} {cpu.usable} {memory.total}"


def known_bandwidth(folder: Path, cpu: Cpu, memory: Memory) -> Bandwidth:
    """The stored measurement of this machine; measured and stored if there is none."""
    stored = load_bandwidth(folder, machine_fingerprint(cpu, memory))
    if stored is None:
        stored = measure_bandwidth(cpu, memory)
        store_bandwidth(folder, machine_fingerprint(cpu, memory), stored)
    return stored


def load_bandwidth(folder: Path, fingerprint: str) -> Bandwidth | None:
    """A stored measurement; None if there is none of this machine, or no sound one."""
    try:
        record = json.loads((folder / _FILE).read_text())
        if record["machine"] != fingerprint:
            return None
        found = Bandwidth(float(record["all_cores"]), float(record["one_core"]))
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    good = all(math.isfinite(n) and n > 0 for n in (found.all_cores, found.one_core))
    return found if good else None


def store_bandwidth(folder: Path, fingerprint: str, measured: Bandwidth) -> None:
    """Keep the better of a measurement and what is stored: other work only makes one slower.

    A folder that cannot be written only costs measuring again.
    """
    before = load_bandwidth(folder, fingerprint) or measured
    measured = Bandwidth(
        max(before.all_cores, measured.all_cores), max(before.one_core, measured.one_core)
    )
    record = {
        "machine": fingerprint, "all_cores": measured.all_cores, "one_core": measured.one_core,
    }  # fmt: skip
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_file(folder / _FILE, json.dumps(record).encode(), mode=0o600)
