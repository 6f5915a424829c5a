"""The training of the bundled models: the target on the text, the draft on the target's answers.

In: the work folder with the text and its tokenizer. Out, in the same folder: target.pt, lessons.npz
and draft.pt. The training of the target goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as nnf
from train_data import encode
from train_network import CONTEXT, DRAFT, SHORT, TARGET, build, generate, logits, rounded
from transformers import GPTNeoXForCausalLM

DRAFT_BATCH = 4
KEEP = 32  # answers of the target kept for each position of the draft's lessons


class Windows:
    """Endless shuffled windows of a token array, at a new random offset in each pass."""

    def __init__(self, ids: np.ndarray, seed: int) -> None:
        self.ids = ids
        self.random = np.random.default_rng(seed)
        self.queue: list[int] = []
        self.size = 0

    def take(self, size: int) -> np.ndarray:
        """The next window, ``size`` + 1 tokens."""
        if size != self.size:
            self.queue, self.size = [], size
        if not self.queue:
            first = int(self.random.integers(size))
            starts = np.arange(first, len(self.ids) - size - 1, size)
            self.queue = self.random.permutation(starts).tolist()
        start = self.queue.pop()
        row = self.ids[start : start + size + 1].copy()  # (size + 1,)
        # Half of them open with <|endoftext|>, as the windows of a perplexity run may.
        if self.random.random() < 0.5:
            row[0] = 0
        return row


@dataclass
class Progress:
    """How far a training run is; saved with its checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0


def _rate(peak: float, done: float) -> float:
    """Learning rate after the share ``done`` of the run: 3 % warm-up, then a cosine."""
    if done < 0.03:
        return peak * (0.02 + 0.98 * done / 0.03)
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (done - 0.03) / 0.97)))


def optimizer(model: GPTNeoXForCausalLM, peak: float) -> torch.optim.AdamW:
    """AdamW that lets matrices decay and vectors not."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.995), fused=True)


def save(path: Path, model: torch.nn.Module, opt: torch.optim.AdamW, at: Progress) -> None:
    """Write a checkpoint; the one before it stays until the new one is complete."""
    partial = path.with_suffix(".part")
    saved = {"model": model.state_dict(), "optimizer": opt.state_dict(), "progress": vars(at)}
    torch.save(saved, partial)
    partial.replace(path)


def resume(path: Path, model: torch.nn.Module, opt: torch.optim.AdamW) -> Progress:
    """Load a checkpoint if there is one; returns how far its training was."""
    if not path.exists():
        return Progress()
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["optimizer"])
    print("going on from", path.name, saved["progress"], flush=True)
    return Progress(**saved["progress"])


def step(opt: torch.optim.AdamW, model: torch.nn.Module, rate: float) -> None:
    """One optimizer step at the given rate, with the gradient clipped to norm 1."""
    for group in opt.param_groups:
        group["lr"] = rate
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    opt.zero_grad(set_to_none=False)


def train_target(work: Path, minutes: float) -> None:
    """Train the target for the given wall time; the last fifth on full-length windows."""
    model = build(TARGET)
    opt = optimizer(model, TARGET.peak_lr)
    path = work / "target.pt"
    at = resume(path, model, opt)
    windows = Windows(encode(work, "train.txt"), seed=1813 + at.step)
    started = time.monotonic() - at.seconds
    model.train()
    losses: list[float] = []
    saved = at.seconds
    while (done := at.seconds / (60 * minutes)) < 1:
        size = SHORT if done < 0.8 else CONTEXT
        # One window a step: over so few tokens, many small steps teach more than few large ones.
        rows = torch.from_numpy(windows.take(size))[None]  # (1, size + 1)
        scores = logits(model, rows[:, :-1]).float()
        loss = nnf.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        step(opt, model, _rate(TARGET.peak_lr, done))
        losses.append(loss.item())
        at.step, at.tokens = at.step + 1, at.tokens + size
        at.seconds = time.monotonic() - started
        if at.step % 100 == 0:
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"target {at.step} {at.tokens} {at.seconds:.0f}s loss {mean:.4f}", flush=True)
        if at.seconds - saved > 120:
            save(path, model, opt, at)
            saved = at.seconds
    save(path, model, opt, at)


# -------------------------------------------------------------------- distillation


def _written_by(target: GPTNeoXForCausalLM, ids: np.ndarray, minutes: float) -> np.ndarray:
    """Windows of text that the target writes after training prompts, at several temperatures."""
    random = np.random.default_rng(1815)
    parts: list[np.ndarray] = []
    started = time.monotonic()
    while len(parts) < 4 or time.monotonic() - started < 60 * minutes:
        starts = random.integers(0, len(ids) - 32, size=64)
        prompts = torch.from_numpy(ids[starts[:, None] + np.arange(32)])  # (64, 32)
        prompts[:, 0] = 0
        heat = (0.0, 0.6, 0.0, 0.9)[len(parts) % 4]
        text = generate(target, prompts, SHORT // 2 - 31, heat, seed=len(parts))  # (64, 257)
        parts.append(text[:, : SHORT // 2].reshape(-1, SHORT).numpy())
    return np.concatenate(parts)  # (windows, SHORT)


@torch.inference_mode()
def _teach(target: GPTNeoXForCausalLM, rows: np.ndarray, minutes: float) -> dict[str, np.ndarray]:
    """The target's likeliest next tokens and their shares, for as many windows as time allows."""
    tokens: list[np.ndarray] = []
    shares: list[np.ndarray] = []
    started = time.monotonic()
    for row in torch.from_numpy(rows).split(2):
        best = logits(target, row).float().softmax(-1).topk(KEEP, dim=-1)
        tokens.append(best.indices.to(torch.int16).numpy())
        shares.append((best.values / best.values.sum(-1, keepdim=True)).half().numpy())
        if time.monotonic() - started > 60 * minutes:
            break
    taught = np.concatenate(tokens)  # (windows, SHORT, KEEP)
    return {"rows": rows[: len(taught)], "tokens": taught, "shares": np.concatenate(shares)}


