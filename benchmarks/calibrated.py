"""A calibrated conversion of a model of real size: its time, its memory, and a kill on the way.

    python benchmarks/calibrated.py PLACE [--geometry gpt-j-6B] [--layers N] [--type q4_0]
        [--memory 3GB] [--characters 400000] [--kills 300,3000] [--again] [--keep]

PLACE is a folder on a disk with room for the checkpoint, an intermediate Q8_0 file, the statistics
and the output (12, 7, 6 and 4 GB for gpt-j-6B); weights are random. The command is ``convert
--calibrate``; after each of the seconds of ``--kills`` (counted from the start of its run) it is
killed, and the same command goes on; so it does where somebody else kills it. Prints the seconds of
each run and of all of them, the largest memory apart from pages of mapped files, and the report of
the last one.

Then the file is made once more, without interruption, and the bytes are compared: from the
statistics that were kept, or with ``--again`` from the checkpoint, which takes as long as before.
"""

from __future__ import annotations

import argparse
import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from conversion_memory import status_bytes
from random_model import GEOMETRIES, make_folder

_TEXT = Path(__file__).parents[1] / "models" / "bundled" / "held-out.txt"


def run(command: list[str], kill_after: float | None) -> tuple[bool, float, int, str]:
    """Whether it ended by itself, its seconds, its largest anonymous memory, and what it said."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        while process.poll() is None:
            held = status_bytes(process.pid)
            peak = max(peak, held.get("RssAnon", 0) + held.get("RssShmem", 0))
            if kill_after is not None and time.perf_counter() - started > kill_after:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return False, time.perf_counter() - started, peak, ""
            time.sleep(0.1)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode == -signal.SIGKILL:
        return False, time.perf_counter() - started, peak, ""
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed: {said}")
    return True, time.perf_counter() - started, peak, said


def convert_killed(command: list[str], kills: list[float]) -> None:
    """Run to the end in spite of some kills; prints."""
    total, largest, is_done, said = 0.0, 0, False, ""
    while not is_done:
        is_done, seconds, peak, said = run(command, kills.pop(0) if kills else None)
        total, largest = total + seconds, max(largest, peak)
        print(f"{'ended' if is_done else 'killed'} after {seconds:.0f} s, {peak / 1e9:.2f} GB",
              flush=True)  # fmt: skip
    print(said.strip())
    print(f"in all {total / 60:.1f} minutes; {largest / 1e9:.2f} GB at most besides mapped files")


def main() -> None:
    """Make the checkpoint and the text, convert, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("place", type=Path)
    parser.add_argument("--geometry", default="gpt-j-6B", choices=GEOMETRIES)
    parser.add_argument("--layers", type=int, default=0)
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--memory", default="3GB")
    parser.add_argument("--characters", type=int, default=400_000)
    parser.add_argument("--kills", default="")
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--keep", action="store_true")
    given = parser.parse_args()
    place = given.place / "calibrated"
    source, text, statistics = place / given.geometry, place / "text.txt", place / "statistics"
    if not source.exists():
        make_folder(given.geometry, source, layers=given.layers)
    words = _TEXT.read_text()
    text.write_text((words * (1 + given.characters // len(words)))[: given.characters])
    first, second = place / "first.gguf", place / "second.gguf"
    base = [sys.executable, "-m", "infer_os.entry", "convert", str(source), "--type", given.type]
    calibrated = [*base, "--calibrate", str(text), "--method", "gptq", "--memory", given.memory]
    kills = [float(moment) for moment in given.kills.split(",") if moment]
    convert_killed([*calibrated, "--statistics", str(statistics), "-o", str(first)], kills)
    if given.again:
        shutil.rmtree(statistics)
        _, seconds, _, _ = run([*calibrated, "-o", str(second)], None)
    else:
        _, seconds, _, _ = run([*base, "--statistics", str(statistics), "-o", str(second)], None)
    same = filecmp.cmp(first, second, shallow=False)
    print(f"once more, {seconds:.0f} s: {'the same bytes' if same else 'OTHER BYTES'}")
    if not given.keep:
        shutil.rmtree(place)
    sys.exit(not same)


if __name__ == "__main__":
    main()
