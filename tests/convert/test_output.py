"""The output appears only when it is complete, and a failure leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import PARALLEL, Converter, read_tensors, set_config, write_tensors

from infer_os.convert import pipeline
from infer_os.convert.errors import ConvertError, OutputError, SourceError, UnsupportedError
from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.native.gguf_file import read_gguf_header


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir()
    return path


def test_an_existing_output_stays_without_force(folder: Path) -> None:
    target = folder / "m.gguf"
    target.write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"m\.gguf: already exists; --force replaces it"):
        convert(ConvertSettings(PARALLEL, target))
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("m.gguf", b"precious")]


def test_force_replaces_the_output(folder: Path, converted: Converter) -> None:
    target = folder / "m.gguf"
    target.write_bytes(b"old")
    convert(ConvertSettings(PARALLEL, target, "f16", force=True))
    assert target.read_bytes() == converted(kind="f16").read_bytes()
    assert [p.name for p in folder.iterdir()] == ["m.gguf"]


def test_force_keeps_the_old_output_if_the_new_fails(folder: Path, checkpoint: Path) -> None:
    target = folder / "m.gguf"
    target.write_bytes(b"old")
    tensors = read_tensors(checkpoint)
    tensors["embed_out.weight"][0, 0] = np.nan
    write_tensors(checkpoint, tensors)
    with pytest.raises(SourceError, match="NaN"):
        convert(ConvertSettings(checkpoint, target, force=True))
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("m.gguf", b"old")]


def test_the_old_output_is_there_until_the_new_one_is(folder: Path) -> None:
    target = folder / "m.gguf"
    target.write_bytes(b"old")
    seen: set[bytes] = set()
    convert(
        ConvertSettings(PARALLEL, target, "f16", force=True),
        lambda done, total: seen.add(target.read_bytes()),
    )
    assert seen == {b"old"}


def test_a_readers_handle_keeps_the_old_output(folder: Path) -> None:
    target = folder / "m.gguf"
    target.write_bytes(b"old")
    with target.open("rb") as reader:
        convert(ConvertSettings(PARALLEL, target, "f16", force=True))
        assert reader.read() == b"old"


def test_a_folder_as_output(folder: Path) -> None:
    with pytest.raises(OutputError, match="a folder; name a file"):
        convert(ConvertSettings(PARALLEL, folder, force=True))


def test_no_folder_for_the_output(folder: Path) -> None:
    with pytest.raises(OutputError, match="no such folder for the output"):
        convert(ConvertSettings(PARALLEL, folder / "deeper" / "m.gguf"))
    assert list(folder.iterdir()) == []


def test_a_name_too_long_for_the_file_system(folder: Path) -> None:
    with pytest.raises(OutputError):
        convert(ConvertSettings(PARALLEL, folder / ("n" * 300)))
    with pytest.raises(OutputError):
        convert(ConvertSettings(PARALLEL, folder / ("n" * 254)))
    assert list(folder.iterdir()) == []


def test_a_disk_that_is_too_small_is_refused_before_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def small(path: Any) -> Any:
        values = list(real(path))
        values[4] = 3  # f_bavail
        return os.statvfs_result(values)

    monkeypatch.setattr(os, "statvfs", small)
    with pytest.raises(OutputError, match=r"the disk is too full: the file needs .* kB"):
        convert(ConvertSettings(PARALLEL, folder / "m.gguf"))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_becomes_full_while_writing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = folder / "m.gguf"
    target.write_bytes(b"old")
    calls = 0
    real = pipeline.GgufOutput.write

    def full(self: Any, *args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(code, os.strerror(code))
        real(self, *args)

    monkeypatch.setattr(pipeline.GgufOutput, "write", full)
    with pytest.raises(OutputError, match="became full while writing; nothing was left behind"):
        convert(ConvertSettings(PARALLEL, target, force=True))
    assert calls == 5
    assert [(p.name, p.read_bytes()) for p in folder.iterdir()] == [("m.gguf", b"old")]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_the_very_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OutputError, match="became full"):
        convert(ConvertSettings(PARALLEL, folder / "m.gguf"))
    assert list(folder.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 128 KB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here: the full disk is only simulated")
    if mounted.returncode:
        pytest.skip(f"no tmpfs may be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def test_a_small_disk_is_seen_in_advance(small_disk: Path) -> None:
    with pytest.raises(OutputError, match="the disk is too full"):
        convert(ConvertSettings(PARALLEL, small_disk / "m.gguf", "f32"))
    assert list(small_disk.iterdir()) == []


def test_a_small_disk_that_fills_while_writing(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "check_output", lambda *args, **options: None)
    with pytest.raises(OutputError, match="the disk became full while writing"):
        convert(ConvertSettings(PARALLEL, small_disk / "m.gguf", "f32"))
    assert list(small_disk.iterdir()) == []


def test_an_interrupt_leaves_nothing(folder: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(ConvertSettings(PARALLEL, folder / "m.gguf"), interrupt)
    assert list(folder.iterdir()) == []


def test_two_conversions_to_one_output_do_not_mix(folder: Path) -> None:
    target = folder / "m.gguf"
    complaints = []

    def meddle(done: int, total: int) -> None:
        if not complaints:
            with pytest.raises(OutputError, match="another conversion") as caught:
                convert(ConvertSettings(PARALLEL, target, "f32", force=True))
            complaints.append(caught.value)

    convert(ConvertSettings(PARALLEL, target, "f16"), meddle)
    assert complaints
    assert read_gguf_header(target).metadata["general.file_type"] == 1
    assert [p.name for p in folder.iterdir()] == ["m.gguf"]


def test_what_a_killed_conversion_left_is_overwritten(folder: Path, converted: Converter) -> None:
    target = folder / "m.gguf"
    script = (
        "import sys, time; from pathlib import Path\n"
        "from infer_os.convert.pipeline import convert\n"
        "from infer_os.convert.settings import ConvertSettings\n"
        "def wait(done, total):\n"
        "    if done > 100000: print('half', flush=True); time.sleep(60)\n"
        f"convert(ConvertSettings(Path({str(PARALLEL)!r}), Path({str(target)!r}), 'f16'), wait)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    try:
        assert killed.stdout
        assert killed.stdout.readline() == b"half\n"
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    assert not target.exists()
    (leftover,) = folder.iterdir()
    with leftover.open("ab") as file:
        file.write(b"junk" * 500_000)
    convert(ConvertSettings(PARALLEL, target, "f16"))
    assert [p.name for p in folder.iterdir()] == ["m.gguf"]
    assert target.read_bytes() == converted(kind="f16").read_bytes()


def test_a_leftover_in_use_is_left_alone(folder: Path) -> None:
    part = folder / ".m.gguf.part"
    with part.open("wb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(OutputError, match="another conversion"):
            convert(ConvertSettings(PARALLEL, folder / "m.gguf"))
    assert [p.name for p in folder.iterdir()] == [".m.gguf.part"]


def test_a_refused_checkpoint_creates_no_file_at_any_time(
    folder: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_config(checkpoint, vocab_size=299)

    def never(path: Path) -> None:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(pipeline, "complete_file", never)
    with pytest.raises(ConvertError):
        convert(ConvertSettings(checkpoint, folder / "m.gguf"))


def test_the_output_has_ordinary_permissions(folder: Path) -> None:
    mask = os.umask(0o022)
    try:
        convert(ConvertSettings(PARALLEL, folder / "m.gguf"))
    finally:
        os.umask(mask)
    assert (folder / "m.gguf").stat().st_mode & 0o777 == 0o644


def test_a_conversion_of_the_same_folder_twice_differs_in_nothing(folder: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        convert(ConvertSettings(PARALLEL, folder / name, "q4_0"))
        time.sleep(0.01)
    assert (folder / "a.gguf").read_bytes() == (folder / "b.gguf").read_bytes()


# ---- outputs that are none


@pytest.mark.parametrize("linked", [False, True])
def test_only_ordinary_files_are_replaced(folder: Path, linked: bool) -> None:
    pipe = target = folder / "m.gguf"
    if linked:
        pipe = folder / "pipe"
        target.symlink_to(pipe)
    os.mkfifo(pipe)
    with pytest.raises(OutputError, match="not an ordinary file"):
        convert(ConvertSettings(PARALLEL, target, force=True))
    assert pipe.is_fifo()


def test_a_link_is_replaced_and_its_file_stays(folder: Path) -> None:
    target, mine = folder / "m.gguf", folder / "mine"
    mine.write_text("mine")
    target.symlink_to(mine)
    with pytest.raises(OutputError, match="--force"):
        convert(ConvertSettings(PARALLEL, target))
    convert(ConvertSettings(PARALLEL, target, force=True))
    assert not target.is_symlink()
    assert mine.read_text() == "mine"


def test_a_link_to_nothing_is_there_all_the_same(folder: Path) -> None:
    target = folder / "m.gguf"
    target.symlink_to(folder / "nothing")
    with pytest.raises(OutputError, match="already exists"):
        convert(ConvertSettings(PARALLEL, target))
    assert target.is_symlink()


def test_the_checkpoint_is_never_replaced(checkpoint: Path) -> None:
    shard = next(checkpoint.glob("*.safetensors"))
    before = shard.read_bytes()
    with pytest.raises(OutputError, match="a file of the checkpoint"):
        convert(ConvertSettings(checkpoint, shard, force=True))
    # as huggingface_hub's cache has it: a link to a blob elsewhere
    blob = checkpoint.parent / "blob"
    shard.rename(blob)
    shard.symlink_to(blob)
    with pytest.raises(OutputError, match="a file of the checkpoint"):
        convert(ConvertSettings(checkpoint, blob, force=True))
    assert blob.read_bytes() == before
    # a GGUF in that folder is none of its files
    for _ in range(2):
        convert(ConvertSettings(checkpoint, checkpoint / "m.gguf", force=True))


@pytest.mark.parametrize(("settings", "words"), [
    ({"output": Path("-")}, "cannot be streamed"), ({"threads": 513}, "1 to 512"),
])  # fmt: skip
def test_settings_that_cannot_be(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedError, match=words):
        ConvertSettings(PARALLEL, **settings)
