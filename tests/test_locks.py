"""Who has a file: alone or shared, in turn, and where there are no locks at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from infer_os import locks
from infer_os.locks import in_use, lock_handle, try_lock, try_unused, wait_for_lock


@contextmanager
def closing(handle: int | None) -> Iterator[int]:
    assert handle is not None
    try:
        yield handle
    finally:
        os.close(handle)


def open_handles() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.touch()
    return path


def test_one_has_a_lock_alone(tmp_path: Path) -> None:
    before, path = open_handles(), tmp_path / "made"
    with closing(try_lock(path)):
        assert try_lock(path) is None
        assert open_handles() == before + 1
    with closing(try_lock(path)):
        pass


def test_a_lock_on_a_name_that_went_counts_for_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock(handle: int, **how: bool) -> bool:
        file.unlink(missing_ok=True)  # as the holder before may do
        return lock_handle(handle, **how)

    monkeypatch.setattr(locks, "lock_handle", lock)
    before = open_handles()
    assert try_lock(file) is None
    assert wait_for_lock(file, lambda: None) is None
    assert open_handles() == before


def test_who_waits_says_so_before(file: Path) -> None:
    said: list[str] = []
    held = try_lock(file)
    assert held is not None

    def give_back() -> None:
        said.append("waits")
        os.close(held)

    with closing(wait_for_lock(file, give_back)):
        assert said == ["waits"]
        assert try_lock(file) is None


def test_what_many_use_is_not_unused(file: Path) -> None:
    with in_use(file), in_use(file):
        assert try_unused(file) is None
    file.chmod(0o444)
    with closing(try_unused(file)), pytest.raises(FileNotFoundError):
        try_unused(file.with_name("gone"))


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    file: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks.fcntl, "flock", flock)
    before = open_handles()
    for attempt in (try_lock, try_unused):
        with pytest.raises(OSError, match="its file system has no locks") as caught:
            attempt(file)
        assert (caught.value.errno, caught.value.filename) == (number, str(file))
    with in_use(file):  # a sign less, no more
        pass
    assert open_handles() == before


def test_a_lock_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        try_lock(tmp_path / "no" / "lock")
    assert caught.value.filename == str(tmp_path / "no" / "lock")
