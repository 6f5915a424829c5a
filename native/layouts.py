"""Which of llama.cpp's other layouts of weights are used here, and why not.

llama.cpp can repack weights for the CPU it was compiled for (its extra buffer types), all of a
file's or none. Of these, AMX cannot be relied on: GCC 12 drops stores that ``_tile_loadconfig``
reads, and the first tile instruction ends the process with SIGILL
(https://github.com/ggml-org/llama.cpp/pull/26954). So if llama.cpp was compiled with AMX, a
child process first multiplies in every layout, and none is used unless it survives. The outcome is
kept in the cache folder, for as long as the library stays the same.
"""

from __future__ import annotations

import contextlib
import functools
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import llama_cpp

from infer_os.cache import cache_folder
from infer_os.files import write_file

from .abi import Status
from .cpu import AMX, repacked_types, used_features
from .library import load_library

_FILE = "layouts.json"
_LONGEST_S = 60.0
#: Signals caused by the code itself; others, such as SIGKILL, say nothing about the next run.
_FAULTS = (signal.SIGILL, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)
_CHILD = """
import ctypes, resource, sys
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
_, library, function, *arguments = sys.argv
sys.exit(getattr(ctypes.CDLL(library), function)(*(word.encode() for word in arguments)))
"""


@dataclass(frozen=True, slots=True)
class Layouts:
    """``types`` of weights that llama.cpp may repack; ``reason``: why there are none."""

    types: frozenset[str]
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Repacking:
    """What decides which weights get another layout: llama.cpp's types and ours."""

    moved: frozenset[str] = frozenset()
    taken: frozenset[str] = frozenset()

    def of(self, kinds: Iterable[str]) -> frozenset[str]:
        """Types of a file's weights that get another layout; if empty, the file is used as it is.

        llama.cpp moves every type that it can, or none, and our kernels cannot use what it moves.
        So a file with a type that both could take is left to ours, which are faster at it.

        Args:
            kinds: types of all of the file's tensors.
        """
        moved = self.moved.intersection(kinds)
        return frozenset() if moved & self.taken else moved


@dataclass(frozen=True, slots=True)
class Trial:
    """How a trial went: an empty ``complaint`` means well. ``lasting``: it would repeat."""

    complaint: str
    lasting: bool = True


def choose_layouts(features: Sequence[str], trial: Callable[[], Trial]) -> Layouts:
    """The layouts for an llama.cpp that was compiled for such a CPU.

    Args:
        features: as :func:`~.cpu.used_features` gives them.
        trial: multiplies in all layouts; only run if that may end the process.
    """
    types = repacked_types(features)
    if AMX in features and (complaint := trial().complaint):
        return Layouts(frozenset(), complaint)
    return Layouts(types)


@functools.cache
def llama_layouts() -> Layouts:
    """Those of the loaded llama.cpp on this machine."""
    return choose_layouts(used_features(), lambda: known_trial(cache_folder(), run_trial))


def run_trial(
    command: Sequence[str] = (), *, call: Sequence[str] = ("inferos_try_layouts",)
) -> Trial:
    """Multiply in all layouts, or by another function of our library, in a child process.

    Args:
        command: the child; by default this Python, which loads only our library.
        call: the function, and the strings that it takes; it returns an ``inferos_status``.
    """
    if not command:
        if not sys.executable:
            return Trial("it cannot be tried here: there is no Python to start", lasting=False)
        command = (sys.executable, "-I", "-S", "-c", _CHILD, load_library()._name, *call)
    try:
        code = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=_LONGEST_S, check=False,
        ).returncode  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return Trial(f"it could not be tried: {error}", lasting=False)
    if code == 0:
        return Trial("")
    if code == Status.NO_KERNEL:
        return Trial("the system does not allow it", lasting=False)
    if code < 0:
        name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
        return Trial(f"its code dies of {name} here", lasting=-code in _FAULTS)
    return Trial("its products are wrong here")


def known_trial(
    folder: Path,
    run: Callable[[], Trial],
    *,
    file: str = _FILE,
    libraries: Sequence[Path] | None = None,
) -> Trial:
    """The stored trial of this library on this machine; run and stored first if there is none.

    A folder that cannot be written only costs another trial.

    Args:
        folder: of the records.
        run: the trial.
        file: name of the record.
        libraries: what is tried; by default those with llama.cpp's kernels.
    """
    key = _fingerprint() if libraries is None else file_states(libraries)
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        record = json.loads((folder / file).read_text())
        if record["library"] == key and isinstance(record["complaint"], str):
            return Trial(record["complaint"])
    trial = run()
    if trial.lasting:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            record = {"library": key, "complaint": trial.complaint}
            write_file(folder / file, json.dumps(record).encode(), mode=0o600)
    return trial


def _fingerprint() -> list[str | int]:
    """What a trial is valid for: the machine, and the library with llama.cpp's kernels."""
    folder = Path(llama_cpp.llama_cpp._lib._name).resolve().parent
    return file_states(sorted(folder.glob("libggml-cpu*")))


def file_states(paths: Iterable[Path]) -> list[str | int]:
    """The machine's name, and the path, size and time of change of every file."""
    found: list[str | int] = [platform.node()]
    for path in paths:
        stat = path.stat()
        found += [str(path), stat.st_size, stat.st_mtime_ns]
    return found
