"""How busy the machine is, and what follows for OpenMP's threads before their library is loaded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, MutableMapping, Sequence
from pathlib import Path

#: What says how OpenMP's threads wait: the standard's variable, and that of GCC's library.
_WAITING = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
#: Looks in a row that must agree, and seconds between two: most tasks run only briefly.
_SAMPLES, _APART_S = 3, 0.001


def running_tasks(root: Path = Path("/")) -> int | None:
    """Tasks of the whole machine that run or wait for a processor, ours too; None if unknown.

    Source: ``/proc/loadavg``, https://docs.kernel.org/filesystems/proc.html
    """
    try:
        fields = (root / "proc/loadavg").read_text().split()
    except OSError:
        return None
    running, slash, _ = fields[3].partition("/") if len(fields) > 3 else ("", "", "")
    return int(running) if slash and running.isdigit() else None


def let_openmp_sleep(
    arguments: Sequence[str],
    environment: MutableMapping[str, str],
    *,
    running: Callable[[], int | None] = running_tasks,
    processors: int | None = None,
) -> None:
    """With ``--no-native`` on a machine whose processors are all in use, let waiting threads sleep.

    llama.cpp's threads are OpenMP's. They spin while they wait for each other, many times per
    token, and so keep the one that they wait for from a processor that other programs use as well.
    OpenMP reads its variables once, when it is loaded. On a free machine spinning is faster, and
    our own team waits in its own way (docs/kernels.md).

    Args:
        arguments: of the command.
        environment: of this process; what it says already is left as it is.
        running: see :func:`running_tasks`.
        processors: of the machine; by default asked.
    """
    if "--no-native" not in arguments or any(name in environment for name in _WAITING):
        return
    most = processors or os.cpu_count() or 1
    for number in range(_SAMPLES):
        if number:
            time.sleep(_APART_S)
        tasks = running()
        if tasks is None or tasks - 1 < most:
            return
    environment[_WAITING[0]] = "passive"
