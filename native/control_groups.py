"""The control groups that this process is in, as folders of the kernel's own files.

Sources: https://docs.kernel.org/admin-guide/cgroup-v2.html and .../cgroup-v1/cgroups.html
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def own_groups(controller: str, root: Path) -> Iterator[tuple[int, Path]]:
    """The version and folder of each group of a controller (``memory``, ``cpu``).

    Each group comes with all that contain it, whose limits apply too. ``root`` stands in for
    ``/``; folders need not exist.
    """
    for line in kernel_text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        mounts: tuple[str, ...]
        if number == "0" and not controllers:
            version, mounts = 2, ("sys/fs/cgroup", "sys/fs/cgroup/unified")
        elif controller in controllers.split(","):
            # the folder is named after all controllers that share it, with a link for each of them
            version, mounts = 1, (f"sys/fs/cgroup/{controller}",)
        else:
            continue
        for mount in mounts:
            # inside a container the path may be the host's: our group is then the mount itself
            for folder in _upwards(path):
                yield version, root / mount / folder


def kernel_text(path: Path) -> str:
    """The text of one of the kernel's files; empty if there is none."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _upwards(path: str) -> Iterator[str]:
    parts = [part for part in path.split("/") if part not in ("", "..")]
    for n in range(len(parts), -1, -1):
        yield "/".join(parts[:n])
