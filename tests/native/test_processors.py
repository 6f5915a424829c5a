"""How many threads are worth starting: affinity, cores that processors share, quotas of time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer_os.native.processors import usable_cores


def write(root: Path, path: str, text: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


@pytest.fixture
def eight(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that may use processors 0 to 7."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))


@pytest.fixture
def pairs(tmp_path: Path) -> None:
    """Processors n and n + 4 share a core, as the kernel numbers them."""
    for n in range(8):
        write(
            tmp_path,
            f"sys/devices/system/cpu/cpu{n}/topology/thread_siblings_list",
            f"{n % 4},{n % 4 + 4}",
        )


@pytest.mark.usefixtures("eight")
def test_without_a_word_of_the_kernel_every_processor_counts(tmp_path: Path) -> None:
    assert usable_cores(tmp_path) == 8


@pytest.mark.usefixtures("pairs")
def test_processors_of_one_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for allowed, cores in (({*range(8)}, 4), ({0, 4}, 1), ({0, 1}, 2), ({3, 4, 7}, 2)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, allowed=allowed: allowed)
        assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight")
@pytest.mark.parametrize(
    ("quota", "cores"),
    [
        ("200000 100000", 2), ("250000 100000", 2), ("50000 100000", 1), ("1600000 100000", 8),
        ("max 100000", 8), ("", 8), ("x y", 8), ("100000 0", 8), ("100000", 8),
    ],
)  # fmt: skip
def test_a_quota_of_version_2(tmp_path: Path, quota: str, cores: int) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/user.slice/app.scope")
    write(tmp_path, "sys/fs/cgroup/user.slice/app.scope/cpu.max", quota)
    assert usable_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight")
def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b")
    for path, quota in (("a", "300000 100000"), ("a/b", "600000 100000")):
        write(tmp_path, f"sys/fs/cgroup/{path}/cpu.max", quota)
    assert usable_cores(tmp_path) == 3


@pytest.mark.usefixtures("eight")
def test_a_quota_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/y\n0::/")
    write(tmp_path, "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", 400000)
    write(tmp_path, "sys/fs/cgroup/cpu/x/cpu.cfs_period_us", 100000)
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", -1)
    write(tmp_path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", 100000)
    write(tmp_path, "sys/fs/cgroup/memory/y/cpu.cfs_quota_us", 100000)
    assert usable_cores(tmp_path) == 4


@pytest.mark.usefixtures("eight", "pairs")
def test_a_quota_limits_cores(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/")
    write(tmp_path, "sys/fs/cgroup/cpu.max", "300000 100000")
    assert usable_cores(tmp_path) == 3


def test_this_machine_has_some() -> None:
    assert 1 <= usable_cores() <= len(os.sched_getaffinity(0))
