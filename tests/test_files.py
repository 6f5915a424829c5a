"""Files that appear whole: what has the name before, while and after one is written."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from infer_os import files
from infer_os.files import append, new_file, remove_abandoned, take_name, working_folder, write_file


def test_a_file_appears_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with new_file(path, mode=0o600) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="stop"), new_file(path) as file:
        file.write(b"new")
        raise ValueError("stop")
    assert (os.listdir(tmp_path), path.read_bytes()) == (["file"], b"old")


def test_the_first_stays_where_none_is_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_file(path, b"first", replace=False)
    write_file(path, b"second", replace=False)
    assert (os.listdir(tmp_path), path.read_bytes()) == (["key"], b"first")


def test_a_name_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real(handle)

    monkeypatch.setattr(files.os, "fsync", fsync)
    for replace in (True, False):
        with new_file(tmp_path / f"file{replace}", part=tmp_path / "part", replace=replace) as file:
            file.write(b"x")
    (tmp_path / "grown").write_bytes(b"x")
    take_name(tmp_path / "grown", tmp_path / "done")
    assert synced == ["part", tmp_path.name] * 2 + [tmp_path.name]


def test_an_error_names_the_file_and_not_its_part(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, new_file(tmp_path / "no" / "file"):
        pass
    assert caught.value.filename == str(tmp_path / "no" / "file")


@contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """While inside, no file of this process can become larger, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_is_appended_is_there_or_not(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    with largest_file(5000):
        with pytest.raises(OSError, match="too large") as caught:
            append(path, b"x" * 6000)
        assert caught.value.filename == str(path) and not path.exists()
        append(path, b"one\n")
        with pytest.raises(OSError, match="too large"):
            append(path, b"x" * 6000)
        append(path, b"two\n")
    assert path.read_bytes() == b"one\ntwo\n"
    with pytest.raises(OSError, match="No space left"):
        append(Path("/dev/full"), b"x")


def test_a_full_disk_leaves_what_was_there(tmp_path: Path) -> None:
    write_file(tmp_path / "file", b"old")
    with largest_file(5000), pytest.raises(OSError, match="too large"):
        write_file(tmp_path / "file", b"x" * 6000)
    assert (os.listdir(tmp_path), (tmp_path / "file").read_bytes()) == (["file"], b"old")


# ---- what killed processes leave

WRITES = """
import sys, time
from pathlib import Path
from infer_os.files import append, new_file, working_folder
path = Path(sys.argv[1])
with working_folder(path) as folder, new_file(path) as file:
    (folder / "sub").mkdir()
    (folder / "sub" / "data").write_bytes(b"x" * 100_000)
    file.write(b"half")
    file.flush()
    print("there", flush=True)
    time.sleep(600)
"""


@contextmanager
def writing(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has begun to write a file, and has a working folder beside it."""
    words = [sys.executable, "-c", WRITES, str(path)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == "there\n"
            yield process
        finally:
            process.kill()


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    with writing(tmp_path / "file"):
        pass
    assert len(left := os.listdir(tmp_path)) == 2 and all(n.startswith(".infer-os-") for n in left)
    write_file(tmp_path / "another", b"x")
    assert os.listdir(tmp_path) == ["another"]
    with writing(tmp_path / "file"):
        pass
    with working_folder(tmp_path / "file") as folder:
        assert sorted(os.listdir(tmp_path)) == [folder.name, "another"]
        assert folder.stat().st_mode & 0o777 == 0o700
    assert os.listdir(tmp_path) == ["another"]


def test_what_a_living_process_writes_stays(tmp_path: Path) -> None:
    with writing(tmp_path / "file"):
        before = set(os.listdir(tmp_path))
        assert len(before) == 2
        write_file(tmp_path / "file", b"whole")
        with working_folder(tmp_path / "file"):
            pass
        assert remove_abandoned(tmp_path) == 0
        assert set(os.listdir(tmp_path)) == before | {"file"}
    assert remove_abandoned(tmp_path) >= 100_000
    assert os.listdir(tmp_path) == ["file"]


def test_only_what_is_ours_counts_as_abandoned(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "file").write_bytes(b"x")
    names = [".0123456789abcdef.part", ".infer-os-0123.part", "infer-os-0123456789abcdef.part",
             ".infer-os-0123456789abcdef.part.gz"]  # fmt: skip
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / ".infer-os-0123456789abcdef.work").symlink_to(mine)
    (tmp_path / ".infer-os-0123456789abcdef.part").symlink_to(mine / "file")
    os.mkfifo(tmp_path / ".infer-os-fedcba9876543210.part")
    write_file(tmp_path / "new", b"x")
    assert (mine / "file").read_bytes() == b"x"
    assert set(names) < set(os.listdir(tmp_path))


def test_writers_do_not_take_files_from_each_other(tmp_path: Path) -> None:
    """Each begins by looking for what is abandoned, while others make theirs."""

    def write(number: int) -> None:
        for i in range(20):
            with working_folder(tmp_path / "work") as folder:
                write_file(folder / "a", b"x")
            write_file(tmp_path / f"{number}-{i}", b"x" * 100)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(8)))
    assert sorted(os.listdir(tmp_path)) == sorted(f"{n}-{i}" for n in range(8) for i in range(20))
