"""Write the last layer's states of transformers, or compare with them live.

``make_embeddings.py write`` writes embeddings.json beside this file: tokens, and the normalized
mean and last row of ``hidden_states[-1]`` in float32. ``make_embeddings.py check`` compares fresh
tokens.

Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
FOLDERS = ("gpt2", "gptj", "neox-parallel", "bloom")
#: Longer than a step of the embedder's.
LENGTHS = (1, 7, 100)


def cases(seed: int) -> Iterator[dict[str, Any]]:
    """Random tokens of each model, with both vectors."""
    random = np.random.default_rng(seed)
    for folder in FOLDERS:
        path = HERE / folder
        model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        for n in LENGTHS:
            tokens = random.integers(1, 290, n).tolist()
            with torch.no_grad():
                made = model(torch.tensor([tokens]), output_hidden_states=True)
            states = made.hidden_states[-1][0].double()  # (n, n_embd)
            vectors = {"mean": states.mean(0), "last": states[-1]}
            yield {"model": folder, "tokens": tokens} | {
                name: [round(x, 7) for x in (vector / vector.norm()).tolist()]
                for name, vector in vectors.items()
            }


def check(seeds: range) -> int:
    """Compare with fresh tokens; count the failures."""
    from infer_os.convert.pipeline import convert
    from infer_os.convert.settings import ConvertSettings
    from infer_os.runtime.scoring.embedder import POOLINGS, Embedder
    from infer_os.runtime.settings import EngineSettings

    failures = 0
    for seed in seeds:
        for case in cases(seed):
            with tempfile.TemporaryDirectory() as place:
                gguf = Path(place) / "model.gguf"
                convert(ConvertSettings(HERE / case["model"], gguf, "f32"))
                for pooling in POOLINGS:
                    with Embedder(gguf, EngineSettings(context=128, kv="f32"), pooling) as made:
                        away = np.abs(made.embed(case["tokens"]) - case[pooling]).max()
                    failures += away > 2e-3
                    print(
                        f"{'ok  ' if away <= 2e-3 else 'FAIL'} {case['model']} seed {seed}, "
                        f"{len(case['tokens'])} tokens, {pooling}: {away:.1e}"
                    )
    return failures


def main() -> None:
    """Parse the command and run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("write", "check"))
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    if arguments.command == "write":
        lines = (json.dumps(case) for case in cases(20))
        (HERE / "embeddings.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")
        return
    raise SystemExit(bool(check(range(100, 103))))


if __name__ == "__main__":
    main()
