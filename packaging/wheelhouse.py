"""A folder of wheels that installs Infer-OS without a compiler, on any x86-64 processor since 2008.

    python packaging/wheelhouse.py OUT [--work DIR]

In: this source tree, and PyPI. Out: wheels of infer-os, of the pinned llama-cpp-python and of
everything else that they need, for this Python on this Linux:

    pip install --no-index --find-links OUT infer-os

llama-cpp-python compiles llama.cpp's kernels (libggml-cpu, and nothing else) for the processor that
it is built on. They are replaced by those for x86-64-v2, which NumPy's wheels need, too, and
compiled once more for each higher level of the x86-64 psABI; the loader of glibc takes those of the
highest level that the processor has, from the folders that it looks for beside a library
(glibc-hwcaps; glibc 2.33 or newer, else the first kernels are used). None of the levels has AMX.
Our own kernels are compiled for all processors anyway.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CMAKE = Path(sys.executable).parent / "cmake"

#: ggml's options for what every processor must have.
BASE = ("SSE42",)
#: And for what the higher levels bring.
LEVELS = {
    "x86-64-v3": ("AVX", "AVX2", "FMA", "F16C", "BMI2"),
    "x86-64-v4": ("AVX512",),
}
#: What the kernels need and small systems lack, found by the compiler.
_OPENMP = "libgomp.so.1"


def run(*words: str | Path, **environment: str) -> None:
    """Run a command; what it says is shown."""
    subprocess.run([*map(str, words)], check=True, env={**os.environ, **environment})


def pip(*words: str | Path, **environment: str) -> None:
    """Run this Python's pip."""
    run(sys.executable, "-m", "pip", "--disable-pip-version-check", *words, **environment)


def pinned() -> str:
    """The requirement of llama-cpp-python, as pyproject.toml spells it."""
    found = re.search(r'"(llama-cpp-python==[^"]+)"', (ROOT / "pyproject.toml").read_text())
    assert found, "pyproject.toml pins no llama-cpp-python"
    return found[1]


def options(level: str | None) -> list[str]:
    """CMake's options for a level, and for the processors below."""
    known = list(LEVELS)
    upto = known.index(level) + 1 if level else 0
    chosen = {*BASE, *(name for each in known[:upto] for name in LEVELS[each])}
    names = [*BASE, *(name for names in LEVELS.values() for name in names)]
    switches = [f"-DGGML_{name}={'ON' if name in chosen else 'OFF'}" for name in names]
    return ["-DGGML_NATIVE=OFF", *switches]


def fetch_source(work: Path) -> Path:
    """Download and unpack llama-cpp-python's source; returns its folder."""
    pip("download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", work, pinned())
    archive = next(work.glob("llama_cpp_python-*.tar.gz"))
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    return work / archive.name.removesuffix(".tar.gz")


def build_kernels(source: Path, level: str | None, build: Path) -> Path:
    """Compile llama.cpp's kernels for a level, or the processors below; returns the library."""
    place = "$ORIGIN/../.." if level else "$ORIGIN"
    run(
        CMAKE, "-S", source / "vendor" / "llama.cpp", "-B", build, "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=ON", "-DLLAMA_CURL=OFF", "-DLLAMA_BUILD_COMMON=OFF",
        "-DLLAMA_BUILD_TESTS=OFF", "-DLLAMA_BUILD_TOOLS=OFF", "-DLLAMA_BUILD_EXAMPLES=OFF",
        "-DLLAMA_BUILD_SERVER=OFF", "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
        f"-DCMAKE_INSTALL_RPATH={place}", *options(level),
    )  # fmt: skip
    run(CMAKE, "--build", build, "--target", "ggml-cpu", "--parallel", str(os.cpu_count() or 1))
    return next(build.rglob("libggml-cpu.so.0")).resolve()


def openmp() -> Path:
    """The OpenMP library that the compiler links against."""
    compiler = os.environ.get("CXX", "c++")
    found = subprocess.run(
        [compiler, f"-print-file-name={_OPENMP}"], check=True, capture_output=True, text=True
    )
    path = Path(found.stdout.strip()).resolve()
    assert path.is_file(), f"{compiler} has no {_OPENMP}"
    return path


def add_levels(wheel: Path, source: Path, work: Path, out: Path) -> None:
    """Put kernels for every processor, and OpenMP, into the wheel, and that into the wheelhouse."""
    unpacked = work / "unpacked"
    run(sys.executable, "-m", "wheel", "unpack", wheel, "-d", unpacked)
    content = next(unpacked.iterdir())
    libraries = content / "llama_cpp" / "lib"
    shutil.copy(openmp(), libraries / _OPENMP)
    first = build_kernels(source, None, work / "base")
    for native in libraries.glob("libggml-cpu.so*"):
        shutil.copy(first, native)
    for level in LEVELS:
        folder = libraries / "glibc-hwcaps" / level
        folder.mkdir(parents=True)
        shutil.copy(build_kernels(source, level, work / level), folder / "libggml-cpu.so.0")
    run(sys.executable, "-m", "wheel", "pack", content, "-d", out)


def make_wheelhouse(out: Path, work: Path) -> None:
    """Fill ``out`` with wheels; ``work`` is for what lies on the way."""
    out.mkdir(parents=True, exist_ok=True)
    source = fetch_source(work)
    pip("wheel", "--no-deps", "-w", work / "native", pinned())
    add_levels(next((work / "native").glob("*.whl")), source, work, out)
    # the wheel that has just been made comes before the source of the same version
    pip("wheel", "--no-deps", "--no-cache-dir", "-w", out, ROOT, PIP_FIND_LINKS=str(out))
    ours = next(out.glob("infer_os-*.whl"))
    pip("download", "--only-binary", ":all:", "--find-links", out, "-d", out, ours)


def main() -> None:
    """Make the wheelhouse."""
    parser = argparse.ArgumentParser(description="Make a folder of wheels.")
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, help="keep what is compiled here")
    given = parser.parse_args()
    if given.work:
        given.work.mkdir(parents=True, exist_ok=True)
        make_wheelhouse(given.out.resolve(), given.work.resolve())
    else:
        with tempfile.TemporaryDirectory() as work:
            make_wheelhouse(given.out.resolve(), Path(work))


if __name__ == "__main__":
    main()
