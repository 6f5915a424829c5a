"""Locking, prefetching and dropping: what is checked before, and what is true after."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import Converter

from infer_os.native.residency import resident_bytes
from infer_os.runtime import pages
from infer_os.runtime.engine import LlamaEngine
from infer_os.runtime.errors import SettingsError
from infer_os.runtime.pages import check_locked, drop_pages, lock_complaint, locked_bytes
from infer_os.runtime.plan.memory_plan import LockShortage, MemoryShortage
from infer_os.runtime.settings import EngineSettings

MIB = 1 << 20


def test_what_may_be_locked() -> None:
    assert lock_complaint(8 * MIB, 0, 8 * MIB, privileged=False) is None
    assert lock_complaint(8 * MIB + 1, 0, 8 * MIB, privileged=True) is None
    assert lock_complaint(1 << 40, 0, -1, privileged=False) is None
    assert lock_complaint(8 * MIB, 1, 8 * MIB, privileged=False) is not None


def test_what_may_not_be_locked_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ada")
    text = lock_complaint(12_000_000, 0, 8 * MIB, privileged=False) or ""
    assert "12.0 MB" in text
    assert "8.4 MB" in text
    assert "ulimit -l 11719" in text  # KiB, rounded up
    assert "ada - memlock 11719" in text
    assert "--load mmap" in text


def test_a_lock_that_did_not_happen_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LockShortage, match=r"only 0 B of 5\.0 MB"):
        check_locked(tmp_path, 5_000_000, locked_bytes())
    assert issubclass(LockShortage, MemoryShortage)


def drop_privilege() -> None:
    """Take CAP_IPC_LOCK out of what a program started from here can have, and half a MiB."""
    ctypes.CDLL(None).prctl(24, 14)  # PR_CAPBSET_DROP
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (4096, 524288))


def locked_run(path: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable, "-m", "infer_os.cli", "generate", str(path), "-p", "a", "-n", "1",
        "--load", "locked", "--context", "64", "--threads", "1",
    ]  # fmt: skip
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, preexec_fn=drop_privilege
    )


def test_locking_under_the_default_limit(converted: Converter, tmp_path: Path) -> None:
    """A soft limit is raised to the hard one; past that, the run ends before it loads."""
    small = converted(kind="q4_0")
    assert small.stat().st_size < 524288
    assert locked_run(small).returncode == 0
    large = converted(kind="f32")
    assert large.stat().st_size > 524288
    result = locked_run(large)
    assert result.returncode == 2
    assert result.stderr.startswith("error: --load locked needs")
    assert result.stderr.count("\n") == 1
    assert "ulimit -l" in result.stderr


@pytest.mark.parametrize("given", [{"prefetch": True}, {"drop_pages": True}])
def test_direct_has_no_pages_to_care_for(given: dict[str, bool]) -> None:
    with pytest.raises(SettingsError, match="no effect with --load direct"):
        EngineSettings(load="direct", **given)


@pytest.fixture
def copy(converted: Converter, tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    with path.open("wb") as handle:
        handle.write(converted().read_bytes())
        os.fsync(handle.fileno())
    if drop_pages(path):
        pytest.skip("this file system keeps its pages (tmpfs)")
    return path


def test_the_engine_prefetches_and_drops(copy: Path) -> None:
    seen: list[tuple[int, int]] = []
    settings = EngineSettings(64, threads=1, prefetch=True, drop_pages=True)
    with LlamaEngine(copy, settings, warmed=lambda *done: seen.append(done)):
        assert resident_bytes(copy) == copy.stat().st_size
    assert seen[-1] == (copy.stat().st_size, copy.stat().st_size)
    assert resident_bytes(copy) == 0


def test_a_file_that_is_deleted_meanwhile_has_no_pages_to_drop(copy: Path) -> None:
    with LlamaEngine(copy, EngineSettings(64, threads=1, drop_pages=True)):
        copy.unlink()


def test_copies_need_no_pages_after_loading(copy: Path) -> None:
    settings = EngineSettings(64, "fast", threads=1, drop_pages=True)
    with LlamaEngine(copy, settings):
        assert resident_bytes(copy) == 0


def test_pages_stay_if_nobody_drops_them(copy: Path) -> None:
    with LlamaEngine(copy, EngineSettings(64, threads=1)):
        pass
    assert resident_bytes(copy) > 0


def test_a_failing_check_frees_the_model(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*_arguments: object) -> None:
        raise LockShortage("no")

    monkeypatch.setattr("infer_os.runtime.prepare.check_locked", refuse)
    with pytest.raises(LockShortage):
        LlamaEngine(copy, EngineSettings(64, "locked", threads=1))
    assert str(copy) not in Path("/proc/self/maps").read_text()


def test_the_hard_limit_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(pages, "_may_lock_anything", lambda: False)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (MIB, 64 * MIB))
    set_limit: Callable[..., None] = lambda kind, limits: asked.append(limits)  # noqa: E731
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    pages.check_lockable(32 * MIB)
    assert asked == [(64 * MIB, 64 * MIB)]
    with pytest.raises(LockShortage, match="ulimit"):
        pages.check_lockable(65 * MIB)
