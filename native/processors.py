"""How many threads this process can keep busy: the default of every ``--threads``.

It also says how busy other programs keep the cores.
"""

from __future__ import annotations

import os
from pathlib import Path

from infer_os.busy import running_tasks

from .control_groups import kernel_text, own_groups

_ROOT = Path("/")


def usable_cores(root: Path = _ROOT) -> int:
    """Cores that this process may use, within its quota of time; at least 1.

    Processors that share a core (SMT) count as one: a single thread of ours fills its multipliers,
    and two would meet at every barrier. A control group's quota of processor time (``docker run
    --cpus``) limits the number, rounded down, since a throttled thread holds up all others.
    ``root`` stands in for ``/`` where files are read.
    """
    cores = {_siblings(processor, root) for processor in os.sched_getaffinity(0)}
    quotas = [_quota(version, folder) for version, folder in own_groups("cpu", root)]
    return max(1, min([len(cores), *(int(quota) for quota in quotas if quota is not None)]))


def processors_left(root: Path = _ROOT) -> int | None:
    """Processors that no other program is using at this moment; None if unknown.

    Counts the tasks that run or wait for a processor, on the whole machine, except our own.
    """
    running = running_tasks(root)
    if running is None:
        return None
    others = max(0, running - _own_running(root))
    return min(len(os.sched_getaffinity(0)), (os.cpu_count() or 1) - others)


def _own_running(root: Path) -> int:
    """Running threads of this process, at least the calling one; idle ones may be spinning."""
    count = 0
    for status in (root / "proc/self/task").glob("*/stat"):
        # the name, in parentheses, may contain blanks
        state = kernel_text(status).rpartition(")")[2].split()[:1]
        count += state == ["R"]
    return max(1, count)


def _siblings(processor: int, root: Path) -> str:
    topology = root / f"sys/devices/system/cpu/cpu{processor}/topology"
    return kernel_text(topology / "thread_siblings_list").strip() or str(processor)


def _quota(version: int, folder: Path) -> float | None:
    """How many processors' time a group may use; None without a limit."""
    if version == 2:
        quota, _, period = kernel_text(folder / "cpu.max").strip().partition(" ")
    else:
        quota = kernel_text(folder / "cpu.cfs_quota_us").strip()  # -1 without a limit
        period = kernel_text(folder / "cpu.cfs_period_us").strip()
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None
    return int(quota) / int(period)
