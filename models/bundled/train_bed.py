"""The larger test bed, ``library-34m``: a GPT-NeoX of 34 M parameters, trained for some days.

In: a work folder with the texts of train_library.py. Out, in the same folder: bed.pt, the last
checkpoint (written every few minutes, whole or not at all); and a Hugging Face folder made from it
at any time. A run that is stopped writes its checkpoint first; one that is killed goes on from the
last.
"""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from train_data import encode, train_tokenizer
from train_export import perplexity, write_checkpoint
from train_library import prepare_library
from train_loops import Windows, optimizer, resume, save, step
from train_network import BED, SHORT, build, logits, rounded

ROWS = 2  # windows a step
SAVED_EVERY = 300.0  # seconds


def _tokens(work: Path) -> np.ndarray:
    """The training text's tokens, kept in a file."""
    path = work / "train-tokens.npy"
    if not path.exists():
        partial = work / "partial-tokens.npy"
        np.save(partial, encode(work, "train.txt").astype(np.uint16))
        partial.replace(path)
    return np.load(path, mmap_mode="r")  # (tokens,), uint16


def _rate(done: float) -> float:
    """1 % warm-up, constant, and down to a twentieth in the last quarter of the run.

    A checkpoint of the constant part can still be trained for longer: give more tokens.
    """
    return BED.peak_lr * min(1.0, done / 0.01 + 0.01, max(0.05, (1 - done) / 0.25))


def _loss(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the next tokens of ``rows`` (ROWS, SHORT + 1)."""
    scores = logits(model, rows[:, :-1]).float()  # (ROWS, SHORT, vocabulary)
    return nnf.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())


def train_bed(work: Path, tokens: int) -> None:
    """Train until ``tokens`` have been read, from the last checkpoint if there is one."""
    prepare_library(work)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(work, BED.vocab)
    ids = _tokens(work)
    model = build(BED)
    opt = optimizer(model, BED.peak_lr)
    path = work / "bed.pt"
    at = resume(path, model, opt)
    windows = Windows(ids, seed=1813 + at.step)
    model.train()
    # A quarter faster together, and only together: the plain attention of short windows, and one
    # compiled function. The first step takes half a minute longer.
    model.set_attn_implementation("eager")
    loss_of = torch.compile(lambda rows: _loss(model, rows))
    began = saved = time.monotonic() - at.seconds
    losses: list[float] = []
    print(f"{len(ids):,} tokens of text; at {at.tokens:,} of {tokens:,}", flush=True)
    ends: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: ends.append(number))  # a step takes half a second
    while at.tokens < tokens and not ends:
        taken = np.stack([windows.take(SHORT) for _ in range(ROWS)]).astype(np.int64)
        loss = loss_of(torch.from_numpy(taken))
        loss.backward()
        step(opt, model, _rate(at.tokens / tokens))
        losses.append(loss.item())
        at.step, at.tokens = at.step + 1, at.tokens + ROWS * SHORT
        now = time.monotonic()
        at.seconds = now - began
        if at.step % 50 == 0:
            mean = sum(losses) / len(losses)
            losses.clear()
            print(f"bed {at.step} {at.tokens} {at.seconds:.0f}s loss {mean:.4f}", flush=True)
        if now - saved > SAVED_EVERY:
            save(path, model, opt, at)
            saved = now
    save(path, model, opt, at)


def export_bed(work: Path, out: Path) -> None:
    """Write the last checkpoint as a Hugging Face folder, measured on choose.txt's beginning."""
    checkpoint = torch.load(work / "bed.pt", weights_only=True)
    model = build(BED, rounded(checkpoint["model"])).eval()
    held = encode(work, "choose.txt")[: 32 * SHORT]
    mean, _ = perplexity(model, held[1:], SHORT)
    card = (
        f"# {BED.name}\n\nA GPT-NeoX of {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M "
        "parameters, a test bed for quantization and nothing else. "
        f"Trained on {checkpoint['progress']['tokens']:,} tokens of `train.txt` in "
        f"{checkpoint['progress']['seconds'] / 3600:.1f} hours by `train.py bed`; perplexity "
        f"{math.exp(mean):.2f} on the first {len(held):,} tokens of `choose.txt`, in windows of "
        f"{SHORT}.\n"
    )
    folder = out / BED.name
    write_checkpoint(folder, BED, checkpoint["model"], work / "tokenizer.json", card)
    print(folder, json.dumps(checkpoint["progress"]), f"perplexity {math.exp(mean):.2f}")
