"""Train the two bundled GPT-NeoX models, ``austen-6m`` and ``austen-draft``, on a CPU.

In: public-domain prose found inside Debian packages, fetched by package name with ``apt-get
download`` (nothing is installed). Out, next to this script: the folders ``austen-6m/`` and
``austen-draft/`` (config.json, model.safetensors in float16, tokenizer.json,
tokenizer_config.json and a model card), ``held-out.txt`` and ``SOURCES.md``.

Stages, in order: ``prepare`` (texts), ``tokenizer``, ``target``, ``draft``, ``export``
(measure and write); ``all`` runs every one. Each stage keeps its result in the work folder, and
the training stages go on from their last checkpoint. Needs numpy, torch, transformers,
tokenizers and safetensors; Infer-OS itself needs neither torch nor transformers. The stages are in
train_data.py, train_loops.py and train_export.py.

``bed`` trains a larger model, ``library-34m``, for experiments with quantization
(train_library.py, train_bed.py); it may be stopped at any time and goes on with the same command.
``bed-export`` writes its last checkpoint as a Hugging Face folder into ``--out``, also while it is
being trained.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import torch
from train_bed import export_bed, train_bed
from train_data import prepare, train_tokenizer
from train_export import export
from train_loops import train_draft, train_target

STAGES = ("prepare", "tokenizer", "target", "draft", "export")

# Without the first three glibc maps and unmaps memory for every activation, which halves the speed;
# the last keeps waiting threads from burning time that others on the machine could use.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "OMP_WAIT_POLICY": "PASSIVE",
}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled models from scratch.")
    choices = ("all", *STAGES, "bed", "bed-export")
    parser.add_argument("stage", nargs="?", default="all", choices=choices)
    work = Path(tempfile.gettempdir()) / "austen-train"
    parser.add_argument("--work", type=Path, default=work, help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="result folder")
    parser.add_argument("--minutes", type=float, default=45.0, help="wall time for the target")
    parser.add_argument("--draft-minutes", type=float, default=12.0, help="and for the draft")
    parser.add_argument("--tokens", type=int, default=60_000_000, help="read by the larger model")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args()


def main() -> None:
    """Run the requested stage, or all of them."""
    args = _arguments()
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    stages = STAGES if args.stage == "all" else (args.stage,)
    for stage in stages:
        if stage == "prepare":
            prepare(args.work)
        elif stage == "tokenizer":
            train_tokenizer(args.work)
        elif stage == "target":
            train_target(args.work, args.minutes)
        elif stage == "draft":
            train_draft(args.work, args.draft_minutes)
        elif stage == "bed":
            train_bed(args.work, args.tokens)
        elif stage == "bed-export":
            export_bed(args.work, args.out)
        else:
            export(args.work, args.out)


if __name__ == "__main__":
    main()