def _lessons(work: Path, minutes: float) -> dict[str, np.ndarray]:
    """The draft's training data: real and target-written windows with the target's answers."""
    path = work / "lessons.npz"
    if path.exists() and path.stat().st_mtime > (work / "target.pt").stat().st_mtime:
        return dict(np.load(path))
    target = build(TARGET, rounded(torch.load(work / "target.pt", weights_only=True)["model"]))
    target.eval()
    ids = encode(work, "train.txt")
    real = ids[: len(ids) // SHORT * SHORT].reshape(-1, SHORT)
    written = _written_by(target, ids, minutes * 0.4)
    order = np.random.default_rng(1816).permutation(len(real) + len(written))
    lessons = _teach(target, np.concatenate([real, written])[order], minutes * 0.6)
    own = (order[: len(lessons["rows"])] >= len(real)).sum()
    lessons["sizes"] = np.array([len(lessons["rows"]) - own, own]) * SHORT  # (real, written)
    np.savez(path, **lessons)
    print("lessons: tokens of real and of written text:", lessons["sizes"].tolist(), flush=True)
    return lessons


def _draft_loss(
    model: GPTNeoXForCausalLM, lessons: dict[str, np.ndarray], chosen: np.ndarray
) -> torch.Tensor:
    """Summed loss over the chosen windows, nearly all of it against the target's answers."""
    rows = torch.from_numpy(lessons["rows"][chosen])  # (batch, SHORT)
    best = torch.from_numpy(lessons["tokens"][chosen].astype(np.int64))
    share = torch.from_numpy(lessons["shares"][chosen].astype(np.float32))
    logp = logits(model, rows).float().log_softmax(-1)  # (batch, SHORT, VOCAB)
    # Cross-entropy to the target's answers: its KL divergence but for a constant.
    soft = -(share * logp.gather(-1, best)).sum()
    hard = nnf.nll_loss(logp[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum")
    return 0.95 * soft + 0.05 * hard


def train_draft(work: Path, minutes: float) -> None:
    """Distil the draft from the target; half of the time goes into preparing its lessons."""
    began = time.monotonic()
    lessons = _lessons(work, minutes / 2)
    minutes = max(minutes / 2, minutes - (time.monotonic() - began) / 60)
    model = build(DRAFT)
    opt = optimizer(model, DRAFT.peak_lr)
    random = np.random.default_rng(1817)
    queue: list[int] = []
    at = Progress()
    started = time.monotonic()
    model.train()
    losses: list[float] = []
    while (done := at.seconds / (60 * minutes)) < 1:
        if not queue:
            queue = random.permutation(len(lessons["rows"])).tolist()
        chosen = np.array([queue.pop() for _ in range(min(DRAFT_BATCH, len(queue)))])
        loss = _draft_loss(model, lessons, chosen) / (len(chosen) * SHORT)
        loss.backward()
        losses.append(loss.item())
        step(opt, model, _rate(DRAFT.peak_lr, done))
        at.step, at.tokens = at.step + 1, at.tokens + len(chosen) * SHORT
        at.seconds = time.monotonic() - started
        if at.step % 200 == 0:
            mean = sum(losses[-200:]) / 200
            print(f"draft {at.step} {at.tokens} {at.seconds:.0f}s loss {mean:.4f}", flush=True)
    save(work / "draft.pt", model, opt, at)
