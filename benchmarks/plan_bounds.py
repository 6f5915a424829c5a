"""Tokens per second that ``plan`` gives as a bound, and measured ones, which must not be more.

    python benchmarks/plan_bounds.py [--model pythia-410m --type q4_0] [--folder DIR]

A row is a model, a number of threads and a number of sequences that step together. The bundled
model and one of random weights are measured by ``bench`` with an empty cache, where the fastest
round counts; the plan is made with the same threads, after the machine's bandwidth was measured.
Exits with 1 if a measurement is above its bound.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BUNDLED = HERE.parent / "models" / "bundled" / "austen-6m"
SEQUENCES = (1, 8)


def run(words: list[str]) -> str:
    """What a command writes to stdout."""
    done = subprocess.run(
        [sys.executable, "-m", "infer_os.cli", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"infer-os {' '.join(words)}: {done.stderr}")
    return done.stdout


def measured(path: Path, threads: int, folder: Path) -> dict[int, float]:
    """Tokens per second by sequences, the largest of the rounds."""
    rows = folder / "rows.jsonl"
    rows.unlink(missing_ok=True)
    run([
        "bench", str(path), "--depths", "0", "--batch", ",".join(map(str, SEQUENCES)),
        "--repeats", "3", "--tokens", "32", "--prompt-tokens", "16", "--context", "512",
        "--threads", str(threads), "--rows", str(rows),
    ])  # fmt: skip
    best: dict[int, float] = {}
    for line in rows.read_text().splitlines():
        row: dict[str, Any] = json.loads(line)
        if row["metric"] in ("decode", "batch_decode"):
            n = row["labels"].get("sequences", 1)
            best[n] = max(best.get(n, 0.0), row["high"])
    return best


def bound(path: Path, threads: int, n_seq: int) -> float:
    """The bound that ``plan`` gives."""
    batch = ["--parallel", str(n_seq)] if n_seq > 1 else []
    found = run([
        "plan", str(path), "--json", "--kv", "f16", "--context", "512",
        "--threads", str(threads), *batch,
    ])  # fmt: skip
    return float(json.loads(found)["predicted_decode_tokens_per_s"])


def main() -> int:
    """Measure, print the table, and say whether every bound held."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pythia-410m", help="a name of the catalog")
    parser.add_argument("--type", default="q4_0")
    parser.add_argument("--folder", type=Path, help="where the models are made, and deleted")
    arguments = parser.parse_args()
    above = 0
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="plan-bounds-") as place:
        folder = Path(place)
        os.environ["INFER_OS_CACHE"] = str(folder / "cache")
        bundled = folder / "austen-6m-q8_0.gguf"
        run(["convert", str(BUNDLED), "--type", "q8_0", "-o", str(bundled)])
        other = folder / f"{arguments.model}-{arguments.type}.gguf"
        words = [str(HERE / "random_gguf.py"), arguments.model, arguments.type, str(other)]
        subprocess.run([sys.executable, *words], check=True, capture_output=True)
        cores = json.loads(run(["system", "--json"]))["cpu"]["usable"]
        print("| model | threads | sequences | measured tokens/s | at most |")
        print("|---|---|---|---|---|")
        for path in (bundled, other):
            for threads in sorted({1, cores}):
                speeds = measured(path, threads, folder)
                for n_seq in SEQUENCES:
                    most = bound(path, threads, n_seq)
                    above += speeds[n_seq] > most
                    print(
                        f"| {path.stem} | {threads} | {n_seq} | {speeds[n_seq]:.1f} | {most:.1f} |",
                        flush=True,
                    )
    print(f"{above} above their bounds")
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
