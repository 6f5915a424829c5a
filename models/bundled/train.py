"""Train the two bundled GPT-NeoX models, ``austen-6m`` and ``austen-draft``, on a CPU.

In: public-domain prose found inside Debian packages, fetched by package name with ``apt-get
download`` (nothing is installed). Out, next to this script: the folders ``austen-6m/`` and
``austen-draft/`` (config.json, model.safetensors in float16, tokenizer.json,
tokenizer_config.json and a model card), ``held-out.txt`` and ``SOURCES.md``.

Stages, in order: ``prepare`` (texts), ``tokenizer``, ``target``, ``draft``, ``export``
(measure and write); ``all`` runs every one. Each stage keeps its result in the work folder, and
the training stages go on from their last checkpoint. Needs numpy, torch, transformers,
tokenizers and safetensors; Infer-OS itself needs neither torch nor transformers.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

EOT = "<|endoftext|>"
VOCAB = 2048
CONTEXT = 2048
SHORT = 512
DRAFT_BATCH = 4
KEEP = 32  # answers of the target kept for each position of the draft's lessons
STAGES = ("prepare", "tokenizer", "target", "draft", "export")

# Without the first three glibc maps and unmaps memory for every activation, which halves the speed;
# the last keeps waiting threads from burning time that others on the machine could use.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True)
class Source:
    """One book: where it is found and how its chapters are recognised."""

    key: str
    title: str
    author: str
    year: int
    package: str
    member: str
    heading: str
    held_out: int


@dataclass(frozen=True)
class Shape:
    """The sizes of one model and the settings of its training."""

    name: str
    hidden: int
    heads: int
    layers: int
    inner: int
    peak_lr: float
    dropout: float


AUSTEN_PACKAGE = "r-cran-janeaustenr"
AUSTEN_MEMBER = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
CHAPTER = r"^(?:CHAPTER|Chapter) (?:[IVXL]+|\d+)\.?$"


def _austen(key: str, title: str, year: int, held: int = 2) -> Source:
    return Source(key, title, "Jane Austen", year, AUSTEN_PACKAGE, AUSTEN_MEMBER, CHAPTER, held)


SOURCES = (
    _austen("SENSE AND SENSIBILITY", "Sense and Sensibility", 1811),
    _austen("PRIDE AND PREJUDICE", "Pride and Prejudice", 1813),
    _austen("MANSFIELD PARK", "Mansfield Park", 1814, held=1),
    _austen("EMMA", "Emma", 1815),
    _austen("NORTHANGER ABBEY", "Northanger Abbey", 1817),
    _austen("PERSUASION", "Persuasion", 1817),
    Source(
        key="pg1661",
        title="The Adventures of Sherlock Holmes",
        author="Arthur Conan Doyle",
        year=1892,
        package="golang-github-pierrec-lz4-dev",
        member="usr/share/gocode/src/github.com/pierrec/lz4/testdata/pg1661.txt",
        heading=r"^(?:ADVENTURE )?[IVX]+\. [A-Z][A-Z' -]+$",
        held_out=1,
    ),
)
TARGET = Shape("austen-6m", 256, 4, 6, 1024, peak_lr=1.2e-3, dropout=0.05)
DRAFT = Shape("austen-draft", 128, 2, 1, 512, peak_lr=4e-3, dropout=0.0)


# ---------------------------------------------------------------------------- texts


def _fetch(package: str, work: Path) -> tuple[Path, str]:
    """Download and unpack one Debian package; returns its folder and its version."""
    folder = work / "packages" / package
    if not list(folder.glob("*.deb")):
        folder.mkdir(parents=True, exist_ok=True)
        command = ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", package]
        subprocess.run(command, cwd=folder, check=True)
    deb = next(folder.glob("*.deb"))
    subprocess.run(["dpkg-deb", "-x", str(deb), str(folder / "root")], check=True)
    field = ["dpkg-deb", "-f", str(deb), "Version"]
    version = subprocess.run(field, check=True, capture_output=True, text=True).stdout.strip()
    return folder / "root", version


def _r_strings(blob: bytes) -> list[str]:
    """The strings of one character vector in R's XDR serialization (version 2 or 3)."""
    at = 14
    if struct.unpack_from(">i", blob, 2)[0] == 3:
        at += 4 + struct.unpack_from(">i", blob, at)[0]  # version 3 names its encoding first
    flags, count = struct.unpack_from(">ii", blob, at)
    if flags & 0xFF != 16:
        return []
    at += 8
    lines: list[str] = []
    for _ in range(count):
        size = struct.unpack_from(">i", blob, at + 4)[0]
        at += 8
        lines.append(blob[at : at + max(size, 0)].decode("utf-8"))
        at += max(size, 0)
    return lines


