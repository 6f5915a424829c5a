"""What a LoRA adapter costs a conversion: with ``--lora`` and without, alternately.

    python benchmarks/merging.py PLACE [--geometry gpt-j-6B] [--layers 2] [--type q4_0] \
        [--rank 16] [--rounds 3]

PLACE is a folder on a disk with room for the checkpoint and the output (16 GB for gpt-j-6B). The
weights are random and the adapter changes every matrix of the layers. Prints seconds and peaks of
memory of both, and the ratio of the seconds with its range over the rounds. The target is at most
1.3 times the seconds of a plain conversion, within the 1.5 GiB of any conversion.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from conversion_memory import convert_and_watch
from random_model import GEOMETRIES, make_folder

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from random_adapter import random_adapter


def main() -> None:
    """Make the checkpoint and the adapter, take turns, print, remove them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="gpt-j-6B")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the model has")
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    given.place.mkdir(parents=True, exist_ok=True)
    source, adapter = given.place / given.geometry, given.place / "adapter"
    target = given.place / "made.gguf"
    try:
        make_folder(given.geometry, source, layers=given.layers)
        random_adapter(source, adapter, rank=given.rank, deviation=0.02)
        total = sum(file.stat().st_size for file in source.glob("*.safetensors"))
        print(f"{given.geometry}: {total / 1e9:.2f} GB of float16; rank {given.rank}")
        plain, merged = [], []
        for _ in range(given.rounds):
            plain.append(convert_and_watch(source, given.type, target))
            merged.append(convert_and_watch(source, given.type, target, ["--lora", str(adapter)]))
        for name, runs in (("plain", plain), ("--lora", merged)):
            anonymous = max(peak.get("RssAnon", 0) for _, peak in runs)
            seconds = [one for one, _ in runs]
            print(
                f"{given.type:8} {name:8} {np.median(seconds):7.1f} s "
                f"({min(seconds):.1f} to {max(seconds):.1f})  own memory {anonymous / 1e6:.0f} MB"
            )
        ratios = np.array([m[0] / p[0] for p, m in zip(plain, merged, strict=True)])
        print(
            f"{given.type:8} {np.median(ratios):.2f} times the seconds "
            f"({ratios.min():.2f} to {ratios.max():.2f})"
        )
    finally:
        for folder in (source, adapter):
            shutil.rmtree(folder, ignore_errors=True)
        target.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
