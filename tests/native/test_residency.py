"""What truly lies in memory: the page cache, a context's buffers, and what each load mode does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Converter

from infer_os.models.bundled import TARGET
from infer_os.native.context import Context, ContextParams
from infer_os.native.model import LOAD_MODES, LlamaModel
from infer_os.native.residency import context_buffers, resident_bytes
from infer_os.runtime.pages import drop_pages, prefetch
from infer_os.runtime.settings import LOADS

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGESIZE")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """17 MiB and a bit, written to the disk."""
    path = tmp_path / "weights.bin"
    with path.open("wb") as handle:
        handle.write(os.urandom(17 * MIB + 123))
        os.fsync(handle.fileno())
    return path


def dropped(path: Path) -> None:
    """Take a file out of the page cache, by the system's own call."""
    with path.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident_bytes(path):
        pytest.skip("this file system keeps its pages (tmpfs)")


def test_pages_come_and_go(file: Path) -> None:
    size = file.stat().st_size
    assert resident_bytes(file) == size
    dropped(file)
    assert resident_bytes(file) == 0
    with file.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        handle.seek(5 * PAGE)
        os.read(handle.fileno(), 10)
    assert resident_bytes(file, 5 * PAGE, PAGE) == PAGE
    assert resident_bytes(file, 5 * PAGE + 7, 100) == 100
    assert PAGE <= resident_bytes(file) < size


def test_dropping_pages(file: Path) -> None:
    dropped(file)
    file.read_bytes()
    assert resident_bytes(file) == file.stat().st_size
    assert drop_pages(file) == resident_bytes(file) == 0


def test_parts_that_are_not_there(file: Path) -> None:
    size = file.stat().st_size
    assert resident_bytes(file, size) == resident_bytes(file, size + 5, 9) == 0
    assert resident_bytes(file, size - 10, 1000) == 10
    assert resident_bytes(file, 0, 0) == 0
    with pytest.raises(FileNotFoundError):
        resident_bytes(file.with_name("none"))


def test_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert resident_bytes(tmp_path / "empty") == 0


def test_prefetching_reads_what_is_missing(file: Path) -> None:
    size = file.stat().st_size
    dropped(file)
    seen: list[tuple[int, int]] = []
    # the kernel may read ahead of the readers
    assert 0 < prefetch(file, lambda done, total: seen.append((done, total))) <= size
    assert resident_bytes(file) == size
    assert seen[-1] == (size, size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert prefetch(file) == 0


def test_prefetching_stops_when_it_is_told_to(file: Path) -> None:
    dropped(file)

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prefetch(file, stop)


def test_what_cannot_be_known_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = file.stat().st_size
    assert prefetch(file) == 0
    monkeypatch.setattr("infer_os.runtime.pages.tells_residency", lambda path: False)
    assert prefetch(file) == size
    assert drop_pages(file) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_residency_is_told_to_owners_and_writers() -> None:
    script = (
        "import os, pathlib, sys\n"
        "from infer_os.native.residency import tells_residency\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "seen = [tells_residency(path)]\n"
        "os.seteuid(65534)\n"
        "seen.append(tells_residency(path))\n"
        "os.seteuid(0); path.chmod(0o666); os.seteuid(65534)\n"
        "seen.append(tells_residency(path))\n"
        "os.seteuid(0); path.chmod(0o444); os.chown(path, 65534, 0); os.seteuid(65534)\n"
        "seen.append(tells_residency(path))\n"
        "print(seen)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder) / "shared.bin"
        path.write_bytes(b"x" * PAGE)
        path.chmod(0o644)
        result = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
        )
    assert result.stdout == "[True, False, True, True]\n"


def test_the_buffers_of_a_context(converted: Converter) -> None:
    """Two layers of width 64, 256 cells: 2 bytes, K and V."""
    with LlamaModel(converted()) as model:
        with Context(model, ContextParams(n_ctx=256, n_threads=1)) as context:
            small = context_buffers(context)
        with Context(model, ContextParams(n_ctx=512, n_threads=1)) as context:
            large = context_buffers(context)
    assert small.kv == 2 * 2 * 2 * 64 * 256
    assert large.kv == 2 * small.kv
    assert large.compute > small.compute > 0
    assert small.weights == large.weights > 0


# a llama.cpp whose private function says something else than the pinned one's
_OTHER_LLAMA = """
#include <map>
struct llama_context;
struct bytes { unsigned long model, context, compute; };
__attribute__((visibility("default")))
std::map<void *, bytes> llama_get_memory_breakdown(const llama_context *) {
    return {{nullptr, {1, 2, 3}}};
}
"""


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_sizes_that_cannot_be_true_are_refused(converted: Converter, tmp_path: Path) -> None:
    library = tmp_path / "other_llama.so"
    command = ["c++", "-std=c++17", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(library)]
    subprocess.run(command, input=_OTHER_LLAMA.encode(), check=True)
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from infer_os.native.context import Context, ContextParams\n"
        "from infer_os.native.errors import NativeError\n"
        "from infer_os.native.model import LlamaModel\n"
        "from infer_os.native.residency import context_buffers\n"
        "path, params = Path(sys.argv[1]), ContextParams(64, 1)\n"
        "with LlamaModel(path) as model, Context(model, params) as context:\n"
        "    try:\n"
        "        print(context_buffers(context))\n"
        "    except NativeError as error:\n"
        "        print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(converted())], capture_output=True, text=True,
        check=True, env={**os.environ, "LD_PRELOAD": str(library)},
    )  # fmt: skip
    assert done.stdout.startswith("this llama.cpp does not say the sizes of its buffers")


