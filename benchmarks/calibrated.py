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
import shutil
import sys
from pathlib import Path

from conversion_memory import Watched, watch
from random_model import GEOMETRIES, make_folder

_TEXT = Path(__file__).parents[1] / "models" / "bundled" / "held-out.txt"


def convert_killed(command: list[str], kills: list[float]) -> None:
    """Run to the end in spite of some kills; prints."""
    runs: list[Watched] = []
    while not runs or runs[-1].was_killed:
        done = watch(command, kills.pop(0) if kills else None)
        how = "killed" if done.was_killed else "ended"
        print(f"{how} after {done.seconds:.0f} s, {done.anonymous / 1e9:.2f} GB", flush=True)
        runs.append(done)
    print(runs[-1].said)
    minutes, largest = sum(run.seconds for run in runs) / 60, max(run.anonymous for run in runs)
    print(f"in all {minutes:.1f} minutes; {largest / 1e9:.2f} GB at most besides mapped files")


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
        whole = watch([*calibrated, "-o", str(second)])
    else:
        whole = watch([*base, "--statistics", str(statistics), "-o", str(second)])
    if whole.was_killed:
        sys.exit("the last conversion was killed; nothing was compared")
    same = filecmp.cmp(first, second, shallow=False)
    print(f"once more, {whole.seconds:.0f} s: {'the same bytes' if same else 'OTHER BYTES'}")
    if not given.keep:
        shutil.rmtree(place)
    sys.exit(not same)


if __name__ == "__main__":
    main()
