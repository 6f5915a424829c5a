"""Write tiny random LoRA adapters with PEFT's merged float32 logits, or compare against them live.

``make_adapters.py write`` fills ``adapters/``, which ``make test`` compares with; the models are
the checkpoints beside this file. ``make_adapters.py check`` makes fresh ones with other seeds in a
temporary folder, adds them while converting, and compares.

Needs torch, transformers and peft; nothing else in the project needs peft.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).parent
PLACE = HERE / "adapters"


@dataclass(frozen=True)
class Adapter:
    """An adapter: the checkpoint that it is for, and PEFT's settings."""

    name: str
    base: str
    targets: list[str]
    settings: dict[str, Any] = field(default_factory=dict)
    safetensors: bool = True
    dtype: torch.dtype = torch.float32


_NEOX = ["query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"]
ADAPTERS = (
    Adapter("gptj", "gptj", ["q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"]),
    Adapter(
        "gptj-patterns", "gptj", ["q_proj", "v_proj", "lm_head"],
        {"rank_pattern": {"q_proj": 2, r"h\.1\.attn\.v_proj": 6},
         "alpha_pattern": {r"^transformer\.h\.0\.attn\.v_proj": 3, "lm_head": 5}},
    ),
    Adapter("neox-parallel", "neox-parallel", [*_NEOX, "embed_out"], {"use_rslora": True}),
    Adapter("neox-sequential", "neox-sequential", _NEOX, dtype=torch.bfloat16),
    Adapter("bloom", "bloom", _NEOX, {"use_rslora": True, "r": 8}, safetensors=False),
    Adapter("gpt2", "gpt2", ["c_attn", "c_proj", "c_fc"], {"fan_in_fan_out": True}),
    Adapter("gpt2-untied", "gpt2-untied", ["c_attn", "wte"], {"fan_in_fan_out": True}),
)  # fmt: skip


def build(adapter: Adapter, folder: Path, seed: int) -> None:
    """Write the adapter, and the logits of the model that it is merged into."""
    torch.manual_seed(seed)
    base = HERE / adapter.base
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", "target_modules": adapter.targets}
        | adapter.settings
    )
    tuned = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                random = torch.randn_like(parameter) * 0.2
                parameter.copy_(random.to(adapter.dtype).float())
    tuned.to(adapter.dtype) if adapter.dtype != torch.float32 else None
    tuned.save_pretrained(folder, safe_serialization=adapter.safetensors)
    tuned.float()
    (folder / "README.md").unlink(missing_ok=True)
    # a fresh model: a change of type has rounded the other one's weights
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    merged = peft.PeftModel.from_pretrained(model, folder).merge_and_unload().eval()
    tokens = torch.from_numpy(np.load(base / "tokens.npy").astype(np.int64))[None]
    with torch.no_grad():
        logits = merged(tokens).logits[0]  # (n_tokens, n_vocab)
    np.save(folder / "logits.npy", logits.numpy().astype(np.float32))
    path = folder / "adapter_config.json"
    path.write_text(path.read_text().replace(str(base), f"someone/{adapter.base}") + "\n")


def check(seeds: range) -> int:
    """Make each adapter with other seeds, convert with it and compare; count the failures."""
    sys.path.insert(0, str(HERE.parent))
    from comparison import compare_with_adapter

    failures = 0
    for adapter in ADAPTERS:
        for seed in seeds:
            with tempfile.TemporaryDirectory() as place:
                folder = Path(place) / adapter.name
                build(adapter, folder, seed)
                result = compare_with_adapter(
                    HERE / adapter.base, folder, "f32", Path(place) / "m.gguf"
                )
                good = result.kl < 1e-5 and result.argmax_equal == result.n_tokens
                failures += not good
                print(
                    f"{'ok  ' if good else 'FAIL'} {adapter.name} seed {seed}: "
                    f"KL {result.kl:.2e}, argmax {result.argmax_equal}/{result.n_tokens}"
                )
    return failures


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("action", choices=["write", "check"])
    if parser.parse_args().action == "check":
        sys.exit(1 if check(range(100, 103)) else 0)
    for adapter in ADAPTERS:
        build(adapter, PLACE / adapter.name, seed=7)


if __name__ == "__main__":
    main()
