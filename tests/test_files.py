"""Files that appear whole: what has the name before, while and after one is written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from infer_os import files
from infer_os.files import new_file, take_name, write_file


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
