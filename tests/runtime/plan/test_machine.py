"""The machine: memory and its limits, processors, extensions, the stored bandwidth."""

from __future__ import annotations

import resource
import time
from pathlib import Path

import psutil
import pytest

from infer_os.native.backend import kernel_status
from infer_os.native.cpu import (
    multiply_rate,
    parse_features,
    read_bandwidth,
    repacked_types,
    used_features,
)
from infer_os.native.errors import NativeError
from infer_os.runtime.plan import bandwidth as module
from infer_os.runtime.plan.bandwidth import (
    Bandwidth,
    CpuTime,
    Kept,
    known_bandwidth,
    load_bandwidth,
    measure_bandwidth,
    measured_now,
    read_cpu_time,
    store_bandwidth,
    was_busy,
)
from infer_os.runtime.plan.machine import (
    ControlGroup,
    Cpu,
    Memory,
    read_cpu,
    read_disk,
    read_extensions,
    read_memory,
)

GIB = 1 << 30
CPU = Cpu("Some CPU", 2, 16, 32, 4)
MEMORY = Memory(64 * GIB, 48 * GIB, 0, 0)


def write(root: Path, path: str, text: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


# ---- control groups


def test_without_a_group_the_machine_is_the_limit(tmp_path: Path) -> None:
    memory = read_memory(tmp_path)
    assert memory.group is None
    assert memory.total == memory.limit == psutil.virtual_memory().total
    assert 0 < memory.usable <= memory.total


def test_a_group_of_version_2(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/user.slice/app.scope")
    at = "sys/fs/cgroup/user.slice/app.scope"
    write(tmp_path, f"{at}/memory.max", 1 * GIB)
    write(tmp_path, f"{at}/memory.current", 700 << 20)
    write(tmp_path, f"{at}/memory.stat", f"anon 5\ninactive_file {200 << 20}\nactive_file 9")
    memory = read_memory(tmp_path)
    assert memory.group == ControlGroup(f"/{at}", GIB, 500 << 20)
    assert memory.limit == GIB
    assert memory.usable == min(memory.available, GIB - (500 << 20))


def test_the_tightest_of_nested_groups_counts(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/a/b/c")
    for path, limit, used in (("a", GIB, GIB - 5), ("a/b", "max", 0), ("a/b/c", 100 << 20, 0)):
        write(tmp_path, f"sys/fs/cgroup/{path}/memory.max", limit)
        write(tmp_path, f"sys/fs/cgroup/{path}/memory.current", used)
    memory = read_memory(tmp_path)
    assert memory.group == ControlGroup("/sys/fs/cgroup/a", GIB, GIB - 5)
    assert memory.usable == 5


def test_a_container_sees_its_group_at_the_mount(tmp_path: Path) -> None:
    """The path is the host's; the mount holds the container's own files."""
    write(tmp_path, "proc/self/cgroup", "0::/../../docker/0123")
    write(tmp_path, "sys/fs/cgroup/memory.max", 2 * GIB)
    assert read_memory(tmp_path).group == ControlGroup("/sys/fs/cgroup", 2 * GIB, 0)


def test_a_group_of_version_1(tmp_path: Path) -> None:
    write(tmp_path, "proc/self/cgroup", "9:cpu,cpuacct:/x\n4:memory:/docker/0123\n0::/")
    at = "sys/fs/cgroup/memory/docker/0123"
    write(tmp_path, f"{at}/memory.limit_in_bytes", 3 * GIB)
    write(tmp_path, f"{at}/memory.usage_in_bytes", 2 * GIB)
    write(tmp_path, f"{at}/memory.stat", f"cache 1\ntotal_inactive_file {GIB}")
    # without a limit, version 1 says this
    write(tmp_path, "sys/fs/cgroup/memory/memory.limit_in_bytes", 0x7FFFFFFFFFFFF000)
    assert read_memory(tmp_path).group == ControlGroup(f"/{at}", 3 * GIB, GIB)


@pytest.mark.parametrize("limit", ["max", "", "-1", "x", 1 << 62])
def test_what_is_no_limit(tmp_path: Path, limit: object) -> None:
    write(tmp_path, "proc/self/cgroup", "0::/\ngarbage")
    write(tmp_path, "sys/fs/cgroup/memory.max", limit)
    assert read_memory(tmp_path).group is None


def test_the_smallest_limit_counts() -> None:
    memory = Memory(64 * GIB, 48 * GIB, 0, 0, ControlGroup("g", 8 * GIB, 3 * GIB), 6 * GIB)
    assert memory.limit == 6 * GIB
    assert memory.usable == 5 * GIB
    over = Memory(64 * GIB, 48 * GIB, 0, 0, ControlGroup("g", GIB, 2 * GIB))
    assert over.usable == 0
    assert Memory(64 * GIB, 48 * GIB, 0, 0, None, 6 * GIB).usable == 6 * GIB


def test_a_limit_of_addresses_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (13 * GIB, -1))
    assert read_memory(tmp_path).rlimit == 13 * GIB


# ---- processors

CPUINFO = """\
processor : 0
model name : Fast CPU @ 3 GHz
physical id : 0
flags : fpu pni ssse3 avx avx2 f16c fma bmi2 avx512f avx512_vnni

processor : 1
model name : Fast CPU @ 3 GHz
physical id : 1
flags : fpu pni
"""


def test_sockets_and_names(tmp_path: Path) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    cpu = read_cpu(tmp_path)
    assert (cpu.model, cpu.sockets) == ("Fast CPU @ 3 GHz", 2)
    assert 1 <= cpu.usable <= cpu.threads
    assert 1 <= cpu.cores <= cpu.threads
    assert read_cpu(tmp_path / "none").sockets == 1


def test_extensions_that_are_left_unused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "proc/cpuinfo", CPUINFO)
    monkeypatch.setattr(
        "infer_os.runtime.plan.machine.used_features", lambda: ("SSE3", "AVX", "REPACK")
    )
    found = read_extensions(tmp_path)
    assert found.used == ("SSE3", "AVX", "REPACK")
    assert found.unused == ("SSSE3", "AVX2", "F16C", "FMA", "BMI2", "AVX512", "AVX512_VNNI")


def test_features_of_the_cpu_backend_alone() -> None:
    info = "BLAS : MKL = 1 | X = 1 | CPU : SSE3 = 1 | AVX2 = 0 | SVE_CNT = 32 | RPC : AVX = 1 | "
    assert parse_features(info) == ("SSE3", "SVE_CNT")
    assert parse_features("") == ()


def test_this_librarys_features() -> None:
    assert "REPACK" in used_features()
    assert len(used_features()) > 2


def test_types_with_a_faster_layout() -> None:
    assert repacked_types(("AVX2", "REPACK")) == {"q4_0", "q4_k", "iq4_nl"}
    assert "q8_0" in repacked_types(("NEON", "DOTPROD", "REPACK"))
    assert repacked_types(("AVX2",)) == repacked_types(("AVX", "REPACK")) == frozenset()


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    disk = read_disk(tmp_path / "a" / "b")
    assert disk.folder == tmp_path / "a" / "b"
    assert disk.free == pytest.approx(psutil.disk_usage(str(tmp_path)).free, rel=0.2)


# ---- bandwidth


def test_reading_memory_is_measured() -> None:
    assert read_bandwidth(2, n_bytes=1 << 22, seconds=0.01) > 0


@pytest.mark.parametrize(("n_threads", "n_bytes"), [(0, 1 << 20), (-1, 1 << 20), (1, 0), (8, 64)])
def test_an_impossible_measurement_is_an_error(n_threads: int, n_bytes: int) -> None:
    with pytest.raises(NativeError, match="bandwidth"):
        read_bandwidth(n_threads, n_bytes=n_bytes, seconds=0.01)


def test_more_memory_than_there_is_is_an_error() -> None:
    with pytest.raises(NativeError, match="bandwidth"):
        read_bandwidth(1, n_bytes=1 << 60, seconds=0.01)


def test_all_cores_are_never_slower_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []

    def read(n_threads: int, *, n_bytes: int, seconds: float) -> float:
        if n_bytes > 64 << 20:
            sizes.append(n_bytes)
        return {1: 9e9, 4: 7e9}[n_threads]

    monkeypatch.setattr(module, "read_bandwidth", read)
    found = measure_bandwidth(CPU, MEMORY)
    assert (found.all_cores, found.one_core) == (9e9, 9e9)
    assert found.cached == tuple((size << 20, 7e9) for size in (1, 4, 16, 64))
    assert measure_bandwidth(CPU, Memory(GIB, GIB, 0, 0)).one_core == 9e9
    assert sizes == [256 << 20] * 2 + [128 << 20] * 2


# ---- what is kept of it, by a clock of our own


DAY = 86_400.0
FIRST, SECOND = Bandwidth(5e9, 3e9, ((1 << 20, 9e9),)), Bandwidth(4e9, 4e9, ((1 << 20, 8e9),))
BEST = Bandwidth(5e9, 4e9, ((1 << 20, 9e9),))


class Moment:
    """A machine that takes two seconds to measure, while others work for ``others`` of them."""

    def __init__(self, folder: Path, *measured: Bandwidth) -> None:
        self.folder, self.now, self.others, self.worked = folder, 1e9, 0.0, 0.0
        self.n_measured = 0
        self._measured = iter(measured)

    def _measure(self, cpu: Cpu, memory: Memory) -> Bandwidth:
        self.now += 2.0
        self.worked += self.others + 2.0
        self.n_measured += 1
        return next(self._measured)

    def _cpu_time(self) -> CpuTime:
        return CpuTime(self.worked, 2.0 * self.n_measured)

    def known(self, cpu: Cpu = CPU) -> Bandwidth:
        return known_bandwidth(
            self.folder, cpu, MEMORY,
            measure=self._measure, clock=lambda: self.now, cpu_time=self._cpu_time,
        )  # fmt: skip

    def measured_now(self) -> Bandwidth:
        return measured_now(
            self.folder, CPU, MEMORY,
            measure=self._measure, clock=lambda: self.now, cpu_time=self._cpu_time,
        )  # fmt: skip


def test_a_measurement_is_kept_for_a_month(tmp_path: Path) -> None:
    machine = Moment(tmp_path / "cache", FIRST, SECOND)
    assert machine.known() == FIRST
    machine.now += 29 * DAY
    assert machine.known() == FIRST
    machine.now += 2 * DAY
    assert machine.known() == SECOND  # what is old is not the better of two
    assert machine.n_measured == 2
    assert [p.name for p in machine.folder.iterdir()] == ["bandwidth.json"]


def test_a_busy_machine_is_measured_again_soon(tmp_path: Path) -> None:
    machine = Moment(tmp_path, SECOND, FIRST)
    machine.others = 4.0  # of two seconds on 32 processors, 64
    assert machine.known() == SECOND
    machine = Moment(tmp_path / "busy", SECOND, FIRST)
    machine.others = 20.0
    assert machine.known() == SECOND
    machine.now += 300
    assert machine.known() == SECOND
    machine.now += 400
    machine.others = 0.0
    assert machine.known() == BEST
    machine.now += 20 * DAY
    assert machine.known() == BEST
    assert machine.n_measured == 2


def test_another_machine_or_another_start_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Moment(tmp_path, FIRST, SECOND, FIRST, SECOND)
    assert machine.known() == FIRST
    assert machine.known(Cpu("Other CPU", 2, 16, 32, 4)) == SECOND
    monkeypatch.setattr("platform.release", lambda: "another kernel")
    assert machine.known() == FIRST
    monkeypatch.setattr(module, "kernel_text", lambda path: "another start")
    assert machine.known() == SECOND


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    machine = Moment(tmp_path, FIRST, SECOND)
    assert machine.known() == FIRST
    machine.now -= 100 * DAY
    assert machine.known() == SECOND


def test_the_better_measurement_stays(tmp_path: Path) -> None:
    machine = Moment(tmp_path, FIRST, SECOND)
    machine.measured_now()
    assert machine.measured_now() == BEST == machine.known()


def test_the_processors_time_is_counted() -> None:
    before, started = read_cpu_time(), time.perf_counter()
    while time.perf_counter() - started < 0.05:
        pass
    after = read_cpu_time()
    assert after.ours - before.ours > 0
    assert after.worked >= before.worked > 0
    assert was_busy(CpuTime(0, 0), CpuTime(8.0, 2.0), 2.0, 4)
    assert not was_busy(CpuTime(0, 0), CpuTime(8.0, 8.0), 2.0, 4)
    assert not was_busy(CpuTime(0, 0), CpuTime(8.7, 8.0), 2.0, 4)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", '{"machine": 5}', '{"all_cores": 1, "one_core": 1}',
     '{"machine": "m", "at": 1, "busy": false, "cached": [], "all_cores": "x", "one_core": 1}',
     '{"machine": "m", "at": 1, "busy": false, "cached": [], "all_cores": -1, "one_core": 1}',
     '{"machine": "m", "at": 1, "busy": false, "cached": [], "all_cores": NaN, "one_core": 1}',
     '{"machine": "m", "at": 1, "busy": false, "cached": [[1, 0]], "all_cores": 1, "one_core": 1}',
     '{"machine": "m", "at": NaN, "busy": false, "cached": [], "all_cores": 1, "one_core": 1}',
     '{"machine": "m", "at": 1, "busy": false, "cached": 3, "all_cores": 1, "one_core": 1}',
     "\x00\xff"],
)  # fmt: skip
def test_a_damaged_store_is_no_measurement(tmp_path: Path, text: str) -> None:
    (tmp_path / "bandwidth.json").write_text(text)
    assert load_bandwidth(tmp_path) is None


def test_a_store_that_cannot_be_written(tmp_path: Path) -> None:
    kept = Kept(FIRST, "m", 1.0, False)
    (tmp_path / "file").write_text("")
    store_bandwidth(tmp_path / "file", kept)
    assert load_bandwidth(tmp_path / "file") is None
    store_bandwidth(tmp_path, kept)
    assert load_bandwidth(tmp_path) == kept


def test_multiplying_bytes_is_measured_where_our_kernels_run() -> None:
    if kernel_status(True).in_use:
        assert multiply_rate(1, seconds=0.01) > 0
        assert multiply_rate(1, seconds=0.01, scaled=True) > 0
    else:
        with pytest.raises(NativeError, match="multiply bytes"):
            multiply_rate(1, seconds=0.01)


def test_no_threads_multiply_nothing() -> None:
    with pytest.raises(NativeError, match="0 threads"):
        multiply_rate(0, seconds=0.01)
