"""Memory of a conversion, independent of the model's size: real geometries with random weights.

    python benchmarks/conversion_memory.py PLACE [--geometries gpt-j-6B gpt-neox-20b] [--type q4_0]

PLACE is a folder on a disk with room for the checkpoint and the output (53 GB for gpt-neox-20b).
The converter runs as a separate process; its anonymous memory and the pages of mapped files are
sampled ten times a second. The target is 1.5 GiB of memory apart from pages of the mapped source.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from random_model import GEOMETRIES, make_folder


def status_bytes(pid: int) -> dict[str, int]:
    """RssAnon, RssFile and RssShmem of a process, in bytes; empty if it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    rows = (line.split() for line in lines if line.startswith("Rss"))
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows}


@dataclass(frozen=True)
class Watched:
    """What became of a process: its seconds, its largest memory of each kind, and what it said."""

    seconds: float
    peak: dict[str, int]
    said: str
    was_killed: bool

    @property
    def anonymous(self) -> int:
        """Bytes apart from pages of mapped files."""
        return self.peak.get("RssAnon", 0) + self.peak.get("RssShmem", 0)


def watch(command: Sequence[str], kill_after: float | None = None) -> Watched:
    """Run a command to its end, or kill it after so many seconds; exits if it fails."""
    peak: dict[str, int] = {}
    with tempfile.TemporaryFile("w+") as output:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        while process.poll() is None:
            for name, n_bytes in status_bytes(process.pid).items():
                peak[name] = max(peak.get(name, 0), n_bytes)
            if kill_after is not None and time.perf_counter() - started > kill_after:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        output.seek(0)
        said = output.read().strip()
    was_killed = process.returncode == -signal.SIGKILL
    if process.returncode and not was_killed:
        sys.exit(f"{' '.join(command)} failed: {said}")
    return Watched(seconds, peak, said, was_killed)


def convert_and_watch(
    source: Path, kind: str, target: Path, options: Sequence[str] = ()
) -> tuple[float, dict[str, int]]:
    """Seconds of a conversion, and its largest memory of each kind."""
    done = watch([
        sys.executable, "-m", "infer_os.cli", "convert", str(source), "--type", kind,
        "-o", str(target), "--force", *options,
    ])  # fmt: skip
    if done.was_killed:
        sys.exit(f"{source}: the conversion was killed")
    return done.seconds, done.peak


def main() -> None:
    """Make each folder, convert it, print a row, remove both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--geometries", nargs="+", default=["pythia-160m", "gpt-j-6B"],
                        choices=GEOMETRIES)  # fmt: skip
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--keep-output", action="store_true")
    arguments = parser.parse_args()
    arguments.place.mkdir(parents=True, exist_ok=True)
    for name in arguments.geometries:
        source = arguments.place / name
        target = arguments.place / f"{name}-{arguments.type}.gguf"
        make_folder(name, source, dtype=arguments.dtype)
        n_bytes = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        seconds, peak = convert_and_watch(source, arguments.type, target)
        anonymous = peak.get("RssAnon", 0) + peak.get("RssShmem", 0)
        print(
            f"{name} {arguments.dtype} {n_bytes / 1e9:.1f} GB -> {arguments.type} "
            f"{target.stat().st_size / 1e9:.2f} GB: {seconds:.0f} s, memory without file pages "
            f"{anonymous / 2**30:.3f} GiB, file pages at most {peak.get('RssFile', 0) / 2**30:.2f} "
            "GiB",
            flush=True,
        )
        shutil.rmtree(source)
        if not arguments.keep_output:
            target.unlink()


if __name__ == "__main__":
    main()