# ---- load modes: each in a process of its own, which says what it sees

LOOK = """
import json, sys
from pathlib import Path
from infer_os.native.model import LlamaModel
from infer_os.models.bundled import TARGET
from infer_os.native.context import Context, ContextParams
from infer_os.native.residency import resident_bytes
from infer_os.runtime.pages import drop_pages, locked_bytes
from infer_os.runtime.memory import parse_smaps
path, load = Path(sys.argv[1]), sys.argv[2]
before, locked = drop_pages(path), locked_bytes()
with LlamaModel(path, load=load) as model, Context(model, ContextParams(64, 1)) as context:
    context.decode([1, 2, 3], 0)
    _, _, mapped = parse_smaps(open("/proc/self/smaps").read(), str(path.resolve()))
    maps = open("/proc/self/maps").read().count(str(path.resolve()))
    tail = resident_bytes(path, path.stat().st_size - (1 << 20))
    print(json.dumps({"before": before, "tail": tail, "mapped": mapped,
        "maps": maps, "locked": locked_bytes() - locked}))
"""


@pytest.fixture
def look(converted: Converter, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Load the bundled model, of which nothing is in the page cache, and say what is then."""
    path = tmp_path / "m.gguf"
    with path.open("wb") as handle:
        handle.write(converted(TARGET, "f16").read_bytes())
        os.fsync(handle.fileno())

    def run(load: str) -> dict[str, Any]:
        command = [sys.executable, "-c", LOOK, str(path), load]
        result = subprocess.run(command, capture_output=True, check=True, timeout=60)
        seen: dict[str, Any] = json.loads(result.stdout)
        if seen["before"]:
            pytest.skip("this file system keeps its pages (tmpfs)")
        return {**seen, "size": path.stat().st_size}

    return run


def test_mmap_maps_the_files_own_pages(look: Callable[..., dict[str, Any]]) -> None:
    seen = look("mmap")
    assert seen["maps"] > 0
    assert seen["size"] - MIB < seen["mapped"] <= seen["size"]
    assert seen["locked"] == 0


@pytest.mark.parametrize("load", ["fast", "direct"])
def test_copies_map_nothing(look: Callable[..., dict[str, Any]], load: str) -> None:
    seen = look(load)
    assert seen["maps"] == seen["mapped"] == seen["locked"] == 0


def test_direct_reads_past_the_page_cache(look: Callable[..., dict[str, Any]]) -> None:
    """The header is read through it (and some MiB ahead), the weights at the end are not.

    The last page is: only whole blocks can be read directly.
    """
    assert look("fast")["tail"] == MIB
    assert look("direct")["tail"] < PAGE


def test_locked_locks_what_it_maps(look: Callable[..., dict[str, Any]]) -> None:
    seen = look("locked")
    assert seen["mapped"] > seen["size"] - MIB
    assert seen["locked"] == seen["mapped"]


def test_every_load_mode_has_a_name() -> None:
    assert tuple(LOAD_MODES) == LOADS
