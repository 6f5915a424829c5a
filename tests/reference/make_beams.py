"""Write what transformers' beam search finds, or compare with it live.

``make_beams.py write`` writes beams.json beside this file: prompts, the texts that
``generate(num_beams=...)`` finds in float32, and their scores. ``make_beams.py check`` does the
same with other prompts and compares.

Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

HERE = Path(__file__).parent
BUNDLED = "austen-6m"
#: Random models end early and often, the bundled one seldom.
FOLDERS = ("gpt2", "gptj", "neox-parallel", "bloom")


def cases(seed: int) -> Iterator[dict[str, Any]]:
    """Prompts with their settings: 50 of the bundled model, 10 of each random one.

    Tokens that are likely somewhere end a text, so that texts of many lengths compete.
    """
    sys.path.insert(0, str(HERE.parent))
    from infer_os.models.bundled import HELD_OUT, TARGET

    random = np.random.default_rng(seed)
    tokenizer = Tokenizer.from_file(str(TARGET / "tokenizer.json"))
    text = tokenizer.encode(HELD_OUT.read_text()).ids
    for i in range(50):
        at = int(random.integers(0, len(text) - 40))
        prompt = text[at : at + int(random.integers(3, 40))]
        ends = [tokenizer.token_to_id(mark) for mark in (".", ",", ";")[: i % 4]] or [0]
        yield {
            "model": BUNDLED, "prompt": prompt, "ends": ends, "beams": 2 + i % 5,
            "max_tokens": 8 + i % 30,
        }  # fmt: skip
    for folder in FOLDERS:
        for i in range(10):
            prompt = random.integers(1, 290, int(random.integers(2, 20))).tolist()
            ends = random.choice(300, 1 + 10 * (i % 3), replace=False).tolist()
            yield {
                "model": folder, "prompt": prompt, "ends": ends, "beams": 2 + i % 6,
                "max_tokens": 4 + 3 * i,
            }  # fmt: skip


def folder_of(name: str) -> Path:
    """Where a case's model is."""
    from infer_os.models.bundled import TARGET

    return TARGET if name == BUNDLED else HERE / name


def found(cases: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The cases with the texts that transformers finds: all beams, best first."""
    for name in dict.fromkeys(case["model"] for case in cases):
        model = transformers.AutoModelForCausalLM.from_pretrained(
            folder_of(name), dtype=torch.float32
        ).eval()
        for case in (case for case in cases if case["model"] == name):
            with torch.no_grad():
                made = model.generate(
                    torch.tensor([case["prompt"]]), num_beams=case["beams"], do_sample=False,
                    num_return_sequences=case["beams"], max_new_tokens=case["max_tokens"],
                    eos_token_id=case["ends"], pad_token_id=case["ends"][0],
                    return_dict_in_generate=True, output_scores=True,
                )  # fmt: skip
            texts = [row[len(case["prompt"]) :].tolist() for row in made.sequences]
            texts = [list(up_to(text, case["ends"])) for text in texts]
            yield {**case, "texts": texts, "scores": made.sequences_scores.tolist()}


def up_to(text: list[int], ends: list[int]) -> Iterator[int]:
    """A text up to its end: what follows is padding."""
    for token in text:
        yield token
        if token in ends:
            return


def check(seeds: range) -> int:
    """Compare with fresh prompts; count the failures."""
    from beam_comparison import ours

    failures = 0
    with tempfile.TemporaryDirectory() as place:
        for seed in seeds:
            stored = list(found(list(cases(seed))))
            good = [
                case["texts"][0] == list(texts[0].tokens)
                # a random model's best two may be as good as each other
                or (case["model"] != BUNDLED and case["scores"][0] - case["scores"][1] < 1e-3)
                for case, texts in zip(stored, ours(stored, Path(place), folder_of), strict=True)
            ]
            failures += len(good) - sum(good)
            print(f"{'ok  ' if all(good) else 'FAIL'} beams seed {seed}: {sum(good)}/{len(good)}")
    return failures


def main() -> None:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("write", "check"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    sys.path.insert(0, str(HERE.parent))
    if arguments.command == "write":
        lines = (json.dumps(case) for case in found(list(cases(20))))
        (HERE / "beams.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
        return
    raise SystemExit(bool(check(range(100, 103))))


if __name__ == "__main__":
    main()
