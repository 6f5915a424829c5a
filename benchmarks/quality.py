"""Write docs/quality.md: the bundled model over all weight types and KV caches.

    python benchmarks/quality.py [--output docs/quality.md] [--threads 2] [--windows 32]

Runs ``infer-os eval`` twice on the bundled held-out text, against the model's own weights as F32
with an F16 cache: every type of weights with an F16 cache, and every cache with Q8_0 weights.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_CACHES = ("f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "q8_0/q4_0", "f16:128,q8_0:512",
           "f16:128,q4_0:512", "f16:128,q8_0:256,q4_0:512")  # fmt: skip
# the part of the page that benchmarks/size_ladder.py makes
_LADDER = r"## Every size\n.*<!-- size_ladder.py: bed end -->"
_HEAD = """# Types, sizes and quality

`python benchmarks/quality.py` makes this page: the bundled model (5.8 M parameters) on its held-out
text, against its own weights as F32 with an F16 cache. Each window has {window} tokens, of which
the second half is scored. KL divergence is given in nats per token: its mean and its 99th
percentile. *Same top* is the share of tokens whose likeliest token is the reference's.

What `--calibrate` gains at each type is in [gptq.md](gptq.md).

Run with infer-os {version}, {llama}, {threads} threads.
"""


def evaluate(arguments: argparse.Namespace, *options: str) -> list[dict[str, Any]]:
    """The rows of one ``infer-os eval``."""
    command = [sys.executable, "-m", "infer_os.cli", "eval", "--window", str(arguments.window),
               "--windows", str(arguments.windows), "--threads", str(arguments.threads), "--json",
               *options]  # fmt: skip
    print(" ".join(command[3:]), file=sys.stderr)
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    rows: list[dict[str, Any]] = result["rows"]
    return rows


def value(rows: list[dict[str, Any]], metric: str, **labels: str) -> dict[str, Any]:
    """The row of a metric with these labels."""
    return next(
        row for row in rows
        if row["metric"] == metric and all(row["labels"].get(k) == v for k, v in labels.items())
    )  # fmt: skip


def line(rows: list[dict[str, Any]], kind: str, kv: str, head: str) -> str:
    """One line of a table."""
    found = {metric: value(rows, metric, type=kind, kv=kv)["median"]
             for metric in ("perplexity", "perplexity_change", "kl", "kl_p99", "top1")}  # fmt: skip
    tokens = value(rows, "perplexity", type=kind, kv=kv)["labels"]["tokens"]
    return (
        f"| {head} | {found['perplexity']:.3f} | {100 * found['perplexity_change']:+.2f} % "
        f"| {found['kl']:.1e} | {found['kl_p99']:.1e} | {100 * found['top1']:.2f} % | {tokens} |"
    )


def main() -> None:
    """Evaluate and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("docs/quality.md"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--windows", type=int, default=32)
    arguments = parser.parse_args()
    types = evaluate(arguments, "--types", "all")
    options = [option for kv in _CACHES for option in ("--kv", kv)]
    caches = evaluate(arguments, "--types", "q8_0", *options)
    first = types[0]
    versions = first["versions"]
    head = _HEAD.format(
        window=arguments.window, version=versions["infer-os"], llama=versions["llama.cpp"],
        threads=arguments.threads,
    )  # fmt: skip
    lines = [head]
    columns = "perplexity | change | KL | KL, 99 of 100 | same top | tokens |"
    rule = "|---|---|---|---|---|---|"
    lines += ["\n## Types of weights, F16 cache\n"]
    lines += [f"| `--type` | bits per weight | size | {columns}", f"|---|---|---{rule}"]
    for row in types:
        if row["metric"] == "perplexity":
            kind = row["labels"]["type"]
            bits = value(types, "bits_per_weight", type=kind)["median"]
            size = value(types, "file_bytes", type=kind)["median"]
            lines.append(line(types, kind, "f16", f"`{kind}` | {bits:.2f} | {size / 1e6:.1f} MB"))
    lines += ["\n## KV caches, Q8_0 weights\n",
              "A cache in stages is filled token by token, over fewer windows: compare its change "
              "and KL, not its\nperplexity.\n",
              f"| `--kv` | {columns}", f"|---{rule}"]  # fmt: skip
    lines += [line(caches, "q8_0", kv, f"`{kv}`") for kv in _CACHES]
    kept = re.search(_LADDER, arguments.output.read_text("utf-8"), re.DOTALL)
    if kept:
        lines += ["\n" + kept[0]]
    with tempfile.NamedTemporaryFile(
        "w", dir=arguments.output.parent, delete=False, suffix=".part"
    ) as file:
        file.write("\n".join(lines) + "\n")
    Path(file.name).chmod(0o644)
    Path(file.name).replace(arguments.output)


if __name__ == "__main__":
    main()
