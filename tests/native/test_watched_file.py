"""A file that is cut or overwritten while it is in use ends in a message, never in SIGBUS."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from helpers import BUNDLED, SEQUENTIAL, Converter, copy_checkpoint, read_tensors
from torch_writer import write_torch

from infer_os.native.errors import GgufError
from infer_os.native.gguf_file import read_gguf_header
from infer_os.native.watched_file import WatchedFile

MIB = 1 << 20


def child(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, which a signal may end."""
    head = """
        import faulthandler, mmap, os, sys
        from pathlib import Path
        path = Path(sys.argv[1])
        def cut(n=4096):
            os.truncate(path, n)
    """
    text = textwrap.dedent(head) + textwrap.dedent(code)
    command = [sys.executable, "-c", text, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (4 * MIB))
    return path


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(OSError, match="not a plain file"):
            WatchedFile(path)
        with pytest.raises(GgufError, match="cannot be read: not a plain file"):
            read_gguf_header(path)


READ = """
from infer_os.native.watched_file import WatchedFile
with WatchedFile(path) as watch, path.open("rb") as opened:
    data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    cut()
    print(data[-1:], data[:1], data[5000:5001], watch.complaint())
"""


@pytest.mark.parametrize("before", ["", "faulthandler.enable()"])
def test_what_is_cut_off_reads_as_zeros_and_is_complained_of(file: Path, before: str) -> None:
    done = child(before + READ, file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(r"b'\x00' b'x' b'\x00'")
    assert "was cut short while it was in use, from 4194304 bytes to 4096" in done.stdout


def test_another_file_still_ends_the_process(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"y")
    done = child(READ.replace("WatchedFile(path)", f"WatchedFile(Path({str(other)!r}))"), file)
    assert done.returncode == -signal.SIGBUS


def test_after_the_watch_it_ends_the_process_again(file: Path) -> None:
    code = """
    from infer_os.native.watched_file import WatchedFile
    WatchedFile(path).close()
    with path.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    cut()
    data[-1]
    """
    assert child(code, file).returncode == -signal.SIGBUS


def test_a_signal_from_outside_is_no_fault(file: Path) -> None:
    code = """
    import signal
    from infer_os.native.watched_file import WatchedFile
    watch = WatchedFile(path)
    os.kill(os.getpid(), signal.SIGBUS)
    """
    assert child(code, file).returncode == -signal.SIGBUS


def test_many_threads_may_fall_into_it_at_once(file: Path) -> None:
    code = """
    import threading
    import numpy as np
    from infer_os.native.watched_file import WatchedFile
    watch = WatchedFile(path)
    maps = [np.memmap(path, np.uint8, "r") for _ in range(3)]
    cut()
    gate = threading.Barrier(8)
    def read(data):
        gate.wait()
        assert not data[8192:].any()
    threads = [threading.Thread(target=read, args=(maps[i % 3],)) for i in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(watch.complaint())
    """
    done = child(code, file)
    assert done.returncode == 0, done.stderr
    assert "cut short" in done.stdout


def test_a_file_that_was_restored_is_still_damaged(file: Path) -> None:
    code = """
    from infer_os.native.watched_file import WatchedFile
    with WatchedFile(path) as watch, path.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
        stat = path.stat()
        cut(); data[-1]; cut(stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        print(watch.complaint())
        # whoever begins now sees a good file
        print(WatchedFile(path).complaint() == "")
    """
    assert child(code, file).stdout.split("\n")[:2] == [
        f"{file}: a part of it could not be read; see the disk's messages (dmesg)", "True",
    ]  # fmt: skip


def test_what_is_no_change_and_what_is(file: Path, tmp_path: Path) -> None:
    with WatchedFile(file) as watch:
        assert watch.complaint() == ""
        assert watch.is_at(file)
        file.chmod(0o600)
        os.link(file, tmp_path / "link")
        assert watch.complaint() == ""
        with file.open("r+b") as handle:
            handle.write(b"abc")
            os.utime(handle.fileno(), ns=(0, 1))
        assert watch.complaint() == f"{file}: was written to while it was in use"
    assert watch.complaint() == ""  # closed
    with WatchedFile(file) as watch:
        other = tmp_path / "other"
        other.write_bytes(b"new")
        other.replace(file)
        assert watch.complaint() == ""
        assert not watch.is_at(file)
        file.unlink()
        assert watch.complaint() == ""
        assert watch.is_at(file)
    with file.open("wb"):
        pass
    with WatchedFile(file) as watch, file.open("wb") as handle:
        handle.write(b"more")
        handle.flush()
        assert "has grown while it was in use, from 0 bytes to 4" in watch.complaint()


def test_hundreds_of_files_may_be_watched(file: Path) -> None:
    watches = [WatchedFile(file) for _ in range(300)]
    with file.open("ab") as handle:
        handle.write(b"!")
    assert all("has grown" in watch.complaint() for watch in watches)
    for watch in watches:
        watch.close()
    with WatchedFile(file) as watch:
        assert watch._watch >= 0


def test_a_header_that_is_cut_while_it_is_read(
    converted: Converter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.gguf"
    shutil.copyfile(converted(), path)
    check = "infer_os.native.gguf_file._HeaderReader.read"
    read = read_gguf_header.__globals__["_HeaderReader"].read

    def cut(reader: object) -> object:
        os.truncate(path, 100)
        return read(reader)

    monkeypatch.setattr(check, cut)
    with pytest.raises(GgufError, match="was cut short while it was in use"):
        read_gguf_header(path)


# ---- models


@pytest.fixture
def model(converted: Converter, tmp_path: Path) -> Path:
    """A trained model's file that a test may spoil."""
    folder = next(f for f in BUNDLED if f.name == "austen-6m")
    return Path(shutil.copyfile(converted(folder, "q8_0"), tmp_path / "m.gguf"))


CUT = "cut(1 << 20)"
OVERWRITE = "path.open('r+b').write(os.urandom(path.stat().st_size))"
WAYS = {
    "generate": """
        import infer_os
        from infer_os.native.errors import ModelChanged
        from infer_os.runtime.settings import EngineSettings, StopSettings
        settings = EngineSettings(128, threads=1, **options)
        with infer_os.load(path, settings=settings) as model:
            try:
                stops = StopSettings(40)
                for i, _ in enumerate(model.stream("It is a truth", stops=stops)):
                    if i == 3:
                        spoil()
            except ModelChanged as error:
                print(i < 6, error)
        """,
    "batch": """
        from infer_os.native.errors import ModelChanged
        from infer_os.runtime.batch.batch_engine import BatchEngine
        from infer_os.runtime.batch.records import Record
        from infer_os.runtime.batch.settings import BatchSettings
        from infer_os.runtime.settings import EngineSettings, SamplingSettings, StopSettings
        settings = EngineSettings(128, threads=1, **options)
        with BatchEngine(path, settings, BatchSettings(parallel=3)) as engine:
            record = lambda i: Record(i, i, SamplingSettings(temperature=0),
                                      StopSettings(8), "It is")
            def records():
                yield record(1)
                spoil()
                yield record(2)
            try:
                print([result.id for result in engine.run(records())])
            except ModelChanged as error:
                print(True, error)
        """,
    "evaluate": """
        from infer_os.native.context import Context, ContextParams
        from infer_os.native.errors import ModelChanged
        from infer_os.native.model import LlamaModel
        with LlamaModel(path, **options) as model, Context(model, ContextParams(64, 2)) as context:
            context.decode([1, 2, 3], 0)
            spoil()
            for decode in (lambda: context.decode([4, 5], 3), lambda: context.decode_one(6, 5)):
                try:
                    decode()
                except ModelChanged as error:
                    print(True, error)
        """,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("spoil", "words"), [(CUT, "cut short"), (OVERWRITE, "written to")])
def test_a_model_that_is_spoiled_under_way(
    model: Path, way: str, native: bool, spoil: str, words: str
) -> None:
    options = f"options = dict(native={native})\ndef spoil(): {spoil}\n"
    done = child(options + textwrap.dedent(WAYS[way]), model)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("True"), done.stdout
    assert words in done.stdout
    assert "load the model again" in done.stdout


@pytest.mark.parametrize("load", ["fast", "direct"])
def test_copies_do_not_need_the_file(model: Path, load: str) -> None:
    code = f"options = dict(load={load!r})\ndef spoil(): cut(1 << 20)\n" + textwrap.dedent(
        WAYS["evaluate"]
    )
    done = child(code, model)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize("load", ["mmap", "fast", "locked", "direct"])
def test_a_model_that_is_cut_while_it_is_loaded(model: Path, load: str) -> None:
    code = f"""
    from infer_os.native import model as module
    from infer_os.native.errors import ModelLoadError
    real = module.llama_cpp.llama_model_load_from_file
    def load(*arguments):
        cut(1 << 20)
        return real(*arguments)
    module.llama_cpp.llama_model_load_from_file = load
    try:
        module.LlamaModel(path, load={load!r})
    except ModelLoadError as error:
        print(error)
    """
    done = child(code, model)
    assert done.returncode == 0, done.stderr
    assert "cut short" in done.stdout


# ---- checkpoints


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
def test_a_checkpoint_that_is_cut_while_it_is_converted(tmp_path: Path, kind: str) -> None:
    folder = copy_checkpoint(SEQUENTIAL, tmp_path / "checkpoint")
    (shard,) = folder.glob("*.safetensors")
    if kind == "torch":
        tensors = read_tensors(folder)
        shard.unlink()
        shard = folder / "pytorch_model.bin"
        write_torch(shard, tensors)
    code = """
    from infer_os.convert import pipeline
    from infer_os.convert.errors import SourceChanged
    from infer_os.convert.settings import ConvertSettings
    opened = pipeline._shard_blocks
    def spoiling(work, file, jobs):
        os.truncate(sys.argv[2], 100)
        yield from opened(work, file, jobs)
    pipeline._shard_blocks = spoiling
    try:
        pipeline.convert(ConvertSettings(path, Path(sys.argv[3]), "q8_0"))
    except SourceChanged as error:
        print(error.exit_code, error)
    """
    target = tmp_path / "out" / "m.gguf"
    target.parent.mkdir()
    done = child(code, folder, shard, target)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"1 {shard}: was cut short while it was in use")
    assert not list(target.parent.iterdir())
