"""The figures and the files of the bundled models: what their folders hold.

In: the work folder with the texts and both trained models. Out, in the result folder: a checkpoint
and a model card for each, ``held-out.txt`` and ``SOURCES.md``.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from safetensors.torch import save_file
from tokenizers import Tokenizer
from train_data import EOT, VOCAB, encode
from train_loops import DRAFT_BATCH, KEEP
from train_network import (
    CONTEXT,
    DRAFT,
    SHORT,
    TARGET,
    Shape,
    build,
    config_json,
    generate,
    rounded,
)
from transformers import GPTNeoXForCausalLM

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
    held = encode(work, "held-out.txt")
    size = len((work / "held-out.txt").read_text("utf-8").replace(EOT, "").encode())
    result: dict[str, Any] = {"held_tokens": len(held), "held_bytes": size}
    result["train_tokens"] = len(encode(work, "train.txt"))
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


def write_checkpoint(
    folder: Path, shape: Shape, state: dict[str, torch.Tensor], tokenizer: Path, card: str
) -> None:
    """Write a Hugging Face folder of the weights in float16, with a model card."""
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "bos_token": EOT,
        "eos_token": EOT,
        "unk_token": EOT,
    }
    folder.mkdir(parents=True, exist_ok=True)
    halves = {key: weight.half().contiguous() for key, weight in state.items()}
    weights = folder / "model.safetensors"
    save_file(halves, str(weights), metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors makes it readable for its owner only
    texts = {
        "config.json": json.dumps(config_json(shape), indent=2) + "\n",
        "tokenizer_config.json": json.dumps(tokenizer_config, indent=2) + "\n",
        "tokenizer.json": tokenizer.read_text(encoding="utf-8"),
        "README.md": card,
    }
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")


def export(work: Path, out: Path) -> None:
    """Measure both models and write every file that is bundled."""
    figures = _measure(work)
    figures["lesson_tokens"] = np.load(work / "lessons.npz")["sizes"].tolist()
    (work / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    for shape, name in ((TARGET, "target"), (DRAFT, "draft")):
        state = torch.load(work / f"{name}.pt", weights_only=True)["model"]
        card = _card(shape, figures)
        write_checkpoint(out / shape.name, shape, state, work / "tokenizer.json", card)
    held = (work / "held-out.txt").read_text(encoding="utf-8")
    (out / "held-out.txt").write_text(held, encoding="utf-8")
    report = json.loads((work / "sources.json").read_text(encoding="utf-8"))
    (out / "SOURCES.md").write_text(_sources_md(report), encoding="utf-8")
    keys = ("ppl_512", "ppl_2048", "bpb_512", "bpb_2048", "step", "seconds")
    for name in ("target", "draft"):
        print(name, {key: round(figures[name][key], 4) for key in keys})
    print({key: round(figures[key], 4) for key in ("accept_held", "accept_greedy")})
