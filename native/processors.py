"""How many threads this process can keep busy: the default of every ``--threads``."""

from __future__ import annotations

import os
from pathlib import Path

from .control_groups import own_groups, read_text

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use, and has the time of; at least 1.

    Processors that share a core (SMT) count as one: a single thread of ours fills its multipliers,
    and two would meet at every barrier. A control group's quota of processor time (``docker run
    --cpus``) limits the number, rounded down, since a thread that is held back holds up all others.
    ``root`` stands in for ``/`` where files are read.
    """
    cores = {_siblings(processor, root) for processor in os.sched_getaffinity(0)}
    quotas = [_quota(version, folder) for version, folder in own_groups("cpu", root)]
    return max(1, min([len(cores), *(int(quota) for quota in quotas if quota is not None)]))


def _siblings(processor: int, root: Path) -> str:
    topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    return read_text(topology / "thread_siblings_list").strip() or str(processor)


def _quota(version: int, folder: Path) -> float | None:
    """Processors' worth of time that a group may use; None without a limit."""
    if version == 2:
        quota, _, period = read_text(folder / "cpu.max").strip().partition(" ")
    else:
        quota = read_text(folder / "cpu.cfs_quota_us").strip()  # -1 without a limit
        period = read_text(folder / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)