def _r_vectors(database: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: records of a size and a zlib stream."""
    rest = database
    while len(rest) > 4:
        unpacker = zlib.decompressobj()
        blob = unpacker.decompress(rest[4:])
        yield _r_strings(blob)
        rest = unpacker.unused_data


def _read_lines(source: Source, root: Path) -> list[str]:
    """The raw lines of one book."""
    raw = (root / source.member).read_bytes()
    if source.member.endswith(".rdb"):
        return next(v for v in _r_vectors(raw) if v and v[0].strip().upper() == source.key)
    return raw.decode("utf-8-sig").splitlines()


def _paragraphs(lines: list[str]) -> str:
    """Unwrap hard-wrapped lines: one line per paragraph, with blank lines between them."""
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].extend(line.split())
        elif blocks[-1]:
            blocks.append([])
    text = "\n\n".join(" ".join(words) for words in blocks if words)
    return text.replace("_", "")


def _chapters(source: Source, lines: list[str]) -> list[str]:
    """Cut one book at its chapter headings; anything before the first one is dropped."""
    starts = [i for i, line in enumerate(lines) if re.match(source.heading, line.strip())]
    ends = [*starts[1:], len(lines)]
    closing = re.compile(r"^(?:(?:THE END|FINIS|Finis)\.?$|A NOTE ON THE TEXT|End of the Project)")
    chapters: list[str] = []
    for start, end in zip(starts, ends, strict=True):
        body = [s for s in lines[start:end] if not re.match(r"^\s*VOLUME [IVX]+\s*$", s)]
        stop = next((i for i, s in enumerate(body) if closing.match(s.strip())), len(body))
        chapters.append(_paragraphs(body[:stop]) + "\n")
    return chapters


def prepare(work: Path) -> None:
    """Write train.txt, held-out.txt and sources.json into the work folder."""
    train: list[str] = []
    held: list[str] = []
    report: list[dict[str, Any]] = []
    for source in SOURCES:
        root, version = _fetch(source.package, work)
        chapters = _chapters(source, _read_lines(source, root))
        train += chapters[: -source.held_out]
        held += chapters[-source.held_out :]
        report.append(
            {
                "title": source.title,
                "author": source.author,
                "year": source.year,
                "package": source.package,
                "version": version,
                "member": source.member,
                "chapters": len(chapters),
                "held_out": source.held_out,
                "bytes": sum(len(c.encode()) for c in chapters),
                "held_bytes": sum(len(c.encode()) for c in chapters[-source.held_out :]),
            }
        )
        print(source.title, len(chapters), "chapters", report[-1]["bytes"], "bytes", flush=True)
    (work / "train.txt").write_text(EOT.join(train), encoding="utf-8")
    (work / "held-out.txt").write_text(EOT.join(held), encoding="utf-8")
    (work / "sources.json").write_text(json.dumps(report, indent=1), encoding="utf-8")


# ------------------------------------------------------------------------ tokenizer


def train_tokenizer(work: Path) -> None:
    """Train the byte-level BPE on the training text; writes tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[EOT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    documents = (work / "train.txt").read_text(encoding="utf-8").split(EOT)
    tokenizer.train_from_iterator(documents, trainer)
    data = json.loads(tokenizer.to_str())
    # Readers older than tokenizers 0.20 know merges as "a b" only; newer ones take both forms.
    merges = data["model"]["merges"]
    data["model"]["merges"] = [m if isinstance(m, str) else " ".join(m) for m in merges]
    text = json.dumps(data, ensure_ascii=False, indent=1)
    (work / "tokenizer.json").write_text(text + "\n", encoding="utf-8")


def _encode(work: Path, name: str) -> np.ndarray:
    """The token ids of a text file, one <|endoftext|> before every document."""
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    ids: list[int] = []
    for document in (work / name).read_text(encoding="utf-8").split(EOT):
        ids.append(0)
        ids += tokenizer.encode(document).ids
    return np.array(ids, dtype=np.int64)  # (tokens,)


# --------------------------------------------------------------------------- models


def config_json(shape: Shape) -> dict[str, Any]:
    """The config.json of a model, with the rotary keys under their classic names."""
    return {
        "architectures": ["GPTNeoXForCausalLM"],
        "model_type": "gpt_neox",
        "vocab_size": VOCAB,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "num_hidden_layers": shape.layers,
        "intermediate_size": shape.inner,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "gelu_fast",
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
        "attention_bias": True,
        "layer_norm_eps": 1e-05,
        "initializer_range": 0.02,
        "hidden_dropout": 0.0,
        "attention_dropout": 0.0,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }


def build(shape: Shape, state: dict[str, torch.Tensor] | None = None) -> GPTNeoXForCausalLM:
    """A float32 model, fresh or with the given weights."""
    config = GPTNeoXConfig(**config_json(shape))
    config.dtype = torch.float32
    # The same tanh GELU as gelu_fast, in one kernel instead of eight.
    config.hidden_act = "gelu_pytorch_tanh"
    config.hidden_dropout = shape.dropout
    config.use_cache = False
    torch.manual_seed(1811)
    model = GPTNeoXForCausalLM(config).float()
    if state is None:
        # Smaller output projections keep the residual stream from growing with depth.
        for name, weight in model.named_parameters():
            if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
                weight.data.mul_(1 / math.sqrt(2 * shape.layers))
    else:
        model.load_state_dict(state)
    return model


def rounded(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights as float16 stores them, in float32."""
    return {name: weight.half().float() for name, weight in state.items()}


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


def _optimizer(model: GPTNeoXForCausalLM, peak: float) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak, betas=(0.9, 0.995), fused=True)


def _checkpoint(path: Path, model: torch.nn.Module, opt: torch.optim.AdamW, at: Progress) -> None:
    partial = path.with_suffix(".part")
    saved = {"model": model.state_dict(), "optimizer": opt.state_dict(), "progress": vars(at)}
    torch.save(saved, partial)
    partial.replace(path)


def _resume(path: Path, model: torch.nn.Module, opt: torch.optim.AdamW) -> Progress:
    if not path.exists():
        return Progress()
    saved = torch.load(path, weights_only=True)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["optimizer"])
    print("going on from", path.name, saved["progress"], flush=True)
    return Progress(**saved["progress"])


def _step(opt: torch.optim.AdamW, model: torch.nn.Module, rate: float) -> None:
    """One optimizer step at the given rate, with the gradient clipped to norm 1."""
    for group in opt.param_groups:
        group["lr"] = rate
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    opt.step()
    opt.zero_grad(set_to_none=False)


def _logits(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=rows).logits  # (batch, positions, VOCAB)


def train_target(work: Path, minutes: float) -> None:
    """Train the target for the given wall time; the last fifth on full-length windows."""
    model = build(TARGET)
    opt = _optimizer(model, TARGET.peak_lr)
    path = work / "target.pt"
    at = _resume(path, model, opt)
    windows = Windows(_encode(work, "train.txt"), seed=1813 + at.step)
    started = time.monotonic() - at.seconds
    model.train()
    losses: list[float] = []
    saved = at.seconds
    while (done := at.seconds / (60 * minutes)) < 1:
        size = SHORT if done < 0.8 else CONTEXT
        # One window a step: over so few tokens, many small steps teach more than few large ones.
        rows = torch.from_numpy(windows.take(size))[None]  # (1, size + 1)
        scores = _logits(model, rows[:, :-1]).float()
        loss = nnf.cross_entropy(scores.flatten(0, 1), rows[:, 1:].flatten())
        loss.backward()
        _step(opt, model, _rate(TARGET.peak_lr, done))
        losses.append(loss.item())
        at.step, at.tokens = at.step + 1, at.tokens + size
        at.seconds = time.monotonic() - started
        if at.step % 100 == 0:
            mean = sum(losses[-100:]) / len(losses[-100:])
            print(f"target {at.step} {at.tokens} {at.seconds:.0f}s loss {mean:.4f}", flush=True)
        if at.seconds - saved > 120:
            _checkpoint(path, model, opt, at)
            saved = at.seconds
    _checkpoint(path, model, opt, at)


# -------------------------------------------------------------------- distillation


@torch.inference_mode()
def generate(
    model: GPTNeoXForCausalLM, prompts: torch.Tensor, count: int, temperature: float, seed: int
) -> torch.Tensor:
    """Continue every prompt by ``count`` tokens; temperature 0 is greedy."""
    random = torch.Generator().manual_seed(seed)
    out = [prompts]  # (batch, prompt)
    cache = None
    step = prompts
    for _ in range(count):
        result = model(input_ids=step, past_key_values=cache, use_cache=True)
        cache = result.past_key_values
        scores = result.logits[:, -1].float()  # (batch, VOCAB)
        if temperature == 0:
            step = scores.argmax(-1, keepdim=True)
        else:
            step = torch.multinomial((scores / temperature).softmax(-1), 1, generator=random)
        out.append(step)
    return torch.cat(out, dim=1)  # (batch, prompt + count)


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
        best = _logits(target, row).float().softmax(-1).topk(KEEP, dim=-1)
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
    ids = _encode(work, "train.txt")
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
    logp = _logits(model, rows).float().log_softmax(-1)  # (batch, SHORT, VOCAB)
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
    opt = _optimizer(model, DRAFT.peak_lr)
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
        _step(opt, model, _rate(DRAFT.peak_lr, done))
        at.step, at.tokens = at.step + 1, at.tokens + len(chosen) * SHORT
        at.seconds = time.monotonic() - started
        if at.step % 200 == 0:
            mean = sum(losses[-200:]) / 200
            print(f"draft {at.step} {at.tokens} {at.seconds:.0f}s loss {mean:.4f}", flush=True)
    _checkpoint(work / "draft.pt", model, opt, at)


# ----------------------------------------------------------------------- evaluation


@torch.inference_mode()
def perplexity(model: GPTNeoXForCausalLM, ids: np.ndarray, size: int) -> tuple[float, float]:
    """Mean and total loss over non-overlapping windows: <|endoftext|> and size - 1 tokens."""
    total = 0.0
    for start in range(0, len(ids), size - 1):
        part = torch.from_numpy(ids[start : start + size - 1])
        row = torch.cat([torch.zeros(1, dtype=torch.int64), part[:-1]])[None]
        scores = model(input_ids=row).logits[0].float()  # (size - 1, VOCAB)
        total += nnf.cross_entropy(scores, part, reduction="sum").item()
    return total / len(ids), total


@torch.inference_mode()
def agreement(
    target: GPTNeoXForCausalLM, draft: GPTNeoXForCausalLM, rows: torch.Tensor, skip: int
) -> float:
    """Share of positions from ``skip`` on where both models would choose the same token."""
    hits = 0
    for row in rows.split(8):
        same = target(input_ids=row).logits.argmax(-1) == draft(input_ids=row).logits.argmax(-1)
        hits += int(same[:, skip:].sum())
    return hits / (rows.shape[0] * (rows.shape[1] - skip))


def _samples(model: GPTNeoXForCausalLM, tokenizer: Tokenizer) -> list[dict[str, str]]:
    asked = (
        ("It is a truth universally acknowledged", 0.0),
        ("It is a truth universally acknowledged", 0.8),
        ("Holmes looked at the letter", 0.8),
    )
    found: list[dict[str, str]] = []
    for prompt, heat in asked:
        ids = torch.tensor([[0, *tokenizer.encode(prompt).ids]])
        text = tokenizer.decode(generate(model, ids, 80, heat, seed=7)[0].tolist())
        found.append({"how": "greedy" if heat == 0 else f"temperature {heat}", "text": text})
    return found


def _measure(work: Path) -> dict[str, Any]:
    """All figures of the model cards, on the rounded weights in float32."""
    saved = {n: torch.load(work / f"{n}.pt", weights_only=True) for n in ("target", "draft")}
    target = build(TARGET, rounded(saved["target"]["model"])).eval()
    draft = build(DRAFT, rounded(saved["draft"]["model"])).eval()
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    held = _encode(work, "held-out.txt")
    size = len((work / "held-out.txt").read_text("utf-8").replace(EOT, "").encode())
    result: dict[str, Any] = {"held_tokens": len(held), "held_bytes": size}
    result["train_tokens"] = len(_encode(work, "train.txt"))
    for name, model, shape in (("target", target, TARGET), ("draft", draft, DRAFT)):
        own: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
        own |= saved[name]["progress"]
        for window in (SHORT, CONTEXT):
            mean, total = perplexity(model, held[1:], window)
            own[f"ppl_{window}"] = math.exp(mean)
            own[f"bpb_{window}"] = total / math.log(2) / size
        own["samples"] = _samples(model, tokenizer)
        own["shape"] = shape.name
        result[name] = own
    rows = torch.from_numpy(held[: len(held) // SHORT * SHORT].reshape(-1, SHORT))
    result["accept_held"] = agreement(target, draft, rows, skip=0)
    starts = np.linspace(0, len(held) - 33, 64).astype(int)
    prompts = torch.from_numpy(held[starts[:, None] + np.arange(32)])  # (64, 32)
    written = generate(target, prompts, 129, 0.0, seed=0)
    # Position p predicts token p + 1: from the prompt's last one on, the target's own choice.
    result["accept_greedy"] = agreement(target, draft, written[:, :-1], skip=31)
    return result


# ---------------------------------------------------------------------------- cards


def _card(shape: Shape, figures: dict[str, Any]) -> str:
    """The model card of one folder."""
    own = figures["target" if shape is TARGET else "draft"]
    millions = own["parameters"] / 1e6
    data = figures["train_tokens"] if shape is TARGET else sum(figures["lesson_tokens"])
    lines = [
        "---\nlicense: apache-2.0\nlanguage: en\npipeline_tag: text-generation\n---\n",
        f"# {shape.name}\n",
        f"A GPT-NeoX language model of {millions:.2f} M parameters that writes English prose in "
        "the manner of Jane Austen. " + _purpose(shape),
        "\nIntended for tests, demonstrations and experiments with quantization, long contexts "
        "and speculative decoding. Not for information: it is far too small to know anything, "
        "and what it writes is invented. It was trained on English prose of 1811-1892 and shares "
        "the views of that time; it was not tuned to follow instructions or to be safe.\n",
        "## Shape\n",
        f"Hidden size {shape.hidden}, {shape.heads} heads, {shape.layers} layer(s), feed-forward "
        f"{shape.inner}, vocabulary {VOCAB} (byte-level BPE), parallel residual, rotary positions "
        f"on a quarter of each head, up to {CONTEXT} tokens; weights in float16. "
        f"`{EOT}` (id 0) begins a text and ends it.\n",
        "## Training\n",
        f"Data: {figures['train_tokens']:,} tokens of Jane Austen's six novels and The Adventures "
        "of Sherlock Holmes (`SOURCES.md` in the folder above). "
        f"{own['step']:,} steps ({own['tokens'] / 1e6:.2f} M tokens, "
        f"{own['tokens'] / data:.1f} times the data) in {own['seconds'] / 60:.0f} minutes of wall "
        "time on a share of a two-core CPU, bfloat16 autocast over float32 weights; AdamW (betas "
        f"0.9 and 0.995, weight decay 0.1), peak rate {shape.peak_lr:g}, 3 % warm-up then a "
        f"cosine, gradient norm at most 1, dropout {shape.dropout:g}. " + _method(shape, figures),
        "`train.py` in the folder above does it all again.\n",
        "## Measured\n",
        f"On `held-out.txt` ({figures['held_bytes']:,} bytes, {figures['held_tokens']:,} tokens, "
        "in neither training set), with the float16 weights computed in float32, in "
        f"non-overlapping windows, each `{EOT}` followed by the window's text, all of whose "
        "tokens are scored:\n",
        "| window (tokens) | perplexity per token | bits per byte |\n| --- | --- | --- |",
    ]
    for window in (SHORT, CONTEXT):
        lines.append(f"| {window} | {own[f'ppl_{window}']:.2f} | {own[f'bpb_{window}']:.3f} |")
    if shape is DRAFT:
        lines += _acceptance(figures)
    lines.append("\n## Examples\n")
    for sample in own["samples"]:
        quoted = "\n".join(f"> {line}".rstrip() for line in sample["text"].strip().splitlines())
        lines.append(f"{sample['how'].capitalize()}, 80 tokens:\n\n{quoted}\n")
    lines += ["## Licence\n", "Weights: Apache-2.0. Training and held-out texts: public domain."]
    return "\n".join(lines) + "\n"


def _purpose(shape: Shape) -> str:
    if shape is TARGET:
        return "Its folder is an ordinary Hugging Face checkpoint; `austen-draft` is its draft."
    return "It is the draft for speculative decoding with `austen-6m`, whose tokenizer it shares."


def _method(shape: Shape, figures: dict[str, Any]) -> str:
    if shape is TARGET:
        return f"One window of {SHORT} tokens a step, for the last fifth of the time of {CONTEXT}."
    real, written = figures["lesson_tokens"]
    return (
        f"{DRAFT_BATCH} windows of {SHORT} tokens a step, out of {real:,} tokens of the training "
        f"text and {written:,} that the target wrote (in turn greedily and at temperatures 0.6 "
        "and 0.9). Loss: 0.95 "
        f"cross-entropy to the target's {KEEP} likeliest next tokens, 0.05 to the text's own."
    )


def _acceptance(figures: dict[str, Any]) -> list[str]:
    return [
        "\nShare of positions where the draft's likeliest token is the target's, the acceptance "
        "of one greedily drafted token:\n",
        "| text | share |\n| --- | --- |",
        f"| held-out text, windows of {SHORT} | {figures['accept_held']:.3f} |",
        "| 128 tokens written greedily by the target after each of 64 held-out prompts of 32 "
        f"tokens | {figures['accept_greedy']:.3f} |",
    ]


def _sources_md(report: list[dict[str, Any]]) -> str:
    lines = [
        "# Sources of the bundled models' texts\n",
        "All texts are in the public domain: their authors died in 1817 (Jane Austen) and 1930 "
        "(Arthur Conan Doyle). They were taken out of Debian packages:\n",
        "| work | package and version | file | chapters | bytes | held out |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for item in report:
        lines.append(
            f"| {item['author']}: {item['title']} ({item['year']}) | `{item['package']}` "
            f"{item['version']} | `{item['member']}` | {item['chapters']} | {item['bytes']:,} | "
            f"last {item['held_out']} ({item['held_bytes']:,} bytes) |"
        )
    lines.append(
        "\nWhat was done: front matter, volume titles, closing words, notes on the edition and "
        "licence headers dropped; cut at the chapter headings (for Sherlock Holmes, at the "
        "stories), which stay; hard-wrapped lines joined to paragraphs with a blank line "
        "between two; runs of blanks made one; the underscores that marked italics dropped. "
        "Spelling and punctuation are as found.\n\n"
        f"Documents are separated by `{EOT}`. `held-out.txt` has the last chapters (see the "
        "table), in this order; no part of it was in the training text of either model or of "
        "the tokenizer. The texts carry no licence; the packages' own licences cover their code."
    )
    return "\n".join(lines) + "\n"


def export(work: Path, out: Path) -> None:
    """Measure both models and write every file that is bundled."""
    figures = _measure(work)
    figures["lesson_tokens"] = np.load(work / "lessons.npz")["sizes"].tolist()
    (work / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "bos_token": EOT,
        "eos_token": EOT,
        "unk_token": EOT,
    }
    for shape, name in ((TARGET, "target"), (DRAFT, "draft")):
        folder = out / shape.name
        folder.mkdir(parents=True, exist_ok=True)
        state = torch.load(work / f"{name}.pt", weights_only=True)["model"]
        halves = {key: weight.half().contiguous() for key, weight in state.items()}
        weights = folder / "model.safetensors"
        save_file(halves, str(weights), metadata={"format": "pt"})
        weights.chmod(0o644)  # safetensors makes it readable for its owner only
        texts = {
            "config.json": json.dumps(config_json(shape), indent=2) + "\n",
            "tokenizer_config.json": json.dumps(tokenizer_config, indent=2) + "\n",
            "tokenizer.json": (work / "tokenizer.json").read_text(encoding="utf-8"),
            "README.md": _card(shape, figures),
        }
        for file, text in texts.items():
            (folder / file).write_text(text, encoding="utf-8")
    held = (work / "held-out.txt").read_text(encoding="utf-8")
    (out / "held-out.txt").write_text(held, encoding="utf-8")
    report = json.loads((work / "sources.json").read_text(encoding="utf-8"))
    (out / "SOURCES.md").write_text(_sources_md(report), encoding="utf-8")
    keys = ("ppl_512", "ppl_2048", "bpb_512", "bpb_2048", "step", "seconds")
    for name in ("target", "draft"):
        print(name, {key: round(figures[name][key], 4) for key in keys})
    print({key: round(figures[key], 4) for key in ("accept_held", "accept_greedy")})


# ----------------------------------------------------------------------------- main


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the bundled models from scratch.")
    parser.add_argument("stage", nargs="?", default="all", choices=("all", *STAGES))
    work = Path(tempfile.gettempdir()) / "austen-train"
    parser.add_argument("--work", type=Path, default=work, help="scratch folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="result folder")
    parser.add_argument("--minutes", type=float, default=45.0, help="wall time for the target")
    parser.add_argument("--draft-minutes", type=float, default=12.0, help="and for the draft")
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
        else:
            export(args.work, args.out)


if __name__ == "__main__":
    main()
