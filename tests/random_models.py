"""Random checkpoints of all families with any head size, converted: no torch, in no time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from helpers import TESTS
from safetensors.numpy import save_file

from infer_os.convert.pipeline import convert
from infer_os.convert.settings import ConvertSettings
from infer_os.models.architectures import describe

FAMILIES = (
    "gptj", "gpt_neox", "bloom", "gpt2", "codegen", "bigcode", "opt", "gpt-neo", "xglm", "mpt",
)  # fmt: skip
_REFERENCES = {family: family for family in FAMILIES} | {"gpt_neox": "neox-parallel"}


def random_config(family: str, head: int, n_head: int = 2, n_layer: int = 2) -> dict[str, Any]:
    """The reference checkpoint's config with other sizes."""
    if family == "codegen":  # its rows are cut into quarters
        n_head *= 2
    config: dict[str, Any] = json.loads(
        (TESTS / "reference" / _REFERENCES[family] / "config.json").read_text()
    )
    sizes = {
        "n_embd": n_head * head, "hidden_size": n_head * head, "n_head": n_head,
        "num_attention_heads": n_head, "n_layer": n_layer, "num_hidden_layers": n_layer,
        "rotary_dim": head // 4, "n_inner": 2 * n_head * head,
        "intermediate_size": 2 * n_head * head, "n_positions": 1024, "n_ctx": 1024,
        "max_position_embeddings": 1024, "d_model": n_head * head, "n_heads": n_head,
        "n_layers": n_layer, "num_layers": n_layer, "num_heads": n_head, "attention_heads": n_head,
        "ffn_dim": 2 * n_head * head, "word_embed_proj_dim": n_head * head, "window_size": 32,
        "max_seq_len": 1024, "attention_layers": (["global", "local"] * n_layer)[:n_layer],
    }  # fmt: skip
    return config | {key: value for key, value in sizes.items() if key in config}


def random_model(folder: Path, family: str, head: int, n_layer: int = 2, seed: int = 0) -> Path:
    """Write ``folder/model.gguf`` (f16) and the checkpoint beside it.

    Weights are large enough for the attention to choose, and a few channels of every head are much
    larger than the others, as in trained models: what a rotation is for.
    """
    checkpoint = folder / "checkpoint"
    checkpoint.mkdir(parents=True)
    config = random_config(family, head, n_layer=n_layer)
    (checkpoint / "config.json").write_text(json.dumps(config))
    shutil.copy(TESTS / "reference" / _REFERENCES[family] / "tokenizer.json", checkpoint)
    random = np.random.default_rng(seed)
    tensors = {}
    for rule in describe(config).rules:
        for part in rule.parts:
            if len(part.shape) == 1:
                values = random.standard_normal(part.shape) * 0.1 + ("weight" in part.source)
            else:
                values = random.standard_normal(part.shape) * 1.2 / np.sqrt(part.shape[-1])
            tensors[part.source] = values.astype(np.float32)
    save_file(tensors, checkpoint / "model.safetensors")
    target = folder / "model.gguf"
    convert(ConvertSettings(checkpoint, target, "f16"))
    return target
